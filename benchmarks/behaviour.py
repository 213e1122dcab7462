"""What pools do when things go wrong, in numbers that aren't times: the table in docs/comparison.md is checked with it.

    python benchmarks/behaviour.py          # all peers that are installed, each in a process of its own

Each peer has a pool of at most four connections to a throw-away server, and is used as its documentation says: a block,
or get and put in try and finally. psycopg2's peers wait by psycogreen, asyncpg runs on asyncio.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time

SIZE = 4
PEERS = {
    "greenpg": "greenpg",
    "psycopg_pool": "psycopg_pool under gevent",
    "queuepool": "SQLAlchemy QueuePool, psycogreen",
    "geventpool": "django-db-geventpool",
    "asyncpg": "asyncpg",
}
MEASURED = {
    "limit": "most connections at once, 50 tasks",
    "running": "statements that run on 0.3 s after their timeout",
    "kept": "connections kept, of 4 whose statement timed out",
    "left": "connections left of 4, after 300 tasks were killed",
    "errors": "errors of 20 requests, after the server closed the 4 idle connections",
    "forgotten": "connections left of 4, after 4 tasks ended without giving theirs back",
}


def main() -> None:
    from greenpg import embedded

    if sys.argv[1:]:
        name, dsn = sys.argv[1:]
        print(json.dumps(measure_asyncpg(dsn) if name == "asyncpg" else measure(name, dsn)))
        return
    results = {}
    with embedded.server(settings={"max_connections": 300}, port=0) as dsn:
        for name in PEERS:
            command = [sys.executable, __file__, name, dsn]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                print(f"{PEERS[name]} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            else:
                results[name] = json.loads(done.stdout.splitlines()[-1])
    print("| |", *(f"{PEERS[name]} |" for name in results))
    print("|---|" + "---:|" * len(results))
    for key, label in MEASURED.items():
        print(f"| {label} |", *(f"{results[name][key]} |" for name in results))


# -- gevent


def open_pool(name, dsn):
    """A function that makes a block with a connection, and those that get and put one by hand."""
    import psycopg2

    if name == "greenpg":
        import greenpg

        pool = greenpg.ConnectionPool(dsn, min_size=0, max_size=SIZE, timeout=1)
        return pool.connection, pool.getconn, pool.putconn
    if name == "psycopg_pool":
        from psycopg_pool import ConnectionPool

        pool = ConnectionPool(dsn, min_size=0, max_size=SIZE, timeout=1, open=True)
        return pool.connection, pool.getconn, pool.putconn
    if name == "queuepool":
        from sqlalchemy.pool import QueuePool

        pool = QueuePool(lambda: psycopg2.connect(dsn), pool_size=SIZE, max_overflow=0, timeout=1)
        get, put = pool.connect, lambda conn: conn.close()
    else:
        from django_db_geventpool.backends.pool import DatabaseConnectionPool

        class Pool(DatabaseConnectionPool):
            DBERROR = psycopg2.DatabaseError

            def create_connection(self):
                return psycopg2.connect(dsn)

            def check_usable(self, conn):
                with conn.cursor() as cur:
                    cur.execute("SELECT 1")

        pool = Pool(maxsize=SIZE, reuse=SIZE)
        get, put = pool.get, pool.put

    @contextlib.contextmanager
    def block():
        conn = get()
        try:
            yield conn
            conn.commit()
        except BaseException:
            conn.rollback()
            raise
        finally:
            put(conn)

    return block, get, put


def measure(name, dsn):
    from gevent import monkey

    monkey.patch_all()
    import gevent
    import psycopg2

    if name == "greenpg":
        import greenpg

        greenpg.patch()
    elif name != "psycopg_pool":
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
    admin = psycopg2.connect(dsn)
    admin.autocommit = True
    runs = iter(range(1000))

    def fresh():
        application = f"{name}-{next(runs)}"
        return application, open_pool(name, f"{dsn} application_name={application}")

    def ask(query, application):
        with admin.cursor() as cur:
            cur.execute(query + " FROM pg_stat_activity WHERE application_name = %s", (application,))
            return cur.fetchone()[0]

    def use(block, sql):
        with block() as conn:
            conn.cursor().execute(sql)

    def quietly(function, *args):
        try:
            return function(*args) or True
        except Exception:
            return None

    def left(get):
        """How many connections can be had at once."""
        held = []
        with contextlib.suppress(Exception, gevent.Timeout):
            while len(held) < SIZE:
                with gevent.Timeout(3):
                    held.append(get())
                    held[-1].cursor().execute("SELECT 1")
        return len(held)

    found = {}

    application, (block, get, put) = fresh()
    tasks = [gevent.spawn(quietly, use, block, "SELECT pg_sleep(0.05)") for _ in range(50)]
    most = 0
    while not all(task.ready() for task in tasks):
        most = max(most, ask("SELECT count(*)", application))
        gevent.sleep(0.002)
    found["limit"] = most

    application, (block, get, put) = fresh()

    def time_out():
        with contextlib.suppress(gevent.Timeout, Exception), gevent.Timeout(0.2):
            use(block, "SELECT pg_sleep(2)")

    gevent.joinall([gevent.spawn(quietly, use, block, "SELECT pg_sleep(0.05)") for _ in range(SIZE)])
    before = set(ask("SELECT array_agg(pid)", application) or [])
    gevent.joinall([gevent.spawn(time_out) for _ in range(SIZE)])
    gevent.sleep(0.3)
    found["running"] = ask("SELECT count(*) FILTER (WHERE state = 'active')", application)
    gevent.sleep(2)
    found["kept"] = len(before & set(ask("SELECT array_agg(pid)", application) or []))

    application, (block, get, put) = fresh()
    chance = random.Random(1)
    for _ in range(10):
        tasks = [gevent.spawn(quietly, use, block, "SELECT pg_sleep(0.005)") for _ in range(30)]
        for task in tasks:
            gevent.spawn_later(chance.uniform(0, 0.04), task.kill)
        gevent.joinall(tasks, timeout=20)
    gevent.sleep(1)
    found["left"] = left(get)

    application, (block, get, put) = fresh()
    gevent.joinall([gevent.spawn(quietly, use, block, "SELECT pg_sleep(0.1)") for _ in range(SIZE)])
    ask("SELECT count(pg_terminate_backend(pid))", application)
    gevent.sleep(0.2)
    found["errors"] = [quietly(use, block, "SELECT 1") for _ in range(20)].count(None)

    application, (block, get, put) = fresh()

    def forget():
        get().cursor().execute("SELECT 1")

    gevent.joinall([gevent.spawn(quietly, forget) for _ in range(SIZE)])
    gevent.sleep(0.3)
    found["forgotten"] = left(get)
    return found


# -- asyncio


def measure_asyncpg(dsn):
    import asyncio

    return asyncio.run(_measure_asyncpg(dsn))


async def _measure_asyncpg(dsn):
    import asyncio

    import asyncpg
    from psycopg2.extensions import parse_dsn

    where = parse_dsn(dsn)
    where = {"host": where["host"], "port": where["port"], "user": where["user"], "database": where["dbname"]}
    admin = await asyncpg.connect(**where)
    runs = iter(range(1000))

    async def fresh():
        application = f"asyncpg-{next(runs)}"
        settings = {"application_name": application}
        pool = await asyncpg.create_pool(**where, min_size=0, max_size=SIZE, server_settings=settings)
        return application, pool

    async def ask(query, application):
        return await admin.fetchval(query + " FROM pg_stat_activity WHERE application_name = $1", application)

    async def use(pool, sql):
        async with pool.acquire(timeout=1) as conn, conn.transaction():
            await conn.execute(sql)

    async def quietly(awaited):
        try:
            await awaited
        except Exception:
            return None
        return True

    async def left(pool):
        held = []
        with contextlib.suppress(Exception):
            while len(held) < SIZE:
                held.append(await pool.acquire(timeout=3))
                await held[-1].execute("SELECT 1")
        return len(held)

    found = {}
    application, pool = await fresh()
    tasks = [asyncio.ensure_future(quietly(use(pool, "SELECT pg_sleep(0.05)"))) for _ in range(50)]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, await ask("SELECT count(*)", application))
        await asyncio.sleep(0.002)
    found["limit"] = most

    application, pool = await fresh()
    await asyncio.gather(*[quietly(use(pool, "SELECT pg_sleep(0.05)")) for _ in range(SIZE)])
    before = set(await ask("SELECT array_agg(pid)", application) or [])
    await asyncio.gather(*[quietly(asyncio.wait_for(use(pool, "SELECT pg_sleep(2)"), 0.2)) for _ in range(SIZE)])
    await asyncio.sleep(0.3)
    found["running"] = await ask("SELECT count(*) FILTER (WHERE state = 'active')", application)
    await asyncio.sleep(2)
    found["kept"] = len(before & set(await ask("SELECT array_agg(pid)", application) or []))

    application, pool = await fresh()
    chance = random.Random(1)
    for _ in range(10):
        tasks = [asyncio.ensure_future(quietly(use(pool, "SELECT pg_sleep(0.005)"))) for _ in range(30)]
        for task in tasks:
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.04), task.cancel)
        await asyncio.wait(tasks, timeout=20)
    await asyncio.sleep(1)
    found["left"] = await left(pool)

    application, pool = await fresh()
    await asyncio.gather(*[quietly(use(pool, "SELECT pg_sleep(0.1)")) for _ in range(SIZE)])
    await ask("SELECT count(pg_terminate_backend(pid))", application)
    await asyncio.sleep(0.2)
    found["errors"] = [await quietly(use(pool, "SELECT 1")) for _ in range(20)].count(None)

    application, pool = await fresh()

    async def forget():
        await (await pool.acquire()).execute("SELECT 1")

    await asyncio.gather(*[quietly(asyncio.ensure_future(forget())) for _ in range(SIZE)])
    await asyncio.sleep(0.3)
    found["forgotten"] = await left(pool)
    return found


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"({time.monotonic() - started:.0f} s)", file=sys.stderr)
