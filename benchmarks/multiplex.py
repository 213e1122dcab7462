"""`ConnectionPool(multiplex=2)`: single statements of 100 tasks on 10 connections, two of them shared.

    python benchmarks/multiplex.py [DSN] [--rounds 5] [--peers greenpg,psycogreen]

On a Unix socket, and at 1 ms of delay each way through a proxy of our own (delay_proxy.py); a DSN has to be one of TCP.
"""

import sys
from functools import partial

from delayed_server import DIRECT, behind_proxies
from harness import Aim, Bars, Benchmark, Latencies
from peers import open_pool

CONNECTIONS, TASKS, DELAY_MS = 10, 100, 1
SCENARIOS = {DIRECT: "one statement, 100 tasks", "delayed": "one statement, 100 tasks, 1 ms each way"}
WITHOUT = "{}, without multiplex"


def measure(name, dsns, sizes):
    found = {}
    for way, scenario in SCENARIOS.items():
        loops = sizes["loops"] if way == DIRECT else max(3, sizes["loops"] // 8)
        pools = {scenario: name}
        if name == "greenpg":
            pools = {scenario: "greenpg-multiplex", WITHOUT.format(scenario): name}
        for each, pool_name in pools.items():
            with open_pool(pool_name, dsns[way], CONNECTIONS) as pool:
                found[each] = pool.measure("one_statement", TASKS, loops)
    return found


BENCHMARK = Benchmark(
    __file__,
    title="Single statements that share connections",
    description=(
        "`SELECT 1` in autocommit and a fetch, by 100 tasks on a pool of 10 connections: greenpg's with `multiplex=2` "
        "and without. On a Unix socket (or by the DSN that is given), and through a proxy that holds everything back "
        "by 1 ms in each direction."
    ),
    peers={name: partial(measure, name) for name in ("greenpg", "psycogreen", "psycopg_pool", "asyncpg-uvloop")},
    sizes={"loops": 80},
    quick_sizes={"loops": 10},
    target=partial(behind_proxies, {"delayed": {"delay_ms": DELAY_MS}}),
    pictures=[
        Bars("speed", "per_second", list(SCENARIOS.values()), "100 tasks, single statements"),
        Latencies("latency", list(SCENARIOS.values()), "100 tasks, single statements: the wait included"),
    ],
    aims=[
        Aim(SCENARIOS[DIRECT], "per_second", at_least=2, than_scenario=WITHOUT.format(SCENARIOS[DIRECT])),
        Aim(SCENARIOS[DIRECT], "per_second", "psycogreen", at_least=1.5),
        Aim(SCENARIOS["delayed"], "per_second", at_least=4, than_scenario=WITHOUT.format(SCENARIOS["delayed"])),
        Aim(SCENARIOS[DIRECT], "max_over_median", at_most=5),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
