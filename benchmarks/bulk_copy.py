"""COPY out and in, half a million rows (41 MB): by files, by blocks, and row by row; how fast, at what cost, and for
how long nothing else can run.

    python benchmarks/bulk_copy.py [DSN] [--rounds 5] [--peers greenpg,psycopg3] [--rows 500000]
"""

import io
import sys
from datetime import datetime, timezone
from functools import partial

from harness import Bars, Benchmark
from peers import open_connection
from stalls import measure_async, measure_green

OUT_FILE, OUT_BLOCKS, OUT_ROWS = "out, into a file", "out, block by block", "out, row by row"
IN_FILE, IN_BLOCKS, IN_ROWS = "in, from a file", "in, block by block", "in, row by row"
SCENARIOS = [OUT_FILE, OUT_BLOCKS, OUT_ROWS, IN_FILE, IN_BLOCKS, IN_ROWS]
BLOCK_BYTES = 8192
TABLE = """
    CREATE TEMP TABLE item AS
    SELECT n AS id, 'name ' || n AS name, md5(n::text) AS hash, now() AS created FROM generate_series(1, {}) AS n
"""
COPY_OUT, COPY_IN = "COPY item TO STDOUT", "COPY item FROM STDIN"
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def made_rows(number):
    return ((n, f"name {n}", "d41d8cd98f00b204e9800998ecf8427e", NOW) for n in range(number))


def blocks_of(data):
    return [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]


# Each gets a cursor and what it copies. Those that copy out return the file, or how many bytes or rows it were.


def out_expert(cur):
    file = io.BytesIO()
    cur.copy_expert(COPY_OUT, file)
    return file


def out_file(cur):
    file = io.BytesIO()
    with cur.copy(COPY_OUT) as copy:
        for block in copy:
            file.write(block)
    return file


def out_blocks(cur):
    with cur.copy(COPY_OUT) as copy:
        return sum(len(block) for block in copy)


def out_rows(cur):
    with cur.copy(COPY_OUT) as copy:
        return sum(1 for _ in copy.rows())


def in_expert(cur, file):
    cur.copy_expert(COPY_IN, file)


def in_file(cur, file):
    with cur.copy(COPY_IN) as copy:
        while block := file.read(BLOCK_BYTES):
            copy.write(block)


def in_blocks(cur, blocks):
    with cur.copy(COPY_IN) as copy:
        for block in blocks:
            copy.write(block)


def in_rows(cur, rows):
    with cur.copy(COPY_IN) as copy:
        for row in rows:
            copy.write_row(row)


COPY_BLOCK = {OUT_BLOCKS: out_blocks, OUT_ROWS: out_rows, IN_BLOCKS: in_blocks, IN_ROWS: in_rows}
WAYS = {
    "greenpg": {OUT_FILE: out_expert, IN_FILE: in_expert} | COPY_BLOCK,
    "psycopg2": {OUT_FILE: out_expert, IN_FILE: in_expert},
    "psycopg3": {OUT_FILE: out_file, IN_FILE: in_file} | COPY_BLOCK,
}


def measure(name, dsn, sizes):
    ways, rows = WAYS[name], sizes["rows"]
    with open_connection(name, dsn) as conn, conn.cursor() as cur:
        cur.execute(TABLE.format(rows))
        conn.commit()
        out = measure_green(partial(ways[OUT_FILE], cur))
        data = out.result.getvalue()
        found = {OUT_FILE: numbers(out, data)}
        for scenario, amount in ((OUT_BLOCKS, len(data)), (OUT_ROWS, rows)):
            if scenario in ways:
                measured = measure_green(partial(ways[scenario], cur))
                assert measured.result == amount, measured.result
                found[scenario] = numbers(measured, data)
        for scenario, source in sources(data, rows).items():
            if scenario in ways:
                cur.execute("TRUNCATE item")
                found[scenario] = numbers(measure_green(partial(ways[scenario], cur, source)), data)
                cur.execute("SELECT count(*) FROM item")
                assert cur.fetchone() == (rows,)
                conn.rollback()
    return found


def asyncpg(dsn, sizes):
    import uvloop

    return uvloop.run(measure_asyncpg(dsn, sizes["rows"]))


async def measure_asyncpg(dsn, rows):
    import asyncpg
    from peers.asyncpg_pool import address

    async def each(blocks):
        for block in blocks:
            yield block

    async def out_blocks():
        size = 0

        async def take(block):
            nonlocal size
            size += len(block)

        await conn.copy_from_table("item", output=take)
        return size

    file = io.BytesIO()
    conn = await asyncpg.connect(**address(dsn))
    try:
        await conn.execute(TABLE.format(rows))
        out = await measure_async(lambda: conn.copy_from_table("item", output=file))
        data = file.getvalue()
        found = {OUT_FILE: numbers(out, data)}
        measured = await measure_async(out_blocks)
        assert measured.result == len(data), measured.result
        found[OUT_BLOCKS] = numbers(measured, data)
        for scenario, source in sources(data, rows).items():
            await conn.execute("TRUNCATE item")
            if scenario == IN_ROWS:
                copy = partial(conn.copy_records_to_table, "item", records=source)
            else:
                copy = partial(conn.copy_to_table, "item", source=source if scenario == IN_FILE else each(source))
            found[scenario] = numbers(await measure_async(copy), data)
            assert await conn.fetchval("SELECT count(*) FROM item") == rows
    finally:
        await conn.close()
    return found


def sources(data, rows):
    return {IN_FILE: io.BytesIO(data), IN_BLOCKS: blocks_of(data), IN_ROWS: made_rows(rows)}


def numbers(measured, data):
    """The megabytes are those of the text format, also where asyncpg sends rows in binary."""
    megabytes = len(data) / 1e6
    return {
        "mb_per_second": megabytes / measured.seconds,
        "mb_cpu_ms": measured.cpu_seconds / megabytes * 1e3,
        "stall_ms": measured.stall_ms,
    }


BENCHMARK = Benchmark(
    __file__,
    title="COPY",
    description=(
        "Half a million rows of four columns, 41 MB as text, out of a temporary table and into it. `into a file` and "
        "`from a file` are `copy_expert()` of greenpg and psycopg2, asyncpg's own functions, and for psycopg 3 the "
        f"loop of its documentation; blocks are of {BLOCK_BYTES // 1024} kB on the way in; row by row are `rows()` and "
        "`write_row()`, and asyncpg's `copy_records_to_table()`, which sends them in binary (counted as the same 41 "
        "MB). asyncpg has nothing that reads rows. The longest stall is the longest time for which no other task of "
        "the program could run; for psycopg2, which has no green COPY, that's all of it."
    ),
    peers={**{name: partial(measure, name) for name in WAYS}, "asyncpg-uvloop": asyncpg},
    sizes={"rows": 300_000},
    quick_sizes={"rows": 100_000},
    pictures=[
        Bars("speed", "mb_per_second", SCENARIOS, "COPY of half a million rows"),
        Bars("stall", "stall_ms", SCENARIOS, "For how long nothing else could run", is_log=True),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
