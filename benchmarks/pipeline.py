"""Ten statements in a transaction: one by one, and in a pipeline, by direct TCP and at 0.5 ms of delay each way.

    python benchmarks/pipeline.py [DSN] [--rounds 5] [--peers greenpg,psycopg3] [--transactions 300]

Through a proxy of our own (delay_proxy.py); a DSN has to be one of TCP.
"""

import sys
from functools import partial

from delayed_server import TCP, behind_proxies
from harness import Aim, Bars, Benchmark
from peers import open_connection
from peers.base import Clock

STATEMENTS = 10
DELAY_MS = 0.5
SCENARIOS = {
    TCP: f"{STATEMENTS} statements in a transaction, direct TCP",
    "delayed": f"{STATEMENTS} statements in a transaction, 0.5 ms each way",
}
ONE_BY_ONE = "psycopg2-psycogreen"
SELECT = "SELECT %s::int + 1, 'x'"


def one_by_one(conn):
    with conn.cursor() as cur:
        for n in range(STATEMENTS):
            cur.execute(SELECT, (n,))
            assert cur.fetchone()[0] == n + 1
    conn.commit()


def pipelined(conn):
    with conn.pipeline():
        cursors = [conn.execute(SELECT, (n,)) for n in range(STATEMENTS)]
        conn.commit()
    for n, cur in enumerate(cursors):
        assert cur.fetchone()[0] == n + 1


def measure(name, transaction, dsns, sizes):
    found = {}
    for way, scenario in SCENARIOS.items():
        times = sizes["transactions"] if way == TCP else max(5, sizes["transactions"] // 10)
        dsn = dsns[way]
        with open_connection(name, dsn) as conn:
            for _ in range(5):
                transaction(conn)
            with Clock() as clock:
                for _ in range(times):
                    transaction(conn)
        found[scenario] = {
            "ms": clock.seconds / times * 1e3,
            "statement_cpu_us": clock.cpu_seconds / times / STATEMENTS * 1e6,
        }
    return found


BENCHMARK = Benchmark(
    __file__,
    title="A transaction in a pipeline",
    description=(
        f"`{SELECT}` ten times, each row fetched, and a commit, by one task on one connection: by TCP, and through "
        "a proxy that holds everything back by 0.5 ms in each direction. greenpg and "
        "psycopg 3 in a pipeline, the others statement by statement."
    ),
    peers={
        "greenpg": partial(measure, "greenpg", pipelined),
        "psycopg3": partial(measure, "psycopg3", pipelined),
        ONE_BY_ONE: partial(measure, ONE_BY_ONE, one_by_one),
        "psycopg2": partial(measure, "psycopg2", one_by_one),
    },
    sizes={"transactions": 1_000},
    quick_sizes={"transactions": 50},
    target=partial(behind_proxies, {"delayed": {"delay_ms": DELAY_MS}}),
    pictures=[Bars("time", "ms", list(SCENARIOS.values()), "Ten statements in a transaction", is_log=True)],
    aims=[
        Aim(SCENARIOS["delayed"], "ms", ONE_BY_ONE, at_most=1 / 8),
        Aim(SCENARIOS["delayed"], "ms", "psycopg3", at_most=1 / 3),
        Aim(SCENARIOS[TCP], "ms", ONE_BY_ONE, at_most=1 / 1.5),
        Aim(SCENARIOS[TCP], "ms", "psycopg3", at_most=1 / 2.5),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
