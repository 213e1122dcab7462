"""The client's memory: what a task costs that waits for a connection, and what an idle connection costs.

    python benchmarks/memory.py [DSN] [--rounds 5] [--peers greenpg,psycogreen] [--quick]

On Linux only: it reads /proc. The server needs room for 130 connections.
"""

import gc
import os
import sys
from functools import partial
from pathlib import Path

from harness import Aim, Bars, Benchmark
from peers import base, open_pool

CONNECTIONS, IDLE = 10, 50
SETTLE_SECONDS = 0.03
"""Long enough for what a pool does a moment later with those who wait."""
KEPT = []
"""What ends with the process only: memory that is freed before is used again, and that would not be seen."""
BARE = "psycopg2-connections"
LOCK = 7_203_841
WAITING, KEEPING = f"tasks that wait for {CONNECTIONS} connections", f"{IDLE} idle connections"


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_kept(name, dsn, size):
    KEPT.append(open_pool(name, dsn, size))
    return KEPT[-1].__enter__()


class Observer:
    """A connection of its own, that counts the others, and can make all their statements wait for a lock."""

    def __init__(self, dsn):
        import psycopg2

        self._conn = psycopg2.connect(dsn)
        self._conn.autocommit = True
        self._cursor = self._conn.cursor()

    def count(self):
        self._cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        return self._cursor.fetchone()[0]

    def hold_up(self):
        """Until this is gone."""
        self._cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))


class Greenlets:
    def __init__(self, pool):
        from gevent.event import Event

        self._wait, self._pool, self._tasks = Event().wait, pool, []

    def add_bare(self, number):
        """As many that wait for an event."""
        self._start(self._wait, number)

    def add_waiting(self, number):
        self._start(self._pool.one_transaction, number)

    def _start(self, function, number):
        import gevent

        self._tasks += [gevent.spawn(function) for _ in range(number)]
        gevent.sleep(0)  # all of them run until they wait
        gevent.sleep(SETTLE_SECONDS)
        assert not any(task.ready() for task in self._tasks), "a task did not wait"


class AsyncioTasks:
    def __init__(self, pool):
        import asyncio

        self._wait, self._pool, self._tasks = asyncio.Event().wait, pool, []

    def add_bare(self, number):
        self._pool.run(self._start(self._wait, number))

    def add_waiting(self, number):
        self._pool.run(self._start(self._pool.one_transaction, number))

    async def _start(self, function, number):
        import asyncio

        self._tasks += [asyncio.ensure_future(function()) for _ in range(number)]
        await asyncio.sleep(0)
        await asyncio.sleep(SETTLE_SECONDS)
        assert not any(task.done() for task in self._tasks), "a task did not wait"


def measure(make_tasks, name, dsn, sizes):
    base.SELECT = f"SELECT count(pg_advisory_xact_lock_shared({LOCK}))"  # before the peer is imported
    warm_up = open_kept(name, dsn, 2)
    warm_up.measure("one_transaction", 10, 2)
    observer = Observer(dsn)
    connection = idle_connection(name, dsn, observer)

    pool = open_kept(name, dsn, CONNECTIONS)
    observer.hold_up()
    tasks, number, bare_number = make_tasks(pool), sizes["tasks"], sizes["tasks"] // 4
    KEPT.extend([observer, tasks])
    tasks.add_bare(number)  # what starting them needs for a moment is there from now on
    start = resident_bytes()
    tasks.add_bare(bare_number)
    between = resident_bytes()
    tasks.add_waiting(number)
    bare, waiting = (between - start) / bare_number, (resident_bytes() - between) / number
    return {
        WAITING: {"waiter_kib": (waiting - bare) / 1024, "task_kib": bare / 1024},
        KEEPING: {"connection_kib": connection / 1024},
    }


def idle_connection(name, dsn, observer):
    before, start = observer.count(), resident_bytes()
    pool = open_kept(name, dsn, IDLE)
    pool.measure("one_transaction", IDLE, 2)
    return (resident_bytes() - start) / (observer.count() - before)


def measure_bare(dsn, sizes):
    import psycopg2

    def connect():
        conn = psycopg2.connect(dsn)
        KEPT.append(conn)
        with conn, conn.cursor() as cursor:
            cursor.execute(base.SELECT)

    connect()
    start = resident_bytes()
    for _ in range(IDLE):
        connect()
    return {KEEPING: {"connection_kib": (resident_bytes() - start) / IDLE / 1024}}


BENCHMARK = Benchmark(
    __file__,
    title="The client's memory",
    description=(
        "What each of 10,000 tasks that wait for a connection adds to the resident memory of the process, beyond what "
        "one adds that waits for a bare event, started in the same way just before, in the same process. Each that "
        "waits is about to begin a transaction block of its pool, as an application would. An idle connection is one "
        f"of {IDLE} that were opened and used; how many a pool really has is asked of the server. Before each look the "
        "garbage collector runs, and nothing is freed between them."
    ),
    peers={
        **{
            name: partial(measure, Greenlets, name)
            for name in ("greenpg", "psycogreen", "psycopg_pool", "sqlalchemy", "django-db-geventpool")
        },
        "asyncpg-uvloop": partial(measure, AsyncioTasks, "asyncpg-uvloop"),
        BARE: measure_bare,
    },
    sizes={"tasks": 10_000},
    quick_sizes={"tasks": 2_000},
    pictures=[
        Bars("waiter", "waiter_kib", [WAITING], "What a waiting task costs beyond the task"),
        Bars("connection", "connection_kib", [KEEPING], "What an idle connection costs the client"),
    ],
    aims=[Aim(WAITING, "waiter_kib", at_most=2)],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
