"""A server restart under load: 100 tasks on 10 connections, each in a loop of transactions of one statement.

    python benchmarks/recovery.py [--rounds 5] [--peers greenpg,psycogreen] [--quick]

Each peer has a server of its own, which it restarts as after a crash (`immediate`).
"""

import sys
import time
from contextlib import contextmanager
from functools import partial

from harness import Bars, Benchmark, CantRun
from peers import base, open_pool

CONNECTIONS, TASKS = 10, 100
BEFORE_SECONDS = 0.5
RESTART = f"{TASKS} tasks on {CONNECTIONS} connections"
CALM_SECONDS = 0.5
"""What is seen of a peer after it is whole again."""
RETRY_SECONDS = 0.01
"""What a task waits after an error: those who repeat at once would fail thousands of times meanwhile."""


@contextmanager
def no_target(dsn):
    if dsn is not None:
        raise CantRun("this restarts its servers, which are its own: give no connection string")
    yield None


class Record:
    """What became of the requests, and when."""

    def __init__(self):
        self.successes = []  # (time, backend)
        self.failures = []
        self.is_over = False

    def numbers(self, up_at):
        """`up_at`: when the server took connections again. A metric is left away where that was never."""
        after = [(at, backend) for at, backend in self.successes if at >= up_at]
        found = {
            "failed": len(self.failures),
            "failed_after": sum(at >= up_at for at in self.failures),
            "connections": len({backend for at, backend in after if at >= after[-1][0] - CALM_SECONDS}),
        }
        if after:
            found["first_ms"] = (after[0][0] - up_at) * 1e3
        whole_at = self.whole_at(up_at)
        if whole_at is not None:
            found["whole_ms"] = (whole_at - up_at) * 1e3
        return found

    def whole_at(self, up_at):
        """When as many connections as before had served a request of a task."""
        backends = set()
        for at, backend in self.successes:
            if at >= up_at:
                backends.add(backend)
                if len(backends) == CONNECTIONS:
                    return at
        return None

    def check_undisturbed(self):
        if self.failures or not self.successes:
            raise AssertionError(f"{len(self.failures)} requests failed before the restart")

    def note_success(self, row):
        self.successes.append((time.monotonic(), row[0]))

    def note_failure(self):
        self.failures.append(time.monotonic())


def select_backends():
    """The peers take their statement from there when they are imported: this one tells the connections apart."""
    base.SELECT = "SELECT pg_backend_pid()"


def measure_green(name, target, sizes):
    from gevent import monkey

    monkey.patch_all()
    import gevent

    from greenpg import embedded

    record = Record()

    def task():
        while not record.is_over:
            try:
                record.note_success(pool.one_transaction())
            except Exception:
                record.note_failure()
                gevent.sleep(RETRY_SECONDS)

    select_backends()
    with embedded.Server() as server, open_pool(name, server.dsn, CONNECTIONS) as pool:
        tasks = [gevent.spawn(task) for _ in range(TASKS)]
        try:
            gevent.sleep(BEFORE_SECONDS)
            record.check_undisturbed()
            server.restart("immediate")
            up_at = time.monotonic()
            while time.monotonic() < up_at + sizes["seconds"] and record.whole_at(up_at) is None:
                gevent.sleep(0.05)
            gevent.sleep(CALM_SECONDS)
            found = record.numbers(up_at)
        finally:
            record.is_over = True
            gevent.killall(tasks)
    return {RESTART: found}


def measure_asyncpg(name, target, sizes):
    import asyncio

    from greenpg import embedded

    record = Record()

    async def task(pool):
        while not record.is_over:
            try:
                record.note_success(await pool.one_transaction())
            except Exception:
                record.note_failure()
                await asyncio.sleep(RETRY_SECONDS)

    async def run(pool, server):
        tasks = [asyncio.ensure_future(task(pool)) for _ in range(TASKS)]
        await asyncio.sleep(BEFORE_SECONDS)
        record.check_undisturbed()
        await asyncio.to_thread(server.restart, "immediate")
        up_at = time.monotonic()
        while time.monotonic() < up_at + sizes["seconds"] and record.whole_at(up_at) is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(CALM_SECONDS)
        found = record.numbers(up_at)
        record.is_over = True
        await asyncio.gather(*tasks)
        return found

    select_backends()
    with embedded.Server() as server, open_pool(name, server.dsn, CONNECTIONS) as pool:
        return {RESTART: pool.run(run(pool, server))}


BENCHMARK = Benchmark(
    __file__,
    title="A server restart under load",
    description=(
        f"{TASKS} tasks run transactions of one statement on {CONNECTIONS} connections; the server is restarted as "
        f"after a crash. A task whose request failed pauses for {RETRY_SECONDS * 1e3:g} ms. The times are counted from "
        "when the server takes connections again: until a request succeeds, and until as many connections as before "
        "serve requests; there is none where that had not come after 3 s (`--seconds`). The connections are those that "
        f"served requests in the last {CALM_SECONDS:g} s."
    ),
    peers={
        **{
            name: partial(measure_green, name)
            for name in ("greenpg", "psycopg_pool", "psycogreen", "sqlalchemy-pre-ping", "django-db-geventpool")
        },
        "asyncpg-uvloop": partial(measure_asyncpg, "asyncpg-uvloop"),
    },
    sizes={"seconds": 3},
    quick_sizes={"seconds": 2},
    target=no_target,
    pictures=[
        Bars("failed", "failed", [RESTART], "Requests that a restart makes fail", is_log=True),
        Bars("whole", "whole_ms", [RESTART], "Until all connections work again", is_log=True),
    ],
    timeout=60.0,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
