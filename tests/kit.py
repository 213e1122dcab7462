"""What the tests share: tasks of whatever hub they run on, and the guard against a blocked hub."""

from __future__ import annotations

import time

import pytest
from psycopg2 import extensions

import greenpg
from greenpg.driver import driver_status
from greenpg.hubs import hub

#: For tests that count round trips, or show what rides.
needs_riding = pytest.mark.skipif(driver_status.reason is not None, reason=str(driver_status.reason))

#: The test is for both kinds of pools: with the second, `make_pool` takes `min_size` for `max_size`.
either_pool = pytest.mark.parametrize("pool_class", [greenpg.ConnectionPool, greenpg.NullConnectionPool])


class Killed(BaseException):
    """Thrown into a task, as a kill is."""


class Task:
    """A spawned function whose result, or exception, can be asked for."""

    def __init__(self, function, *args):
        self.value = None
        self.error = None
        self.native = None  # greenlet or thread, once it runs
        self._done = hub().event()
        hub().spawn(self._run, function, args)

    def _run(self, function, args):
        self.native = hub().current()
        try:
            self.value = function(*args)
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

    @property
    def is_over(self):
        return self._done.value is not None

    def join(self, timeout=30.0):
        assert self._done.wait(time.monotonic() + timeout), "the task doesn't end"

    def result(self, timeout=30.0):
        self.join(timeout)
        if self.error is not None:
            raise self.error
        return self.value

    def throw(self, exception):
        """Throw an exception into the task, soon, wherever it is suspended. Not for native threads.

        A task that has not begun is left alone.
        """
        if self.native is None:
            return
        if hub().name == "gevent":
            import gevent

            gevent.kill(self.native, exception)
        else:
            import eventlet

            eventlet.hubs.get_hub().schedule_call_global(0, self.native.throw, exception)


def run_all(functions, timeout=60.0):
    """Run the functions in tasks of their own; their results, in order. The first exception is raised."""
    tasks = [Task(function) for function in functions]
    return [task.result(timeout) for task in tasks]


def wait_until(condition, timeout=10.0):
    """Suspend until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {condition}"
        hub().sleep(0.005)


def lent(pool):
    """How many connections the pool has lent."""
    return pool._core.ledger.lent_count


def psycopg2s_executemany(cur, query, rows):
    """psycopg2's own executemany()."""
    cur.connection._gate.call = "executemany"
    try:
        extensions.cursor.executemany(cur, query, rows)
    finally:
        cur.connection._gate.call = None


def statements_running(admin):
    """What the server is doing for the fixture `conn`, and connections whose application_name begins like its."""
    with admin.cursor() as cur:
        cur.execute("SELECT query FROM pg_stat_activity WHERE application_name LIKE 'tested%' AND state = 'active'")
        return cur.fetchall()


def usable(conn):
    """The connection works, and the server is not busy with anything else of it."""
    assert conn.closed == 0
    conn.rollback()
    with conn.cursor() as cur:
        cur.execute("SELECT 42")
        assert cur.fetchone() == (42,)
    conn.rollback()
    return True


class CheckingMutex:
    """A pool's mutex that checks the pool's invariants each time it is released."""

    def __init__(self, mutex, check):
        self._mutex = mutex
        self._check = check

    def acquire(self):
        return self._mutex.acquire()

    def release(self):
        try:
            self._check()
        finally:
            self._mutex.release()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *exc_info):
        if exc_info == (None, None, None):
            self.release()
        else:
            self._mutex.release()


def seconds_busy():
    """Of this native thread: how long it has run, and how long it wanted to but had no processor."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            running, waiting, _ = file.read().split()
    except OSError:
        return time.thread_time()
    return (int(running) + int(waiting)) / 1e9


class Guard:
    """Notes when the hub was blocked: a heartbeat task came late, while the thread had the machine to itself.

    Late because the test computes, or because the machine does, is not blocked: then the thread's busy time has moved,
    or a native thread that does nothing but beat came late too.
    """

    LIMIT = 0.050
    BEAT = 0.005

    def __init__(self):
        self.stalls = []
        self.worst = 0.0
        self._stop = False
        self._machine_stalls = []

    def __enter__(self):
        self._hub = hub()  # which stays the test's, also while it has taken the patch away
        self._natives = self._hub._natives
        self._natives.spawn(self._watch_machine)
        self._heart = Task(self._beat)
        return self

    def __exit__(self, *exc_info):
        self._stop = True
        self._heart.join()

    def _beat(self):
        while not self._stop:
            before, busy_before = time.monotonic(), seconds_busy()
            self._hub.sleep(self.BEAT)
            after, cpu = time.monotonic(), seconds_busy() - busy_before
            late = after - before - self.BEAT
            self.worst = max(self.worst, late)
            if late > self.LIMIT and cpu < late / 2 and not self._machine_was_busy(before, after):
                self.stalls.append(late)

    def _watch_machine(self):
        while not self._stop:
            before = time.monotonic()
            self._natives.sleep(self.BEAT)
            if time.monotonic() - before > 4 * self.BEAT:
                self._machine_stalls.append((before, time.monotonic()))

    def _machine_was_busy(self, start, end):
        # The native thread may be a moment behind with its note.
        self._natives.sleep(2 * self.BEAT)
        return any(stalled < end and start < over for stalled, over in self._machine_stalls)


def is_waiting(conn):
    """Whether somebody is inside the connection: a task that waits for the server, or a COPY's block."""
    return conn._gate.owner is not conn._gate.free
