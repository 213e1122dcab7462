"""A big result: a million rows as a list, iterated, and streamed; how fast, at what cost, and for how long nothing else
can run.

    python benchmarks/fetchall.py [DSN] [--rounds 5] [--peers greenpg,psycopg3] [--rows 1000000]
"""

import re
import sys
from functools import partial
from pathlib import Path

from harness import Bars, Benchmark
from peers import open_connection
from stalls import measure_async, measure_green

FETCHALL, ITERATION, STREAM = "as a list, fetchall()", "iterated", "streamed, 2,000 rows at a time"
CHUNK_ROWS = 2000  # psycopg2's default, and greenpg's
SELECT = "SELECT n AS id, 'name ' || n AS name, md5(n::text) AS hash FROM generate_series(1, {}) AS n"


def count(rows):
    number = 0
    for _ in rows:
        number += 1
    return number


def measure(name, dsn, sizes):
    sql = SELECT.format(sizes["rows"])
    with open_connection(name, dsn) as conn:

        def fetchall():
            with conn.cursor() as cur:
                cur.execute(sql)
                return cur.fetchall()

        def iterate():
            with conn.cursor() as cur:
                cur.execute(sql)
                return count(cur)

        def stream():
            with conn.cursor("streamed") as cur:
                cur.itersize = CHUNK_ROWS
                cur.execute(sql)
                return count(cur)

        def stream_from_pool():
            import greenpg

            with greenpg.ConnectionPool(dsn, min_size=1) as pool:
                pool.wait()
                return measure_green(lambda: count(pool.stream(sql, chunk_size=CHUNK_ROWS)))

        # In the order of what they need, since the peak of a process's memory only grows.
        streamed = stream_from_pool() if name == "greenpg" else measure_green(stream)
        found = {STREAM: numbers(streamed, sizes["rows"])}
        found[ITERATION] = numbers(measure_green(iterate), sizes["rows"])
        found[FETCHALL] = numbers(measure_green(fetchall), sizes["rows"])
    return found


def asyncpg(dsn, sizes):
    import uvloop

    return uvloop.run(measure_asyncpg(dsn, sizes))


async def measure_asyncpg(dsn, sizes):
    import asyncpg
    from peers.asyncpg_pool import address

    sql = SELECT.format(sizes["rows"])
    conn = await asyncpg.connect(**address(dsn))
    try:

        async def stream():
            number = 0
            async with conn.transaction():
                async for _ in conn.cursor(sql, prefetch=CHUNK_ROWS):
                    number += 1
            return number

        found = {STREAM: numbers(await measure_async(stream), sizes["rows"])}
        found[FETCHALL] = numbers(await measure_async(lambda: conn.fetch(sql)), sizes["rows"])
    finally:
        await conn.close()
    return found


def numbers(measured, rows):
    result = measured.result
    assert (result if isinstance(result, int) else len(result)) == rows, "not all rows arrived"
    return {
        "rows_per_second": rows / measured.seconds,
        "row_cpu_us": measured.cpu_seconds / rows * 1e6,
        "stall_ms": measured.stall_ms,
        "gc_ms": measured.gc_ms,
        "peak_mb": peak_bytes() / 1e6,
    }


def peak_bytes():
    """Of this process's memory. getrusage() would tell that of the process that started this one, if it was larger."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


BENCHMARK = Benchmark(
    __file__,
    title="A million rows",
    description=(
        "A million rows of a number and two texts: as a list by `fetchall()`; iterated, when the result is with the "
        "client as a whole; and streamed from the server, `pool.stream()` of greenpg, server-side cursors of the "
        "others. Measured is all of it, the statement included. The longest stall is the longest time for which no "
        "other task of the program could run: `fetchall()` of psycopg2 makes all rows in one go. It includes what the "
        "garbage collector takes, whose longest run is told beside."
    ),
    peers={
        **{name: partial(measure, name) for name in ("greenpg", "psycopg2-psycogreen", "psycopg3")},
        "asyncpg-uvloop": asyncpg,
    },
    sizes={"rows": 1_000_000},
    quick_sizes={"rows": 100_000},
    pictures=[
        Bars("speed", "rows_per_second", [FETCHALL, ITERATION, STREAM], "A million rows"),
        Bars("stall", "stall_ms", [FETCHALL, ITERATION, STREAM], "For how long nothing else could run", is_log=True),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
