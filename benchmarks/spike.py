"""A spike: 50 requests at once, `SELECT pg_sleep(0.01)` each, on a pool with min 5 and max 50, where connecting takes
150 ms. How long until all are served, and how many connections does the pool open for it?

    python benchmarks/spike.py [DSN] [--rounds 5] [--peers greenpg,psycopg_pool]

Through a proxy of our own (delay_proxy.py) that is slow with new connections; a DSN has to be one of TCP, of a
database that nobody else connects to meanwhile, on PostgreSQL 14 or later, which counts sessions.
"""

import os
import sys
import time
from contextlib import closing, contextmanager
from functools import partial

from delayed_server import DIRECT, behind_proxies
from harness import Bars, Benchmark
from peers.base import Clock

MIN_SIZE, MAX_SIZE, CONNECT_MS = 5, 50, 150
SETTLE_SECONDS = 2 * CONNECT_MS / 1000  # for what is still being opened when all have been served
SLOW = "slow to connect"
STATEMENT = "SELECT pg_sleep(0.01)"


# Each gives the function that serves one request, in autocommit. A pool that opens nothing by itself opens the first
# MIN_SIZE in the warm-up.


@contextmanager
def greenpg_pool(dsn):
    import greenpg

    greenpg.patch()
    with greenpg.ConnectionPool(dsn, min_size=MIN_SIZE, max_size=MAX_SIZE) as pool:
        pool.wait()
        yield lambda: pool.fetchone(STATEMENT)


@contextmanager
def psycopg_pool(dsn):
    from psycopg_pool import ConnectionPool

    def request():
        with pool.connection() as conn:
            conn.execute(STATEMENT).fetchone()

    with ConnectionPool(dsn, min_size=MIN_SIZE, max_size=MAX_SIZE, kwargs={"autocommit": True}) as pool:
        pool.wait()
        yield request


@contextmanager
def sqlalchemy_pool(dsn):
    import psycopg2
    from psycogreen.gevent import patch_psycopg
    from sqlalchemy import create_engine, text

    def request():
        with engine.connect() as conn:
            conn.execute(statement).fetchone()

    patch_psycopg()
    statement = text(STATEMENT)
    engine = create_engine(
        "postgresql+psycopg2://",
        creator=lambda: psycopg2.connect(dsn),
        isolation_level="AUTOCOMMIT",
        pool_size=MIN_SIZE,
        max_overflow=MAX_SIZE - MIN_SIZE,
    )
    yield request
    engine.dispose()


@contextmanager
def django_geventpool(dsn):
    import psycopg2
    from django_db_geventpool.backends.postgresql_psycopg2.base import PostgresConnectionPool
    from psycogreen.gevent import patch_psycopg

    def connect(**parameters):
        conn = psycopg2.connect(**parameters)
        conn.autocommit = True
        return conn

    def request():
        conn = pool.get()
        try:
            with conn.cursor() as cur:
                cur.execute(STATEMENT)
                cur.fetchone()
        finally:
            pool.put(conn)

    patch_psycopg()
    with closing(PostgresConnectionPool(connect=connect, dsn=dsn, MAX_CONNS=MAX_SIZE)) as pool:
        yield request


def measure_green(open_pool, dsns, sizes):
    from gevent import monkey

    monkey.patch_all()
    import gevent

    latencies = []

    def timed_request():
        start = time.perf_counter()
        request()
        latencies.append(time.perf_counter() - start)

    with closing(Connections(dsns[DIRECT])) as connections:
        with open_pool(marked(dsns[SLOW])) as request:
            gevent.joinall([gevent.spawn(request) for _ in range(MIN_SIZE)], raise_error=True)
            tasks = [gevent.spawn(timed_request) for _ in range(sizes["requests"])]
            with Clock() as clock:
                gevent.joinall(tasks, raise_error=True)
            gevent.sleep(SETTLE_SECONDS)
            left = connections.left()
        return numbers(clock, latencies) | {"connections_opened": connections.opened(), "connections_left": left}


