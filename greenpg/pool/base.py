"""A pool's parameters, state and life; the moves of its table that involve more than the ledger. Users see pool.py."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from ..connection.connection import Connection
from ..connection.deadlines import checked_seconds
from ..connection.patching import check_patched
from ..errors import PoolClosed, PoolTimeout
from ..hubs import Event, hub
from .forking import forget_connections, pools_to_survive_forks
from .keeping import Keeper
from .ledger import Ledger, Slot
from .notifying import Notifying
from .observing import Observer
from .opening import Opener
from .parameters import check_connecting, check_not_negative, check_sizes, resetter
from .returning import close_quietly
from .stats import Stats

logger = logging.getLogger("greenpg.pool")

Conninfo = str | Callable[[], str]
ConnectKwargs = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
ConnectionCallback = Callable[[Any], object]

#: Seconds for which a connection that was just returned is taken to be alive without a look.
_TRUST = 0.001

P = TypeVar("P", bound="BasePool")

_pool_numbers = itertools.count(1)


class BasePool(Notifying):
    """Everything of a pool but the lending; see `ConnectionPool`."""

    _default_min_size = 4
    _keeps_idle = True

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type = Connection,
        kwargs: ConnectKwargs | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        open: bool | None = None,
        configure: ConnectionCallback | None = None,
        check: ConnectionCallback | None = None,
        reset: ConnectionCallback | str | None = "rollback",
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: Callable[[Any], object] | None = None,
        num_workers: int = 3,
        check_idle: float = 30.0,
        statement_deadline: float | None = None,
        histograms: bool = False,
        leak_after: float | None = None,
    ) -> None:
        if min_size is None:
            min_size = self._default_min_size
        min_size, max_size = self._check_size(min_size, max_size)
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        check_not_negative(
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            check_idle=check_idle,
            leak_after=leak_after or 0,
        )
        check_connecting(conninfo, kwargs, connection_class)
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.connection_class = connection_class
        self.name = name or f"pool-{next(_pool_numbers)}"
        self.timeout = timeout
        self.max_waiting = max_waiting
        self.max_lifetime = max_lifetime
        self.max_idle = max_idle
        self.reconnect_timeout = reconnect_timeout
        self.num_workers = num_workers
        self.check_idle = check_idle
        self.close_returns = close_returns
        self.leak_after = leak_after
        self.statement_deadline = None if statement_deadline is None else checked_seconds(statement_deadline)
        self._configure = configure
        self._check = check
        self._reset = resetter(reset)
        self._reconnect_failed = reconnect_failed

        self._trust = _TRUST if check is None else -1.0
        self._observer = Observer() if histograms else None
        self._ledger = Ledger(min_size, max_size, keeps_idle=self._keeps_idle)
        self._mutex = hub().mutex()
        self._current_task = hub().current
        self._stats = Stats()
        self._opener = Opener(self)
        self._keeper = Keeper(self)
        self._opened = False
        self._closed = True
        self._opens_itself = open is None
        self._drained_at = 0.0
        self._filled: list[Event] = []
        self._at_rest: list[Event] = []
        pools_to_survive_forks.add(self)
        if open:
            self.open()

    def _check_size(self, min_size: int, max_size: int | None) -> tuple[int, int]:
        return check_sizes(min_size, max_size)

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
            is_new = self._closed
            if is_new:
                self._opened, self._closed = True, False
                self._current_task = hub().current
                for _ in range(self._ledger.min_size):
                    self._opener.enqueue(self._ledger.reserve())
        if is_new:
            self._keeper.start()
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
        self._open_if_needed()
        event = hub().event()
        with self._mutex:
            if self._is_filled():
                return
            self._filled.append(event)
        try:
            is_in_time = event.wait(deadline)
        finally:
            with self._mutex:
                if event in self._filled:
                    self._filled.remove(event)
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} was closed while it was being filled")
        if not is_in_time:
            open_count = self._ledger.open_count
            self.close()
            raise PoolTimeout(
                f"pool initialization incomplete: the pool {self.name!r} has {open_count} of "
                f"{self._ledger.min_size} connections after {timeout:.2f} s, and is closed now; "
                f"last connection error: {self._opener.last_error}"
            )

    def _is_filled(self) -> bool:
        return self._ledger.open_count >= self._ledger.min_size

    def close(self, timeout: float = 5.0) -> None:
        """Close the idle connections, send the waiting tasks away with `PoolClosed`, and let lent connections be
        closed as they come back. Suspends up to `timeout` seconds for connections that are being opened or reset.

        Harmless on a closed pool.
        """
        check_not_negative(timeout=timeout)
        deadline = time.monotonic() + timeout
        done, at_rest = hub().event(), hub().event()
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._ledger.keeps_idle = False
            idle = self._ledger.remove_idle()
            for slot in self._opener.stop(done):
                self._ledger.remove(slot)
            self._ledger.fail_line(
                lambda: PoolClosed(f"the pool {self.name!r} was closed while the request was waiting")
            )
            while self._filled:
                self._filled.pop().set()
            self._at_rest.append(at_rest)
            self._note_rest()
        self._keeper.stop()
        for slot in idle:
            close_quietly(slot.conn)
        if not done.wait(deadline):
            logger.warning("pool %r: still connecting %s s after close()", self.name, timeout)
        if not at_rest.wait(deadline):
            logger.warning("pool %r: still resetting connections %s s after close()", self.name, timeout)
        self._close_listener(max(deadline - time.monotonic(), 0.0))

    def _note_rest(self) -> None:
        """With the mutex held: nothing is being reset any more?"""
        while self._at_rest and not self._ledger.resetting:
            self._at_rest.pop().set()

    @property
    def closed(self) -> bool:
        """Whether the pool can't lend: it is closed, or hasn't been opened."""
        return self._closed

    def __enter__(self: P) -> P:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_if_needed(self) -> None:
        if not self._closed:
            return
        if self._opened:
            raise PoolClosed(f"the pool {self.name!r} is already closed")
        if not self._opens_itself:
            raise PoolClosed(f"the pool {self.name!r} is not open yet: call open(), or use it in a with block")
        self.open()

    def _after_fork_in_child(self) -> None:
        """The connections, and the tasks that open them, are the parent's: begin anew, at the next use."""
        was_open = not self._closed
        forget_connections(self._ledger.slots)
        self._ledger.fail_line(lambda: PoolClosed(f"the pool {self.name!r} was forked while the request was waiting"))
        self._ledger = Ledger(self._ledger.min_size, self._ledger.max_size, keeps_idle=self._keeps_idle)
        self._mutex = hub().mutex()  # some other thread of the parent may have held it
        self._opener = Opener(self)
        self._keeper = Keeper(self)
        self._filled = []
        if was_open:
            self._opened, self._closed, self._opens_itself = False, True, True

    # -- moves of the table

    def _pass_on(self, slot: Slot) -> None:
        """A usable connection: to the head of the line, or to the idle ones."""
        with self._mutex:
            is_wanted = self._ledger.give(slot)
        if not is_wanted:
            close_quietly(slot.conn)

    def _add(self, slot: Slot, conn: Any) -> None:
        """A new connection for a slot that was OPENING, which has its settings already."""
        lifetime = self.max_lifetime * random.uniform(0.95, 1.0)  # lest they all expire together
        conn._slot = slot
        with self._mutex:
            now = time.monotonic()
            slot.conn = conn
            slot.opened_at = now
            slot.expires_at = now + lifetime
            slot.trusted_until = now + self._trust
            is_wanted = self._ledger.give(slot)
            if not self._closed:
                self._grow()
            if self._is_filled():
                while self._filled:
                    self._filled.pop().set()
        if not is_wanted:
            close_quietly(conn)

    def _grow(self) -> None:
        """Reserve what waiting clients, or the least size, ask for. With the mutex held."""
        while self._ledger.should_grow():
            self._opener.enqueue(self._ledger.reserve())

    def _replace_lost(self) -> None:
        """A connection was lost: reserve a slot for another one if it's needed. With the mutex held."""
        ledger = self._ledger
        if ledger.size < ledger.min_size or (ledger.line and ledger.size < ledger.max_size):
            self._opener.enqueue(ledger.reserve())

    def reconnect_failed(self) -> None:
        """Called when connecting has failed for `reconnect_timeout`: calls the pool's callback."""
        if self._reconnect_failed is not None:
            self._reconnect_failed(self)

    def _suspect_all(self) -> None:
        """A connection was found lost: those that are older need a ping before they're lent again."""
        with self._mutex:
            for slot in self._ledger.slots:
                slot.is_suspect = True
                slot.trusted_until = 0.0

    # -- what can be seen

    @property
    def min_size(self) -> int:
        return self._ledger.min_size

    @property
    def max_size(self) -> int:
        return self._ledger.max_size

    def get_stats(self) -> dict[str, int]:
        """psycopg_pool's counters and measures by name; times are in milliseconds. Doesn't suspend."""
        return self._stats.as_dict() | self._measures()

    def pop_stats(self) -> dict[str, int]:
        """The same as `get_stats()`, and sets the counters to zero."""
        stats, self._stats = self._stats, Stats()
        return stats.as_dict() | self._measures()

    def _measures(self) -> dict[str, int]:
        ledger = self._ledger
        return {
            "pool_min": ledger.min_size,
            "pool_max": self.max_size,
            "pool_size": ledger.size,
            "pool_available": len(ledger.idle),
            "requests_waiting": len(ledger.line),
        }

    def __repr__(self) -> str:
        ledger = self._ledger
        state = "open" if not self._closed else "closed" if self._opened else "not open yet"
        if ledger.is_paused:
            state += ", paused"
        return (
            f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r} {state}: {ledger.size} of "
            f"{self.max_size} connections, {ledger.lent_count} lent, {len(ledger.line)} waiting>"
        )
