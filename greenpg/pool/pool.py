"""`ConnectionPool`: many tasks, few connections, shared out fairly.

The ledger (ledger.py) knows who has what; opening.py, waiting.py and returning.py say how connections come, are waited
for, and go; this file is what users call.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ..connection.connection import Connection
from ..connection.deadlines import checked_seconds
from ..connection.patching import check_patched
from ..errors import PoolClosed, PoolTimeout
from ..hubs import Event, hub
from .contexts import ConnectionContext, CursorContext
from .ledger import Ledger, Slot
from .opening import Opener
from .parameters import check_connecting, check_not_negative, check_sizes
from .returning import IDLE_STATUS, clean_up, close_quietly
from .stats import Stats
from .waiting import wait_in_line

logger = logging.getLogger("greenpg.pool")

Conninfo = str | Callable[[], str]
ConnectKwargs = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

_pool_numbers = itertools.count(1)


class ConnectionPool:
    """At most `max_size` connections, lent to one task at a time, strictly in the order of asking.

    Parameters, as psycopg_pool's (sizes count connections, times are in seconds):

    - `conninfo`, `kwargs`: how to connect: a libpq connection string, and keywords for `greenpg.connect` (plus
      `autocommit`). Each may be a callable, called for every new connection.
    - `connection_class`: `greenpg.Connection` or any subclass of psycopg2's connection.
    - `min_size` (4): kept open. `max_size` (None: `min_size`): never exceeded, connections being opened included.
    - `open`: True opens the pool at once (connecting goes on in the background), False waits for `open()` or `with`,
      None (default) opens it at its first use, so that it can be made at import time and before a fork.
    - `configure(conn)`: called on each new connection; `reset(conn)`: on each that is returned. Neither may leave a
      transaction open; a connection for which one fails is discarded.
    - `name` (None: "pool-N"): for messages. `timeout` (30): how long `getconn()` waits by default.
    - `max_waiting` (0: no limit): more tasks than that don't get into the line but `TooManyRequests`.
    - `max_lifetime` (3600): a connection older than that, less up to 5 %, is replaced when it comes back.
    - `reconnect_timeout` (300): how long connecting is tried again, with backoff, before `reconnect_failed(pool)` is
      called. `num_workers` (3): how many connections are opened at a time.
    - `close_returns` (False): `conn.close()` returns the connection to the pool.
    - `statement_deadline` (None: no limit): how long each statement may take, see `Connection.deadline()`.

    Raises ValueError and TypeError for values that make no sense, `psycopg2.ProgrammingError` for a malformed conninfo.
    All its methods may be called from any task of any native thread.
    """

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type = Connection,
        kwargs: ConnectKwargs | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: Callable[[Any], object] | None = None,
        reset: Callable[[Any], object] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: Callable[[ConnectionPool], object] | None = None,
        num_workers: int = 3,
        statement_deadline: float | None = None,
    ) -> None:
        min_size, max_size = check_sizes(min_size, max_size)
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        check_not_negative(
            timeout=timeout, max_waiting=max_waiting, max_lifetime=max_lifetime, reconnect_timeout=reconnect_timeout
        )
        check_connecting(conninfo, kwargs, connection_class)
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.connection_class = connection_class
        self.name = name or f"pool-{next(_pool_numbers)}"
        self.timeout = timeout
        self.max_waiting = max_waiting
        self.max_lifetime = max_lifetime
        self.reconnect_timeout = reconnect_timeout
        self.num_workers = num_workers
        self.close_returns = close_returns
        self.statement_deadline = None if statement_deadline is None else checked_seconds(statement_deadline)
        self._configure = configure
        self._reset = reset
        self._reconnect_failed = reconnect_failed

        self._ledger = Ledger(min_size, max_size)
        self._opener = Opener(self)
        self._mutex = hub().mutex()
        self._stats = Stats()
        self._opened = False
        self._closed = True
        self._opens_itself = open is None
        self._filled: list[Event] = []
        if open:
            self.open()

    # -- opening and closing

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start to connect, in the background; with `wait`, suspend until `min_size` connections are there.

        Harmless on an open pool. Raises `PoolClosed` if the pool has been closed, `PoolTimeout` (and closes the pool)
        if waiting takes longer than `timeout` seconds, `errors.PatchError` in a monkey-patched program without
        `greenpg.patch()`.
        """
        check_patched()
        with self._mutex:
            if self._closed and self._opened:
                raise PoolClosed(f"the pool {self.name!r} has been closed and can't be opened again: make a new one")
            if self._closed:
                self._opened, self._closed = True, False
                for _ in range(self._ledger.min_size):
                    self._opener.enqueue(self._ledger.reserve())
        self._opener.start_workers()
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Suspend until the pool has `min_size` connections.

        Raises `PoolTimeout`, and closes the pool, if that takes longer than `timeout` seconds. Not needed in order to
        use the pool: for programs that prefer to stop at startup when the database can't be reached.
        """
        check_not_negative(timeout=timeout)
        deadline = time.monotonic() + timeout
        event = hub().event()
        self._open_if_needed()
        with self._mutex:
            if self._ledger.open_count >= self._ledger.min_size:
                return
            self._filled.append(event)
        try:
            is_full = event.wait(deadline)
        finally:
            with self._mutex:
                if event in self._filled:
                    self._filled.remove(event)
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} was closed while it was being filled")
        if not is_full:
            self.close()
            raise PoolTimeout(
                f"the pool {self.name!r} has {self._ledger.open_count} of {self._ledger.min_size} connections "
                f"after {timeout:.2f} s; it is closed now. Last connection error: {self._opener.last_error}"
            )

    def close(self, timeout: float = 5.0) -> None:
        """Close the idle connections, send the waiting tasks away with `PoolClosed`, and let lent connections be
        closed as they come back. Suspends up to `timeout` seconds for connections that are being opened.

        Harmless on a closed pool.
        """
        check_not_negative(timeout=timeout)
        deadline = time.monotonic() + timeout
        done = hub().event()
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            idle = self._ledger.remove_idle()
            for slot in self._opener.stop(done):
                self._ledger.remove(slot)
            self._ledger.fail_line(
                lambda: PoolClosed(f"the pool {self.name!r} was closed while the request was waiting")
            )
            while self._filled:
                self._filled.pop().set()
        for slot in idle:
            close_quietly(slot.conn)
        if not done.wait(deadline):
            logger.warning("pool %r: still connecting %s s after close()", self.name, timeout)

    @property
    def closed(self) -> bool:
        """Whether the pool can't lend: it is closed, or hasn't been opened."""
        return self._closed

    def __enter__(self) -> ConnectionPool:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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

    def getconn(self, timeout: float | None = None) -> Any:
        """Borrow a connection; each must be given back with `putconn()`. `connection()` is harder to get wrong.

        Suspends until one is free, for at most `timeout` seconds (None: the pool's; 0: doesn't wait). Raises
        `PoolTimeout`; `PoolClosed`; `TooManyRequests` when `max_waiting` tasks wait already; ValueError for a negative
        timeout.
        """
        if timeout is None:
            timeout = self.timeout
        elif timeout < 0:
            check_not_negative(timeout=timeout)
        self._stats.requests_num += 1
        if self._closed:
            self._open_if_needed()
        with self._mutex:
            slot = self._ledger.take()
        if slot is None:
            slot = wait_in_line(self, timeout)
        # From here to the caller nothing suspends, so nobody can be killed with the slot in hand.
        slot.holder = hub().current()
        slot.lent_at = time.monotonic()
        conn = slot.conn
        conn._pool = self
        return conn

    def putconn(self, conn: Any) -> None:
        """Give a borrowed connection back; an open transaction is rolled back, a broken connection replaced.

        Raises ValueError, and touches nothing, if the connection isn't one that this pool has lent. Suspends only for
        a rollback, or in the pool's `reset`.
        """
        if getattr(conn, "_pool", None) is not self:
            raise ValueError(self._not_ours(conn))
        slot: Slot = conn._slot
        now = time.monotonic()
        self._stats.usage_ms += (now - slot.lent_at) * 1000.0
        conn._pool = slot.holder = None
        slot.lent_at = 0.0
        if (
            not conn.closed
            and conn.get_transaction_status() == IDLE_STATUS
            and now < slot.expires_at
            and self._reset is None
        ):
            self._pass_on(slot)
        else:
            clean_up(self, slot)

    def get_stats(self) -> dict[str, int]:
        """psycopg_pool's counters and measures by name; times are in milliseconds. Doesn't suspend."""
        return self._stats.as_dict() | self._measures()

    def pop_stats(self) -> dict[str, int]:
        """The same as `get_stats()`, and sets the counters to zero."""
        stats, self._stats = self._stats, Stats()
        return stats.as_dict() | self._measures()

    @property
    def min_size(self) -> int:
        return self._ledger.min_size

    @property
    def max_size(self) -> int:
        return self._ledger.max_size

    def __repr__(self) -> str:
        ledger = self._ledger
        state = "open" if not self._closed else "closed" if self._opened else "not open yet"
        return (
            f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r} {state}: {ledger.size} of "
            f"{ledger.max_size} connections, {ledger.lent_count} lent, {len(ledger.line)} waiting>"
        )

    # -- for the other files of this folder

    def _open_if_needed(self) -> None:
        if not self._closed:
            return
        if self._opened:
            raise PoolClosed(f"the pool {self.name!r} is already closed")
        if not self._opens_itself:
            raise PoolClosed(f"the pool {self.name!r} is not open yet: call open(), or use it in a with block")
        self.open()

    def _pass_on(self, slot: Slot) -> None:
        """A usable connection: to the head of the line, or to the idle ones."""
        with self._mutex:
            is_wanted = not self._closed
            if is_wanted:
                self._ledger.give(slot)
            else:
                self._ledger.remove(slot)
        if not is_wanted:
            close_quietly(slot.conn)

    def _add(self, slot: Slot, conn: Any) -> None:
        """A new connection for a slot that was OPENING."""
        lifetime = self.max_lifetime * random.uniform(0.95, 1.0)  # lest they all expire together
        conn._slot = slot
        with self._mutex:
            slot.conn = conn
            slot.expires_at = time.monotonic() + lifetime
            is_wanted = not self._closed
            if is_wanted:
                self._ledger.give(slot)
                self._grow()
            else:
                self._ledger.remove(slot)
            if self._ledger.open_count >= self._ledger.min_size:
                while self._filled:
                    self._filled.pop().set()
        if not is_wanted:
            close_quietly(conn)

    def _grow(self) -> None:
        """Reserve one more slot if clients wait, or connections had been given up. With the mutex held."""
        if self._ledger.should_grow():
            self._opener.enqueue(self._ledger.reserve())

    def _replace_lost(self) -> None:
        """A connection was lost: reserve a slot for another one if it's needed. With the mutex held."""
        ledger = self._ledger
        if ledger.size < ledger.min_size or (ledger.line and ledger.size < ledger.max_size):
            self._opener.enqueue(ledger.reserve())

    def _measures(self) -> dict[str, int]:
        ledger = self._ledger
        return {
            "pool_min": ledger.min_size,
            "pool_max": ledger.max_size,
            "pool_size": ledger.size,
            "pool_available": len(ledger.idle),
            "requests_waiting": len(ledger.line),
        }

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