def asyncpg_pool(dsns, sizes):
    import uvloop

    return uvloop.run(measure_asyncpg(dsns, sizes))


async def measure_asyncpg(dsns, sizes):
    import asyncio

    import asyncpg
    from peers.asyncpg_pool import address

    latencies = []

    async def timed_request():
        start = time.perf_counter()
        await pool.fetchrow(STATEMENT)
        latencies.append(time.perf_counter() - start)

    options = {"min_size": MIN_SIZE, "max_size": MAX_SIZE, "server_settings": {"application_name": application_name()}}
    with closing(Connections(dsns[DIRECT])) as connections:
        async with asyncpg.create_pool(**address(dsns[SLOW]), **options) as pool:
            await asyncio.gather(*(pool.fetchrow(STATEMENT) for _ in range(MIN_SIZE)))
            tasks = [asyncio.ensure_future(timed_request()) for _ in range(sizes["requests"])]
            with Clock() as clock:
                await asyncio.gather(*tasks)
            await asyncio.sleep(SETTLE_SECONDS)
            left = connections.left()
        return numbers(clock, latencies) | {"connections_opened": connections.opened(), "connections_left": left}


# -- what all have in common


def numbers(clock, latencies):
    measured = clock.numbers(latencies)
    # p99 of 50 requests is the longest.
    return {"drain_ms": clock.seconds * 1e3} | {metric: measured[metric] for metric in ("p50_ms", "max_ms")}


def application_name():
    return f"spike {os.getpid()}"


def marked(dsn):
    from psycopg2.extensions import make_dsn

    return make_dsn(dsn, application_name=application_name())


class Connections:
    """The pool's connections, as the server counts them. Made before the pool."""

    def __init__(self, dsn):
        from psycopg2 import extensions

        self._conn = extensions.connection(dsn)  # the class, since greenpg replaces connect()
        self._conn.autocommit = True
        self._sessions_before = self._sessions()

    def left(self):
        return self._ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", application_name())

    def opened(self):
        """To be called when the pool is closed: only at its end a session is sure to have been counted."""
        while self.left():
            time.sleep(0.01)
        return self._sessions() - self._sessions_before

    def _sessions(self):
        return self._ask("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")

    def _ask(self, sql, *args):
        with self._conn.cursor() as cur:
            cur.execute(sql, args)
            return cur.fetchone()[0]

    def close(self):
        self._conn.close()


BENCHMARK = Benchmark(
    __file__,
    title="A spike",
    description=(
        f"50 requests at once, `{STATEMENT}` in autocommit each, on a pool with {MIN_SIZE} open connections that may "
        f"grow to {MAX_SIZE}, through a proxy that holds each new connection back by {CONNECT_MS} ms. Five connections "
        "serve all in 100 ms, and a little; a pool that makes each request wait for a connection of its own takes "
        "longer, and opens nearly ten times as many. The server says how many connections were opened in all, the "
        f"first {MIN_SIZE} among them, and how many there are shortly afterwards. The pools of the other benchmarks "
        "that can't grow are left out: gevent's example and psycopg2 in threads open all at the start."
    ),
    peers={
        "greenpg": partial(measure_green, greenpg_pool),
        "psycopg_pool": partial(measure_green, psycopg_pool),
        "sqlalchemy": partial(measure_green, sqlalchemy_pool),
        "django-db-geventpool": partial(measure_green, django_geventpool),
        "asyncpg-uvloop": asyncpg_pool,
    },
    sizes={"requests": 50},
    quick_sizes={"requests": 20},
    target=partial(behind_proxies, {SLOW: {"delay_ms": 0, "connect_delay_ms": CONNECT_MS}}),
    pictures=[
        Bars("drain", "drain_ms", ["spike"], "50 requests at once, 5 connections, 150 ms to connect"),
        Bars("connections", "connections_opened", ["spike"], "Connections opened for 50 requests at once"),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
