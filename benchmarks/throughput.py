"""How many operations a second, and how long each takes: `SELECT 1` by 100 tasks on 10 connections, by 10 to 10,000
tasks, and a pool's own cost without any statement.

    python benchmarks/throughput.py [DSN] [--rounds 5] [--peers greenpg,psycopg_pool] [--quick]
"""

import sys
from functools import partial

from harness import Aim, Bars, Benchmark, Latencies, Lines
from peers import open_pool

CONNECTIONS, TASKS = 10, 100
BARE, THREADS = "psycopg2-bare", "psycopg2-threads"
PEERS = [
    "greenpg",
    "psycogreen",
    "psycopg_pool",
    "sqlalchemy",
    "django-db-geventpool",
    "asyncpg",
    "asyncpg-uvloop",
    "asyncpg-uvloop-no-reset",
    THREADS,
    BARE,
]

ALONE = "acquire and release, no statement"
AUTOCOMMIT = "one statement, autocommit"
TRANSACTION = "one statement in a transaction"
FIVE = "five statements in a transaction"
#: Of greenpg and of psycogreen only.
BORROWED = "one statement in a transaction of a borrowed connection"
DROP_IN = "one statement in a transaction, the program as written for psycogreen"


def crowd(tasks):
    return AUTOCOMMIT if tasks == TASKS else f"{AUTOCOMMIT}, {tasks:,} tasks"


def measure(name, dsn, sizes):
    loops, found = sizes["loops"], {}
    with open_pool(name, dsn, CONNECTIONS) as pool:
        if hasattr(pool, "acquire_release"):
            found[ALONE] = pool.measure_alone("acquire_release", seconds=loops / 500)
        found[AUTOCOMMIT] = pool.measure("one_statement", TASKS, loops)
        found[TRANSACTION] = pool.measure("one_transaction", TASKS, max(1, loops // 2))
        found[FIVE] = pool.measure("five_statements", TASKS, max(1, loops // 5))
        if name == BARE:
            return found  # it has one task only
        if hasattr(pool, "borrowed_transaction"):
            found[BORROWED] = pool.measure("borrowed_transaction", TASKS, max(1, loops // 2))
            with open_pool("greenpg-as-psycogreen" if name == "greenpg" else name, dsn, CONNECTIONS) as own:
                found[DROP_IN] = own.measure("one_transaction", TASKS, max(1, loops // 2))
        for tasks in (10, 1_000, 10_000):
            if tasks <= sizes["most_tasks"] and not (name == THREADS and tasks == 10_000):
                found[crowd(tasks)] = pool.measure("one_statement", tasks, max(3, TASKS * loops // tasks // 3))
    return found


BENCHMARK = Benchmark(
    __file__,
    title="100 tasks on 10 connections",
    description=(
        "`SELECT 1` and a fetch, by 100 tasks that share 10 connections unless said otherwise; a latency includes the "
        "wait for a connection. `acquire and release` is one task by itself. max / median tells how fair a pool is: "
        "where all take their turns, nobody waits much longer than the others."
    ),
    peers={name: partial(measure, name) for name in PEERS},
    sizes={"loops": 50, "most_tasks": 10_000},
    quick_sizes={"loops": 20, "most_tasks": 100},
    pictures=[
        Bars("speed", "per_second", [AUTOCOMMIT, TRANSACTION, FIVE], "100 tasks on 10 connections", left_out=[BARE]),
        Bars("cpu", "cpu_us", [AUTOCOMMIT, TRANSACTION, FIVE], "What an operation costs the client"),
        Bars("acquire", "us", [ALONE], "One task takes a connection and gives it back", is_log=True),
        Latencies("latency", [AUTOCOMMIT, TRANSACTION], "100 tasks on 10 connections: the wait included", [BARE]),
        Lines(
            "tasks",
            "per_second",
            {tasks: crowd(tasks) for tasks in (10, 100, 1_000, 10_000)},
            "One statement in autocommit on 10 connections",
            "tasks",
        ),
    ],
    aims=[
        Aim(AUTOCOMMIT, "per_second", "psycopg_pool", at_least=3.2),
        Aim(AUTOCOMMIT, "per_second", "asyncpg-uvloop", at_least=3),
        Aim(AUTOCOMMIT, "per_second", "psycogreen", at_least=1.1),
        Aim(AUTOCOMMIT, "max_over_median", at_most=3),
        Aim(AUTOCOMMIT, "cpu_us", BARE, at_most=1.2),
        Aim(TRANSACTION, "per_second", "psycopg_pool", at_least=3.3),
        Aim(TRANSACTION, "per_second", "psycogreen", at_least=1.45),
        Aim(TRANSACTION, "per_second", "asyncpg-uvloop", at_least=2.6),
        Aim(BORROWED, "per_second", "psycogreen", at_least=1.35),
        Aim(DROP_IN, "per_second", "psycogreen", at_least=1.35),
        Aim(ALONE, "us", at_most=1.3),
        Aim(ALONE, "us", "psycopg_pool", at_most=0.2),
        Aim(crowd(10_000), "per_second", at_least=0.85, than_scenario=AUTOCOMMIT),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
