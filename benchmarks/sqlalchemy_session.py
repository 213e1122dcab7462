"""SQLAlchemy: a Session of one statement, by 100 tasks on 10 connections, and by one task at 1 ms of delay each way.

    python benchmarks/sqlalchemy_session.py [DSN] [--rounds 5] [--peers greenpg,sqlalchemy]

Through a proxy of our own (delay_proxy.py) where there is a delay; a DSN has to be one of TCP.
"""

import sys
from functools import partial

from delayed_server import DIRECT, behind_proxies
from harness import Aim, Bars, Benchmark, Latencies
from peers.base import check

CONNECTIONS, TASKS, DELAY = 10, 100, "1 ms"
DRIVERS = {"greenpg": "greenpg", "sqlalchemy": "psycopg2", "sqlalchemy-psycopg3": "psycopg"}

ONE = "a Session of one statement"
FIVE = "a Session of five statements"
ALONE = "a connection, without a statement"


def delayed(tasks):
    return f"{ONE}, {DELAY} each way, {tasks} task{'s' if tasks > 1 else ''}"


def measure(name, dsns, sizes):
    from contextlib import closing

    from gevent import monkey

    monkey.patch_all()
    from peers.sqlalchemy_sessions import Pool

    loops, found = sizes["loops"], {}
    with closing(Pool(dsns[DIRECT], CONNECTIONS, DRIVERS[name])) as pool:
        check(pool.one_transaction())
        found[ONE] = pool.measure("one_transaction", TASKS, loops)
        found[FIVE] = pool.measure("five_statements", TASKS, max(1, loops // 4))
        found[ALONE] = pool.measure_alone("acquire_release", seconds=loops / 50)
    with closing(Pool(dsns[DELAY], CONNECTIONS, DRIVERS[name])) as pool:
        alone = pool.measure("one_transaction", 1, sizes["times"], warm_up=1)
        found[delayed(1)] = {"ms": alone["p50_ms"]}
        found[delayed(TASKS)] = pool.measure("one_transaction", TASKS, max(1, loops // 8), warm_up=1)
    return found


BENCHMARK = Benchmark(
    __file__,
    title="SQLAlchemy: a Session of one statement",
    description=(
        "`SELECT 1` in a Session that commits, by 100 tasks that share 10 connections: `postgresql+greenpg` with its "
        "pool, beside SQLAlchemy's QueuePool on psycopg2 (by psycogreen) and on psycopg 3. Where there is a delay, it "
        "is that of a proxy, 1 ms in each direction. max / median tells how fair a pool is."
    ),
    peers={name: partial(measure, name) for name in DRIVERS},
    sizes={"loops": 50, "times": 60},
    quick_sizes={"loops": 10, "times": 10},
    target=partial(behind_proxies, {DELAY: {"delay_ms": 1}}),
    needs=("sqlalchemy",),
    pictures=[
        Bars("speed", "per_second", [ONE, FIVE, delayed(TASKS)], "Sessions, 100 tasks on 10 connections"),
        Latencies("latency", [ONE], "100 tasks on 10 connections: the wait included", []),
    ],
    aims=[
        Aim(ONE, "per_second", "sqlalchemy", at_least=1.4),
        Aim(ONE, "max_over_median", at_most=3),
        Aim(delayed(1), "ms", "sqlalchemy", at_most=0.7),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
