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
        for name, label in PEERS.items():
            command = [sys.executable, __file__, name, dsn]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                print(f"{label} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            else:
                results[name] = json.loads(done.stdout.splitlines()[-1])
    print("| |", " | ".join(PEERS[name] for name in results), "|")
    print("|---|" + "---:|" * len(results))
    for key, label in MEASURED.items():
        print(f"| {label} |", " | ".join(str(results[name][key]) for name in results), "|")


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
    import psycopg2

    if name == "greenpg":
        import greenpg

        greenpg.patch()
    elif name != "psycopg_pool":
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
    admin = psycopg2.connect(dsn)
    admin.autocommit = True
    return {key: scenario(Pool(name, dsn, key, admin)) for key, scenario in SCENARIOS.items()}


class Pool:
    """A new pool, and what the server says of its connections."""

    def __init__(self, name, dsn, application, admin):
        self._application = f"{name}-{application}"
        self._admin = admin
        self._block, self._get, _ = open_pool(name, f"{dsn} application_name={self._application}")

    def ask(self, what):
        with self._admin.cursor() as cur:
            cur.execute(f"SELECT {what} FROM pg_stat_activity WHERE application_name = %s", (self._application,))
            return cur.fetchone()[0]

    def processes(self):
        return set(self.ask("array_agg(pid)") or [])

    def use(self, sql):
        """Whether it went well."""
        try:
            with self._block() as conn:
                conn.cursor().execute(sql)
        except Exception:
            return False
        return True

    def all_use(self, count, sql):
        import gevent

        tasks = [gevent.spawn(self.use, sql) for _ in range(count)]
        gevent.joinall(tasks, timeout=20)

    def forget(self):
        self._get().cursor().execute("SELECT 1")

    def left(self):
        """How many connections can be had at once."""
        import gevent

        held = []
        with contextlib.suppress(Exception, gevent.Timeout):
            while len(held) < SIZE:
                with gevent.Timeout(3):
                    held.append(self._get())
                    held[-1].cursor().execute("SELECT 1")
        return len(held)


def most_connections(pool):
    import gevent

    tasks = [gevent.spawn(pool.use, "SELECT pg_sleep(0.05)") for _ in range(50)]
    most = 0
    while not all(task.ready() for task in tasks):
        most = max(most, pool.ask("count(*)"))
        gevent.sleep(0.002)
    return most


def _time_out_all(pool):
    import gevent

    def time_out():
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(0.2):
            pool.use("SELECT pg_sleep(2)")

    gevent.joinall([gevent.spawn(time_out) for _ in range(SIZE)])
    gevent.sleep(0.3)


def running_on(pool):
    _time_out_all(pool)
    return pool.ask("count(*) FILTER (WHERE state = 'active')")


def kept(pool):
    import gevent

    pool.all_use(SIZE, "SELECT pg_sleep(0.05)")
    before = pool.processes()
    _time_out_all(pool)
    gevent.sleep(2)
    return len(before & pool.processes())


def left_after_kills(pool):
    import gevent

    chance = random.Random(1)
    for _ in range(10):
        tasks = [gevent.spawn(pool.use, "SELECT pg_sleep(0.005)") for _ in range(30)]
        for task in tasks:
            gevent.spawn_later(chance.uniform(0, 0.04), task.kill)
        gevent.joinall(tasks, timeout=20)
    gevent.sleep(1)
    return pool.left()


def errors(pool):
    import gevent

    pool.all_use(SIZE, "SELECT pg_sleep(0.1)")
    pool.ask("count(pg_terminate_backend(pid))")
    gevent.sleep(0.2)
    return [pool.use("SELECT 1") for _ in range(20)].count(False)


def left_after_forgetting(pool):
    import gevent

    gevent.joinall([gevent.spawn(pool.forget) for _ in range(SIZE)])
    gevent.sleep(0.3)
    return pool.left()


SCENARIOS = {
    "limit": most_connections,
    "running": running_on,
    "kept": kept,
    "left": left_after_kills,
    "errors": errors,
    "forgotten": left_after_forgetting,
}


# -- asyncio


def measure_asyncpg(dsn):
    import asyncio

    return asyncio.run(_measure_asyncpg(dsn))


async def _measure_asyncpg(dsn):
    import asyncpg
    from psycopg2.extensions import parse_dsn

    where = parse_dsn(dsn)
    where = {"host": where["host"], "port": where["port"], "user": where["user"], "database": where["dbname"]}
    admin = await asyncpg.connect(**where)
    found = {}
    for key, scenario in ASYNC_SCENARIOS.items():
        settings = {"application_name": f"asyncpg-{key}"}
        pool = await asyncpg.create_pool(**where, min_size=0, max_size=SIZE, server_settings=settings)
        found[key] = await scenario(AsyncPool(pool, f"asyncpg-{key}", admin))
    return found


class AsyncPool:
    """As `Pool`."""

    def __init__(self, pool, application, admin):
        self._pool = pool
        self._application = application
        self._admin = admin

    async def ask(self, what):
        query = f"SELECT {what} FROM pg_stat_activity WHERE application_name = $1"
        return await self._admin.fetchval(query, self._application)

    async def processes(self):
        return set(await self.ask("array_agg(pid)") or [])

    async def use(self, sql):
        try:
            async with self._pool.acquire(timeout=1) as conn, conn.transaction():
                await conn.execute(sql)
        except Exception:
            return False
        return True

    async def all_use(self, count, sql):
        import asyncio

        await asyncio.gather(*[self.use(sql) for _ in range(count)])

    async def forget(self):
        await (await self._pool.acquire()).execute("SELECT 1")

    async def left(self):
        held = []
        with contextlib.suppress(Exception):
            while len(held) < SIZE:
                held.append(await self._pool.acquire(timeout=3))
                await held[-1].execute("SELECT 1")
        return len(held)


async def most_connections_async(pool):
    import asyncio

    tasks = [asyncio.ensure_future(pool.use("SELECT pg_sleep(0.05)")) for _ in range(50)]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, await pool.ask("count(*)"))
        await asyncio.sleep(0.002)
    return most


