"""`ConnectionPool`: many tasks, few connections, shared out fairly.

The ledger (ledger.py) knows who has what; opening.py, waiting.py, healing.py and returning.py say how connections come,
are waited for, looked at, and go; this file is what users call.
"""

from __future__ import annotations

import logging
import operator
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..hubs import hub
from .base import BasePool
from .contexts import ConnectionContext, CursorContext, TransactionContext
from .healing import check_idle_connections, ensure_healthy, ping
from .ledger import Slot
from .parameters import check_not_negative
from .returning import IDLE_STATUS, READY, clean_up, close_quietly
from .running import first_value, run_one_shot, run_repeatedly
from .streaming import Stream
from .waiting import report_deadlock, wait_in_line

T = TypeVar("T")

logger = logging.getLogger("greenpg.pool")

_HOLDER, _ROWCOUNT = operator.attrgetter("holder"), operator.attrgetter("rowcount")
_FETCHONE, _FETCHALL = operator.methodcaller("fetchone"), operator.methodcaller("fetchall")


class ConnectionPool(BasePool):
    """At most `max_size` connections, lent to one task at a time, strictly in the order of asking.

    Parameters, as psycopg_pool's (sizes count connections, times are in seconds):

    - `conninfo`, `kwargs`: how to connect: a libpq connection string, and keywords for `greenpg.connect` (plus
      `autocommit`). Each may be a callable, called for every new connection.
    - `connection_class`: `greenpg.Connection` or any subclass of psycopg2's connection.
    - `min_size` (4): kept open. `max_size` (None: `min_size`): never exceeded, connections being opened included.
    - `open`: True opens the pool at once (connecting goes on in the background), False waits for `open()` or `with`,
      None (default) opens it at its first use, so that it can be made at import time and before a fork.
    - `configure(conn)`: called on each new connection; `check(conn)`: on each before it is lent; `reset(conn)`: on each
      that is returned. None of them may leave a transaction open; a connection for which one fails is discarded.
      Two values of `reset` have a meaning: "rollback" (default) only ends an open transaction, "session" also takes
      back what a session can keep (settings, temporary tables, advisory locks, LISTEN, cursors, isolation level,
      autocommit, ...) and calls `configure` again. That rides along with the end of the transaction of `cursor()` and
      `transaction()`; what is borrowed in other ways takes a round trip more when it comes back.
    - `name` (None: "pool-N"): for messages. `timeout` (30): how long `getconn()` waits by default.
    - `max_waiting` (0: no limit): more tasks than that don't get into the line but `TooManyRequests`.
    - `max_lifetime` (3600): a connection older than that, less up to 5 %, is replaced when it comes back.
    - `max_idle` (600): one connection above `min_size` is closed whenever so many went unused for that long.
    - `reconnect_timeout` (300): how long connecting is tried again, with backoff, before `reconnect_failed(pool)` is
      called. `num_workers` (3): how many connections are opened at a time.
    - `close_returns` (False): `conn.close()` returns the connection to the pool.

    And beyond psycopg_pool's:

    - `check_idle` (30): a connection that was idle for longer is pinged before it is lent. Any that was idle at all
      gets a look at its socket, which costs no round trip.
    - `statement_deadline` (None: no limit): how long each statement may take, see `Connection.deadline()`.
    - `histograms` (False): count waiting and holding times for `get_histograms()`.
    - `leak_after` (None: off): a connection that is held for longer is reported in the log, with its holder and the
      stack where it was taken.

    Raises ValueError and TypeError for values that make no sense, `psycopg2.ProgrammingError` for a malformed conninfo.
    All its methods may be called from any task of any native thread.
    """

    # -- lending

    def connection(self, timeout: float | None = None) -> ConnectionContext:
        """`with pool.connection() as conn:` lends a connection for the block, then commits, or rolls back on error.

        Entering suspends until a connection is free, as `getconn()` does; leaving suspends if there's a transaction.
        """
        return ConnectionContext(self, timeout)

    def cursor(self, cursor_factory: Any = None, *, timeout: float | None = None) -> CursorContext:
        """`with pool.cursor() as cur:` lends a cursor in a transaction of its own: commit at the end of the block,
        rollback if it raises. Suspends as `connection()` does.
        """
        return CursorContext(self, cursor_factory, timeout)

    def transaction(self, *, timeout: float | None = None, **options: Any) -> TransactionContext:
        """`with pool.transaction() as conn:` lends a connection for a block that is a transaction.

        Options and behaviour of `conn.transaction()`: `isolation_level`, `readonly`, `deferrable`, `force_rollback`.
        """
        return TransactionContext(self, timeout, options)

    def run(self, function: Callable[[Any], T], *, attempts: int = 5, **options: Any) -> T | None:
        """`function(conn)` in a transaction of its own, repeated if that fails by a serialization failure or deadlock.

        Returns its result, None if it raised `greenpg.Rollback`. After `attempts` (default 5) failures of that kind,
        with growing, jittered pauses of 5 ms to 1 s in between, the last one is raised, its text saying how often it
        was tried. Everything else is raised at once. `options` are `transaction()`'s. Suspends.
        """
        return run_repeatedly(self, function, attempts, **options)

    # -- one statement, one round trip

    def execute(self, query: Any, vars: Any = None, *, timeout: float | None = None) -> int:
        """Run one statement, committed by itself, in one round trip. Returns the number of rows. Suspends."""
        rows: int = run_one_shot(self, query, vars, _ROWCOUNT, None, timeout)
        return rows

    def fetchone(
        self, query: Any, vars: Any = None, *, cursor_factory: Any = None, timeout: float | None = None
    ) -> Any:
        """The first row of a statement that is committed by itself, None if there is none. One round trip. Suspends."""
        return run_one_shot(self, query, vars, _FETCHONE, cursor_factory, timeout)

    def fetchall(
        self, query: Any, vars: Any = None, *, cursor_factory: Any = None, timeout: float | None = None
    ) -> list[Any]:
        """All rows of a statement that is committed by itself. One round trip. Suspends."""
        return run_one_shot(self, query, vars, _FETCHALL, cursor_factory, timeout)

    def fetchval(self, query: Any, vars: Any = None, *, timeout: float | None = None) -> Any:
        """The first column of the first row, None if there is none. One round trip. Suspends."""
        return run_one_shot(self, query, vars, first_value, None, timeout)

    def stream(
        self, sql: Any, args: Any = None, *, chunk_size: int = 2000, cursor_factory: Any = None, timeout: Any = None
    ) -> Stream:
        """`for row in pool.stream(sql, args):` the rows of a big result, fetched `chunk_size` at a time through a
        server-side cursor in a transaction of its own. The loop may be left at any time. See `Stream`.

        Doesn't suspend: a connection is borrowed (for `timeout`, see `getconn()`) when the first row is asked for.
        `sql` must be a SELECT or VALUES. Raises ValueError for a `chunk_size` below 1.
        """
        return Stream(self, sql, args, chunk_size=chunk_size, cursor_factory=cursor_factory, timeout=timeout)

    # -- by hand

    def getconn(self, timeout: float | None = None) -> Any:
        """Borrow a connection; each must be given back with `putconn()`. `connection()` is harder to get wrong.

        Suspends until one is free, for at most `timeout` seconds (None: the pool's; 0: doesn't wait). Raises
        `PoolTimeout`; `PoolClosed`; `TooManyRequests` when `max_waiting` tasks wait already; ValueError for a negative
        timeout.

        If the task ends without giving it back, the pool takes it back, with a warning, unless another task has used it
        since.
        """
        conn = self._lend(timeout)
        slot: Slot = conn._slot
        frame = sys._getframe(1)
        slot.taken_at = (frame.f_code, frame.f_lineno)
        lent_at = slot.lent_at
        slot.forget_holder = hub().on_end(slot.holder, lambda: self._take_back(slot, lent_at))
        return conn

    def _lend(self, timeout: float | None) -> Any:
        if timeout is not None and not timeout >= 0:
            check_not_negative(timeout=timeout)
        self._stats.requests_num += 1
        ledger, slot = self._ledger, None
        if ledger.idle:
            mutex = self._mutex
            mutex.acquire()  # `with` takes half as long again
            try:
                slot = ledger.take()
            finally:
                mutex.release()
        if slot is None:
            if self._closed:
                self._open_if_needed()
            slot = wait_in_line(self, self.timeout if timeout is None else timeout)
        now = time.monotonic()
        if now > slot.trusted_until:
            slot = ensure_healthy(self, slot, now, self.timeout if timeout is None else timeout)
            now = time.monotonic()
        # From here to the caller nothing suspends, so nobody can be killed with the slot in hand.
        slot.holder = self._current_task()
        slot.lent_at = now
        conn = slot.conn
        conn._pool = self
        if self.leak_after is not None:
            self._keeper.note_stack(slot)
        return conn

    def _on_delay(self, task: object | None) -> None:
        """A request has waited for a moment (see `hubs.Event`): is its task one that holds a connection?"""
        if (hub().current() if task is None else task) in map(_HOLDER, list(self._ledger.slots)):
            report_deadlock(self, task)

    def putconn(self, conn: Any) -> None:
        """Give a borrowed connection back; an open transaction is rolled back, a broken connection replaced.

        Raises ValueError, and touches nothing, if the connection isn't one that this pool has lent. Suspends only for
        a rollback, or in the pool's `reset`.
        """
        try:
            is_ours = conn._pool is self
        except AttributeError:
            is_ours = False
        if not is_ours:
            raise ValueError(self._not_ours(conn))
        slot: Slot = conn._slot
        now = time.monotonic()
        self._stats.usage_ms += (now - slot.lent_at) * 1000.0
        if self._observer is not None:
            self._observer.held(now - slot.lent_at)
        conn._pool = slot.holder = None
        slot.lent_at = 0.0
        slot.trusted_until = now + self._trust
        if slot.forget_holder is not None:
            slot.forget_holder()
            slot.forget_holder = None
        if (
            conn.get_transaction_status() == IDLE_STATUS  # so it isn't closed, either
            and now < slot.expires_at
            and self._reset is None
            and conn._driver_status == READY  # else somebody executed a COMMIT, which psycopg2 doesn't know of
            and not (conn._has_altered_settings or conn._blocks or conn._is_entered or conn.notices or conn.notifies)
        ):
            mutex = self._mutex  # _pass_on() spelled out
            mutex.acquire()
            try:
                is_wanted = self._ledger.give(slot)
            finally:
                mutex.release()
            if not is_wanted:
                close_quietly(conn)
        else:
            clean_up(self, slot)

    def _take_back(self, slot: Slot, lent_at: float) -> None:
        """The task that took the connection has ended. Called in the hub, where nothing may suspend."""
        conn = slot.conn
        if slot.lent_at != lent_at or conn._pool is not self or conn._gate.last_user not in (None, hash(slot.holder)):
            return
        code, line = slot.taken_at or (None, 0)
        logger.warning(
            "pool %r: %s ended without returning the connection that it took in %s, line %d (%s); it is taken back",
            self.name,
            hub().describe(slot.holder),
            code and code.co_filename,
            line,
            code and code.co_name,
        )
        slot.forget_holder = None
        hub().spawn(self.putconn, conn)

    def _not_ours(self, conn: Any) -> str:
        pool = getattr(conn, "_pool", None)
        slot = getattr(conn, "_slot", None)
        if pool is not None:
            reason = f"it comes from pool {pool.name!r}"
        elif slot is not None:
            reason = "it has been returned already"
        else:
            reason = "it doesn't come from any pool"
        return f"can't return connection to pool {self.name!r}, {reason}: {conn!r}"

    # -- maintenance

    def check(self) -> None:
        """Ping the idle connections, and replace those that are broken or expired. Suspends."""
        check_idle_connections(self)

    @staticmethod
    def check_connection(conn: Any) -> None:
        """Raise if the connection doesn't work. Suspends for a round trip. May be given to a pool as `check`."""
        ping(conn)

    def drain(self) -> None:
        """Replace all connections: the idle ones now, those that are lent when they come back. Doesn't suspend."""
        with self._mutex:
            self._drained_at = time.monotonic()
            idle = self._ledger.remove_idle()
            for slot in self._ledger.slots:
                slot.expires_at = 0.0
        for slot in idle:
            close_quietly(slot.conn)
        with self._mutex:
            # Closing may have let others run, who have reserved slots since.
            for _ in idle:
                if self._ledger.size < self._ledger.max_size and not self._closed:
                    self._opener.enqueue(self._ledger.reserve())
        self._opener.start_workers()

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes, from now on. Lent connections above `max_size` are closed as they come back.

        Raises ValueError for sizes that make no sense. Doesn't suspend.
        """
        min_size, max_size = self._check_size(min_size, max_size)
        with self._mutex:
            surplus = self._ledger.resize(min_size, max_size)
            if not self._closed:
                while self._ledger.size < min_size:
                    self._opener.enqueue(self._ledger.reserve())
                self._grow()
        for slot in surplus:
            close_quietly(slot.conn)
        self._keeper.start()
        self._opener.start_workers()

    def pause(self) -> None:
        """Lend nothing until `resume()`: requests wait in the line, up to their timeouts. Doesn't suspend."""
        with self._mutex:
            self._ledger.is_paused = True

    def resume(self) -> None:
        """Lend again, first to those who wait. Doesn't suspend."""
        with self._mutex:
            self._ledger.resume()
            self._grow()
        self._opener.start_workers()

    def get_histograms(self) -> dict[str, dict[str, int]]:
        """How often requests waited (`wait_ms`), and connections were held (`hold_ms`), by upper bound.

        The bounds are milliseconds, "inf" the last; each count is of its own range, not of all below. Raises ValueError
        unless the pool was made with `histograms=True`.
        """
        if self._observer is None:
            raise ValueError(f"the pool {self.name!r} doesn't keep histograms: make it with histograms=True")
        return self._observer.as_dict()
