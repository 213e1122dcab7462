"""A hub with a clock of its own, for the pool's logic under thousands of schedules that are reproducible by their seed.

Tasks are greenlets; what is due at the same instant runs in random order; nothing waits in real time. The connections
are simulated as well: this is for the pool's bookkeeping, which doesn't know a server from a stone. Everything that
does is tested on a real one.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import types
import weakref

import greenlet
from psycopg2 import OperationalError, extensions

from greenpg.connection.gate import BusyGate
from greenpg.connection.session_settings import SessionSettings

IDLE = extensions.TRANSACTION_STATUS_IDLE
INTRANS = extensions.TRANSACTION_STATUS_INTRANS
UNKNOWN = extensions.TRANSACTION_STATUS_UNKNOWN


TICK = 0.005


class Killed(BaseException):
    """What is thrown into tasks, as a kill or a timeout would be."""


class SimulatedHub:
    """greenpg.hubs.Hub on a simulated clock."""

    name = "simulated"

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.time = 1000.0
        self.errors = []
        self.tasks = set()
        self._agenda = []
        self._waits = {}  # task -> number of its present wait; a wake-up for an older one is void
        self._loop = None
        self._sequence = 0

    # -- the loop

    def run(self, until=None):
        """Run until nothing is left to do, or up to a point in time."""
        self._loop = greenlet.getcurrent()
        while self._agenda and (until is None or self._agenda[0][0] <= until):
            self.time, _, _, action = heapq.heappop(self._agenda)
            action()
        if until is not None:
            self.time = max(self.time, until)

    def at(self, when, action):
        self._sequence += 1
        when = round(max(when, self.time) / TICK) * TICK  # so that many things are due at the same instant
        heapq.heappush(self._agenda, (when, self.random.random(), self._sequence, action))

    def suspend(self):
        return self._loop.switch()

    def begin_wait(self):
        task = greenlet.getcurrent()
        self._sequence += 1
        self._waits[task] = self._sequence
        return task, self._sequence

    def resume(self, task, wait, value=None):
        if self._waits.get(task) == wait and not task.dead:
            task.switch(value)

    def throw(self, task, exception):
        if not task.dead and task:
            self._waits.pop(task, None)
            task.throw(exception)

    # -- the contract

    def now(self):
        return self.time

    def event(self):
        return SimulatedEvent(self)

    def mutex(self):
        return SimulatedMutex()

    def natives(self):
        return self

    def may_block(self):
        return False

    def sleep(self, seconds):
        task, wait = self.begin_wait()
        self.at(self.time + seconds, lambda: self.resume(task, wait))
        self.suspend()

    def spawn(self, function, *args):
        def run():
            try:
                function(*args)
            except Killed:
                pass
            except BaseException as error:
                self.errors.append(error)
            finally:
                self.tasks.discard(greenlet.getcurrent())

        task = greenlet.greenlet(run, self._loop)
        self.tasks.add(task)
        self.at(self.time, task.switch)
        return task

    def current(self):
        return greenlet.getcurrent()

    def is_readable(self, fd):
        return self.fd_is_readable(fd)

    def fd_is_readable(self, conn):
        return conn.is_dead

    def on_end(self, task, call):
        return None

    def hold(self, task):
        return weakref.ref(task)

    def describe(self, task):
        return "a simulated task"


class SimulatedMutex:
    """Fails if it is taken twice, or held while a task is suspended and another one comes."""

    def __init__(self):
        self._holder = None

    def acquire(self):
        assert self._holder is None, "suspended with the mutex held"
        self._holder = greenlet.getcurrent()
        return True

    def release(self):
        assert self._holder is greenlet.getcurrent()
        self._holder = None

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *exc_info):
        self.release()


class SimulatedEvent:
    def __init__(self, hub):
        self._hub = hub
        self.value = None
        self.on_delay = None
        self._wake = None

    def set(self, value=True):
        self.value = value
        if self._wake is not None:
            task, wait = self._wake
            self._hub.at(self._hub.time, lambda: self._hub.resume(task, wait))

    def wait(self, deadline=None):
        if self.value is not None:
            return True
        if self.on_delay is not None:
            self.on_delay(None)
        task, wait = self._wake = self._hub.begin_wait()
        if deadline is not None:
            self._hub.at(deadline, lambda: self._hub.resume(task, wait))
        try:
            self._hub.suspend()
        finally:
            self._wake = None
        return self.value is not None


class SimulatedServer:
    """Makes connections, slowly, and fails at times. Knows how many are open, and who uses which."""

    def __init__(self, hub, failure_rate=0.0, latency=0.01):
        self.hub = hub
        self.failure_rate = failure_rate
        self.latency = latency
        self.open = set()
        self.most_open = 0

    def connect(self, conninfo, **kwargs):
        self.delay()
        if self.hub.random.random() < self.failure_rate:
            raise OperationalError("the simulated server is down")
        conn = SimulatedConnection(self)
        self.open.add(conn)
        self.most_open = max(self.most_open, len(self.open))
        return conn

    def restart(self):
        """All connections end, and their clients don't know it yet."""
        for conn in self.open:
            conn.is_dead = True

    def say_goodbye(self, conn):
        """As connection/remains.py: what tells when the server's process has ended, None if it has."""
        conn.close()
        return SimulatedRemains(self.hub) if self.hub.random.random() < 0.5 else None

    def delay(self):
        self.hub.sleep(self.hub.random.random() * self.latency)


