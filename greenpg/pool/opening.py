"""Opens a pool's connections, in tasks of the pool's own, so that nobody who waits for one is killed while connecting.

A task holds its pool by a weak reference while it waits: a pool that is forgotten is not kept alive.
"""

from __future__ import annotations

import logging
import random
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from ..connection.connect.connecting import connect
from ..hubs import Event, hub
from .ledger import CLOSED, Slot
from .parameters import for_libpq
from .returning import IDLE_STATUS, close_quietly, status_name

if TYPE_CHECKING:
    from .base import BasePool

logger = logging.getLogger("greenpg.pool")

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 30.0
#: While clients wait, the backoff is no longer than this.
_LONGEST_DELAY_WITH_CLIENTS = 0.25


class Backoff:
    """Of one slot: jittered, doubling, and over `timeout` seconds after the first failure."""

    __slots__ = ("_delay", "_ends_at", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._delay = _FIRST_DELAY / 2
        self._ends_at: float | None = None

    def next_delay(self, now: float) -> float | None:
        """The seconds to wait after a failure, None if it is time to give up."""
        if self._ends_at is None:
            self._ends_at = now + self._timeout
        if now >= self._ends_at:
            return None
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        return min(self._delay * random.uniform(0.9, 1.1), self._ends_at - now)


class Opener:
    """The slots that wait to be opened, and the tasks (at most `num_workers`) that open them.

    Methods marked [mutex] are called with the pool's mutex held. None suspends but the workers' own.
    """

    def __init__(self, pool: BasePool) -> None:
        self._pool = weakref.ref(pool, lambda _: self.wake())
        #: Slots that nobody has begun to open.
        self.queue: deque[Slot] = deque()
        #: Workers that wait before they try again.
        self.resting: set[Event] = set()
        self._last_failure = 0.0
        self._on_idle: list[Event] = []
        self.workers = 0
        #: The text of the last failed attempt, None after a successful one.
        self.last_error: str | None = None

    def enqueue(self, slot: Slot) -> None:
        """[mutex] Open the slot, when `start_workers()` is called."""
        self.queue.append(slot)

    def hurry(self) -> None:
        """[mutex] A client is waiting: let the workers that rest try now, unless they have only just failed."""
        if time.monotonic() - self._last_failure >= _LONGEST_DELAY_WITH_CLIENTS:
            self.wake()

    def wake(self) -> None:
        while self.resting:
            self.resting.pop().set()

    def stop(self, done: Event) -> list[Slot]:
        """[mutex] Returns the slots that nobody has begun to open; sets `done` when the workers have ended."""
        self.wake()
        slots = list(self.queue)
        self.queue.clear()
        if self.workers:
            self._on_idle.append(done)
        else:
            done.set()
        return slots

    def start_workers(self) -> None:
        """Start as many tasks as there is work for. Called without the mutex."""
        pool = self._pool()
        while pool is not None and self.queue:
            with pool._mutex:
                if not self.queue or self.workers >= pool.num_workers:
                    return
                self.workers += 1
            try:
                hub().spawn(_work, self._pool, self)
            except BaseException:
                with pool._mutex:
                    self._end_worker()
                    while self.queue:
                        pool._ledger.remove(self.queue.popleft())
                raise

    # -- the workers' side

    def next_slot(self) -> Slot | None:
        """[mutex] The next slot to open; None: the worker is to end."""
        if self.queue:
            return self.queue.popleft()
        self._end_worker()
        return None

    def _end_worker(self) -> None:
        self.workers -= 1
        while not self.workers and self._on_idle:
            self._on_idle.pop().set()

    def rest_until(self, event: Event, delay: float, clients_wait: bool) -> float:
        """[mutex] The worker is going to wait for the event, until the deadline that is returned."""
        self.resting.add(event)
        self._last_failure = now = time.monotonic()
        return now + (min(delay, _LONGEST_DELAY_WITH_CLIENTS) if clients_wait else delay)

    def rest_is_over(self, event: Event) -> None:
        """[mutex]"""
        self.resting.discard(event)

    def abandon(self, slot: Slot, pool: BasePool) -> None:
        """[mutex] The worker was killed."""
        if slot.state is not CLOSED and slot.conn is None:
            pool._ledger.remove(slot)
        self._end_worker()


def _work(pool_ref: weakref.ref[BasePool], opener: Opener) -> None:
    """A worker: opens slots until none is left to open."""
    while True:
        pool = pool_ref()
        if pool is None:
            return
        with pool._mutex:
            slot = opener.next_slot()
        if slot is None:
            return
        try:
            backoff = Backoff(pool.reconnect_timeout)
            while pool is not None:
                delay = _try_to_open(pool, opener, slot, backoff)
                if delay is None:
                    break
                event = hub().event()
                with pool._mutex:
                    deadline = opener.rest_until(event, delay, bool(pool._ledger.line))
                pool = None
                event.wait(deadline)
                pool = pool_ref()
                if pool is not None:
                    with pool._mutex:
                        opener.rest_is_over(event)
        except BaseException:
            # Somebody kills tasks that aren't his. The slot must not stay reserved, nor the worker counted.
            pool = pool_ref()
            if pool is not None:
                with pool._mutex:
                    opener.abandon(slot, pool)
            raise
        pool = None


def _try_to_open(pool: BasePool, opener: Opener, slot: Slot, backoff: Backoff) -> float | None:
    """Connect. Returns the seconds after which to try again, None if there is nothing more to do."""
    if pool.closed:
        with pool._mutex:
            pool._ledger.remove(slot)
        return None
    stats = pool._stats
    stats.connections_num += 1
    started = time.monotonic()
    try:
        conn = _connect(pool, slot)
    except Exception as error:
        stats.connections_errors += 1
        opener.last_error = f"{type(error).__name__}: {str(error).strip()}"
        logger.warning("error connecting in pool %r: %s", pool.name, opener.last_error)
        delay = backoff.next_delay(time.monotonic())
        if delay is None or pool.closed:
            _give_up(pool, slot)
            return None
        return delay
    stats.connections_ms += (time.monotonic() - started) * 1000.0
    opener.last_error = None
    if pool._drained_at > started:
        close_quietly(conn)
        return 0.0
    pool._add(slot, conn)
    return None


def _give_up(pool: BasePool, slot: Slot) -> None:
    with pool._mutex:
        pool._ledger.remove(slot)
    if pool.closed:
        return
    logger.warning("pool %r: gave up reconnecting after %s s", pool.name, pool.reconnect_timeout)
    try:
        pool.reconnect_failed()
    except Exception:
        logger.exception("pool %r: reconnect_failed raised", pool.name)


def _connect(pool: BasePool, slot: Slot) -> Any:
    """A new connection, configured. Suspends."""
    conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    kwargs = dict((pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {})
    conn = connect(
        conninfo,
        connection_factory=pool.connection_class,
        cursor_factory=kwargs.get("cursor_factory"),
        **for_libpq(kwargs),
    )
    try:
        if kwargs.get("autocommit"):
            conn.autocommit = True
        if pool.statement_deadline is not None:
            conn.statement_deadline = pool.statement_deadline
        slot.settings = slot.bare_settings = conn._settings()
        if pool._configure is not None:
            pool._configure(conn)
            status = conn.info.transaction_status
            if status != IDLE_STATUS:
                raise RuntimeError(
                    f"connection left in status {status_name(status)} by configure function {pool._configure!r}: "
                    "discarded. Let it commit, or set autocommit"
                )
            slot.settings = conn._settings()
    except BaseException:
        conn.close()
        raise
    return conn