async def _time_out_all_async(pool):
    import asyncio

    async def time_out():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(pool.use("SELECT pg_sleep(2)"), 0.2)

    await asyncio.gather(*[time_out() for _ in range(SIZE)])
    await asyncio.sleep(0.3)


async def running_on_async(pool):
    await _time_out_all_async(pool)
    return await pool.ask("count(*) FILTER (WHERE state = 'active')")


async def kept_async(pool):
    import asyncio

    await pool.all_use(SIZE, "SELECT pg_sleep(0.05)")
    before = await pool.processes()
    await _time_out_all_async(pool)
    await asyncio.sleep(2)
    return len(before & await pool.processes())


async def left_after_kills_async(pool):
    import asyncio

    chance = random.Random(1)
    for _ in range(10):
        tasks = [asyncio.ensure_future(pool.use("SELECT pg_sleep(0.005)")) for _ in range(30)]
        for task in tasks:
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.04), task.cancel)
        await asyncio.wait(tasks, timeout=20)
    await asyncio.sleep(1)
    return await pool.left()


async def errors_async(pool):
    import asyncio

    await pool.all_use(SIZE, "SELECT pg_sleep(0.1)")
    await pool.ask("count(pg_terminate_backend(pid))")
    await asyncio.sleep(0.2)
    return [await pool.use("SELECT 1") for _ in range(20)].count(False)


async def left_after_forgetting_async(pool):
    import asyncio

    await asyncio.gather(*[asyncio.ensure_future(pool.forget()) for _ in range(SIZE)])
    await asyncio.sleep(0.3)
    return await pool.left()


ASYNC_SCENARIOS = {
    "limit": most_connections_async,
    "running": running_on_async,
    "kept": kept_async,
    "left": left_after_kills_async,
    "errors": errors_async,
    "forgotten": left_after_forgetting_async,
}


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"({time.monotonic() - started:.0f} s)", file=sys.stderr)