class SimulatedRemains:
    def __init__(self, hub):
        self._hub = hub

    def when_over(self, call):
        self._hub.at(self._hub.now() + self._hub.random.random() * 0.2, lambda: self._hub.spawn(call))


class SimulatedConnection:
    pgconn_ptr, dsn = None, ""

    @property
    def _driver_status(self):
        return extensions.STATUS_READY if self._status == IDLE else extensions.STATUS_BEGIN

    def __init__(self, server):
        self._server = server
        self._status = IDLE
        self._user = None
        self._lender = None
        self._gate = BusyGate()
        self.closed = 0
        self.is_dead = False
        self._has_altered_settings = self._has_uncertain_settings = self._is_entered = False
        self._blocks, self.notices, self.notifies = [], [], []
        self._last_statement = None
        self.autocommit = False

    def _belongs_to(self, lender):
        self._lender = lender

    def _end_transaction(self, name):
        getattr(self, name)()

    def _settings(self):
        return SessionSettings(*[None] * len(SessionSettings._fields))

    def deadline(self, seconds):
        return contextlib.nullcontext()

    def _attachments(self):
        return None

    def _put_back(self, settings, attachments=None):
        pass

    def fileno(self):
        return self

    def poll(self):
        if self.is_dead:
            self.break_down()
            raise OperationalError("the simulated server has closed the connection")

    @contextlib.contextmanager
    def cursor(self):
        yield types.SimpleNamespace(execute=lambda query: self._call(self._status))

    @property
    def info(self):
        return types.SimpleNamespace(transaction_status=self._status)

    def get_transaction_status(self):
        return self._status

    def execute(self):
        self._call(INTRANS)

    def commit(self):
        if self._status == INTRANS:
            self._call(IDLE)

    rollback = commit

    def _call(self, status_afterwards):
        if self.is_dead:
            self.break_down()
        if self.closed:
            raise OperationalError("connection already closed")
        task = greenlet.getcurrent()
        assert self._user in (None, task), "two tasks use one connection"
        self._user = task
        try:
            self._server.delay()
            self._status = status_afterwards
        except BaseException:
            if self._server.hub.random.random() < 0.5:  # could not be kept
                self.break_down()
            raise
        finally:
            self._user = None

    def break_down(self):
        self.closed = 2
        self._status = UNKNOWN
        self._server.open.discard(self)

    def close(self):
        assert self._user is None, "closed under its user"
        self.closed = 1
        self._status = UNKNOWN
        self._server.open.discard(self)
