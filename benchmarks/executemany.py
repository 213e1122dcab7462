"""`executemany()` of 10,000 inserts in a transaction: on a Unix socket, and at 0.1 ms and 1 ms of delay each way.

    python benchmarks/executemany.py [DSN] [--rounds 5] [--peers greenpg,psycopg3] [--rows 10000]

The delays are those of a proxy of our own (delay_proxy.py); a DSN has to be one of TCP, which then is what is measured
without a delay.
"""

import sys
from functools import partial

from delayed_server import DIRECT, behind_proxies
from harness import Aim, Bars, Benchmark
from peers import open_connection
from peers.base import Clock

DELAYS_MS = (0.1, 1)
SCENARIOS = {DIRECT: "executemany(), no delay"} | {
    str(delay_ms): f"executemany(), {delay_ms} ms each way" for delay_ms in DELAYS_MS
}
TABLE = "CREATE TEMP TABLE item (id int PRIMARY KEY, name text, price float)"
INSERT = "INSERT INTO item VALUES (%s, %s, %s)"
# They wait for the server after each row, so that fewer tell as much.
ROW_BY_ROW = ["psycopg2", "psycopg2-psycogreen"]
PEERS = ["greenpg", *ROW_BY_ROW, "psycopg2-batch", "psycopg2-values", "psycopg3"]


def made_rows(number):
    return [(n, f"name {n}", n * 0.5) for n in range(number)]


def insert(name, cur, rows):
    if name == "psycopg2-batch":
        from psycopg2.extras import execute_batch

        execute_batch(cur, INSERT, rows)
    elif name == "psycopg2-values":
        from psycopg2.extras import execute_values

        execute_values(cur, "INSERT INTO item VALUES %s", rows)
    else:
        cur.executemany(INSERT, rows)


def measure(name, dsns, sizes):
    found = {}
    for way, scenario in SCENARIOS.items():
        rows = made_rows(sizes["rows"] // 20 if name in ROW_BY_ROW and way != DIRECT else sizes["rows"])
        with open_connection(name, dsns[way]) as conn, conn.cursor() as cur:
            cur.execute(TABLE)
            conn.commit()
            insert(name, cur, rows[:100])
            conn.rollback()
            with Clock() as clock:
                insert(name, cur, rows)
            cur.execute("SELECT count(*) FROM item")
            assert cur.fetchone() == (len(rows),)
            conn.rollback()
        found[scenario] = numbers(clock, rows)
    return found


def asyncpg(dsns, sizes):
    import uvloop

    return uvloop.run(measure_asyncpg(dsns, made_rows(sizes["rows"])))


async def measure_asyncpg(dsns, rows):
    import asyncpg
    from peers.asyncpg_pool import address

    async def insert(rows):
        await conn.executemany("INSERT INTO item VALUES ($1, $2, $3)", rows)

    found = {}
    for way, scenario in SCENARIOS.items():
        conn = await asyncpg.connect(**address(dsns[way]))
        try:
            await conn.execute(TABLE)
            await insert(rows[:100])
            await conn.execute("TRUNCATE item")
            with Clock() as clock:
                async with conn.transaction():
                    await insert(rows)
            assert await conn.fetchval("SELECT count(*) FROM item") == len(rows)
        finally:
            await conn.close()
        found[scenario] = numbers(clock, rows)
    return found


def numbers(clock, rows):
    return {"row_us": clock.seconds / len(rows) * 1e6, "row_cpu_us": clock.cpu_seconds / len(rows) * 1e6}


BENCHMARK = Benchmark(
    __file__,
    title="executemany()",
    description=(
        f"10,000 times `{INSERT}` in one transaction, into an empty temporary table with a primary key: without a "
        "delay (on the Unix socket of a throw-away server), and through a proxy that delays everything by 0.1 ms, as a "
        "network within a data centre does, or 1 ms, in each direction. psycopg2's own `executemany()` waits for the "
        "server after each row; where there is a delay it inserts 500 rows. `execute_batch` and `execute_values` are "
        "psycopg2's, with their pages of 100 rows; the latter makes one INSERT of each page, so it shows what it costs "
        "the others that the server parses and plans a statement for each row. asyncpg prepares the statement once."
    ),
    peers={**{name: partial(measure, name) for name in PEERS}, "asyncpg-uvloop": asyncpg},
    sizes={"rows": 10_000},
    quick_sizes={"rows": 2_000},
    target=partial(behind_proxies, {str(delay_ms): {"delay_ms": delay_ms} for delay_ms in DELAYS_MS}),
    pictures=[Bars("time", "row_us", list(SCENARIOS.values()), "10,000 inserts in a transaction", is_log=True)],
    aims=[
        aim
        for scenario in SCENARIOS.values()
        for aim in (
            Aim(scenario, "row_us", "psycopg2", at_most=0.1),
            Aim(scenario, "row_us", "psycopg3", at_most=1),
        )
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
