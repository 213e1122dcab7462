"""What round trips cost on a network: `SELECT 1` in autocommit and in a transaction, at 1 ms and 5 ms of delay each
way, by one task and by 100 tasks on 10 connections.

    python benchmarks/delay.py [DSN] [--rounds 5] [--peers greenpg,psycogreen]

Through a proxy of our own (delay_proxy.py); a DSN has to be one of TCP.
"""

import sys
from functools import partial

from delayed_server import behind_proxies
from harness import Aim, Bars, Benchmark
from peers import open_pool

CONNECTIONS, TASKS, DELAYS_MS = 10, 100, (1, 5)
BARE = "psycopg2-bare"
# asyncpg without uvloop is as fast here.
PEERS = [
    "greenpg",
    "psycogreen",
    "psycopg_pool",
    "sqlalchemy",
    "django-db-geventpool",
    "asyncpg-uvloop",
    "asyncpg-uvloop-no-reset",
    "psycopg2-threads",
    BARE,
]
OPERATIONS = {"one statement, autocommit": "one_statement", "one statement in a transaction": "one_transaction"}


def scenario(what, delay_ms, tasks):
    return f"{what}, {delay_ms} ms each way, {tasks} task{'s' if tasks > 1 else ''}"


def measure(name, dsns, sizes):
    found = {}
    for delay_ms in DELAYS_MS:
        with open_pool(name, dsns[str(delay_ms)], CONNECTIONS) as pool:
            for what, operation in OPERATIONS.items():
                alone = pool.measure(operation, 1, max(5, sizes["times"] // delay_ms), warm_up=1)
                found[scenario(what, delay_ms, 1)] = {"ms": alone["p50_ms"]}
                if name != BARE:  # it has one task only
                    busy = pool.measure(operation, TASKS, max(1, sizes["loops"] // delay_ms), warm_up=1)
                    found[scenario(what, delay_ms, TASKS)] = busy
    return found


BENCHMARK = Benchmark(
    __file__,
    title="With a network between",
    description=(
        "`SELECT 1` and a fetch, through a proxy that delays everything by 1 ms or 5 ms in each direction, so a round "
        "trip is 2 ms or 10 ms and a little: what psycopg2 alone takes for a statement in autocommit."
    ),
    peers={name: partial(measure, name) for name in PEERS},
    sizes={"times": 30, "loops": 6},
    quick_sizes={"times": 10, "loops": 1},
    target=partial(behind_proxies, {str(delay_ms): {"delay_ms": delay_ms} for delay_ms in DELAYS_MS}),
    pictures=[
        Bars(f"{delay_ms}ms-{tasks}", metric, [scenario(what, delay_ms, tasks) for what in OPERATIONS], title)
        for delay_ms in DELAYS_MS
        for tasks, metric, title in ((1, "ms", "One task"), (TASKS, "per_second", "100 tasks on 10 connections"))
    ],
    aims=[Aim(scenario("one statement in a transaction", 1, 1), "ms", "psycogreen", at_most=0.72)],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
