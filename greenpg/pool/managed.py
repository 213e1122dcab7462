"""`ManagedPool`: what those call who make a pool, open, look after and close it; pool.py is for those who borrow."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from psycopg2 import extensions

from ..connection.connect.credentials import ConnectKwargs, Conninfo
from ..connection.connection import Connection
from ..connection.tracing import OnEvent, Tracer, checked_tracers
from ..errors import is_interruption
from .core import PoolCore
from .health import ping
from .histograms import Histograms
from .ledger import Ledger
from .lifecycle import close_pool, open_pool, survive_forks, wait_until_filled
from .listening import Listening
from .loans import Loan, loans_of
from .multiplex import Multiplexer, checked_multiplex
from .options import (
    ConnT,
    FailFast,
    Pooler,
    PoolOptions,
    Reset,
    check_not_negative,
    check_sizes,
)
from .returning import give_back
from .stats import Stats
from .upkeep import check_idle_connections, drain, resize, resume

T = TypeVar("T")
P = TypeVar("P", bound="ManagedPool[Any]")

_pool_numbers = itertools.count(1)


class _Option(Generic[T]):
    """A pool's attribute for one of its options. Assigned, it holds from the next use on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, pool: None, owner: type) -> _Option[T]: ...
    @overload
    def __get__(self, pool: ManagedPool[Any], owner: type) -> T: ...
    def __get__(self, pool: ManagedPool[Any] | None, owner: type) -> Any:
        return self if pool is None else getattr(pool._core.options, self._name)

    def __set__(self, pool: ManagedPool[Any], value: T) -> None:
        change: dict[str, Any] = {self._name: value}
        pool._core.options = dataclasses.replace(pool._core.options, **change)


class ManagedPool(Generic[ConnT]):
    """The part of `ConnectionPool` that doesn't lend."""

    conninfo = _Option[Conninfo]()
    kwargs = _Option[ConnectKwargs | None]()
    connection_class = _Option[type[extensions.connection]]()
    name = _Option[str]()
    close_returns = _Option[bool]()
    timeout = _Option[float]()
    max_waiting = _Option[int]()
    max_lifetime = _Option[float]()
    max_idle = _Option[float]()
    reconnect_timeout = _Option[float]()
    num_workers = _Option[int]()
    fail_fast = _Option[FailFast]()
    refused_after = _Option[float]()
    check_idle = _Option[float]()
    statement_deadline = _Option[float | None]()
    leak_after = _Option[float | None]()
    prepare_threshold = _Option[int | None]()

    _default_min_size = 4
    _keeps_idle = True

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type[ConnT] = Connection,  # type: ignore[assignment]  # ConnT's default
        kwargs: ConnectKwargs | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        open: bool | None = None,
        configure: Callable[[ConnT], object] | None = None,
        check: Callable[[ConnT], object] | None = None,
        reset: Callable[[ConnT], object] | Reset | None = "rollback",
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: Callable[[Any], object] | None = None,
        num_workers: int = 3,
        fail_fast: FailFast = False,
        refused_after: float = 2.0,
        check_idle: float = 30.0,
        statement_deadline: float | None = None,
        histograms: bool = False,
        leak_after: float | None = None,
        pooler: Pooler | None = None,
        direct_conninfo: Conninfo | None = None,
        on_event: OnEvent = None,
        prepare_threshold: int | None = None,
        multiplex: int = 0,
    ) -> None:
        sizes = self._check_size(self._default_min_size if min_size is None else min_size, max_size)
        options = PoolOptions(
            conninfo=conninfo,
            kwargs=kwargs,
            connection_class=connection_class,
            name=name or f"pool-{next(_pool_numbers)}",
            configure=configure,
            check=check,
            reset=reset,
            close_returns=close_returns,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            num_workers=num_workers,
            fail_fast=fail_fast,
            refused_after=refused_after,
            check_idle=check_idle,
            statement_deadline=statement_deadline,
            leak_after=leak_after,
            prepare_threshold=prepare_threshold,
            pooler=pooler,
            direct_conninfo=direct_conninfo,
        )
        self._core = PoolCore(
            self,
            options,
            Ledger(*sizes, keeps_idle=self._keeps_idle),
            Histograms() if histograms else None,
            opens_itself=open is None,
            give_back=give_back,
            tracers=checked_tracers(on_event),
        )
        self._listening = Listening(self._core)
        if checked_multiplex(multiplex, sizes[1], options):
            self._core.multiplex_by(Multiplexer(multiplex))
        survive_forks(self._core)
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
        open_pool(self._core)
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Suspend until the pool has `min_size` connections.

        Raises `PoolTimeout`, and closes the pool, if that takes longer than `timeout` seconds; its `__cause__` is the
        last error of connecting. With `fail_fast` that error is raised at once. Not needed in order to use the pool:
        for programs that prefer to stop at startup when the database can't be reached.
        """
        check_not_negative(timeout=timeout)
        try:
            wait_until_filled(self._core, timeout)
        except Exception as error:
            if is_interruption(error):
                raise
            self.close()
            raise

    def close(self, timeout: float = 5.0) -> None:
        """Close the idle connections, send the waiting tasks away with `PoolClosed`, and let lent connections be
        closed as they come back. Suspends up to `timeout` seconds for connections that are being opened or reset.

        Harmless on a closed pool.
        """
        check_not_negative(timeout=timeout)
        deadline = self._core.now() + timeout
        if self._core.multiplexer is not None:
            self._core.multiplexer.stop(deadline)
        close_pool(self._core, timeout)
        self._listening.close(max(deadline - self._core.now(), 0.0))

    @property
    def closed(self) -> bool:
        """Whether the pool can't lend: it is closed, or hasn't been opened."""
        return self._core.is_closed

    def __enter__(self: P) -> P:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- maintenance

    def check(self) -> None:
        """Ping the idle connections, and replace those that are broken or expired. Suspends."""
        check_idle_connections(self._core)

    @staticmethod
    def check_connection(conn: Connection) -> None:
        """Raise if the connection doesn't work. Suspends for a round trip. May be given to a pool as `check`."""
        ping(conn)

    def drain(self) -> None:
        """Replace all connections: the idle ones now, those that are lent when they come back. Doesn't suspend."""
        drain(self._core)

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes, from now on. Lent connections above `max_size` are closed as they come back.

        Raises ValueError for sizes that make no sense. Doesn't suspend.
        """
        resize(self._core, *self._check_size(min_size, max_size))

    def pause(self) -> None:
        """Lend nothing until `resume()`: requests wait in the line, up to their timeouts. Doesn't suspend."""
        with self._core.mutex:
            self._core.ledger.pause()

    def resume(self) -> None:
        """Lend again, first to those who wait. Doesn't suspend."""
        resume(self._core)

    # -- what can be seen

    def add_tracer(self, on_event: OnEvent) -> None:
        """From now on the function or `Tracer` is told as well: see `on_event`. Cursors that exist tell nothing new.

        Doesn't suspend.
        """
        self._core.trace((*self._tracers, *checked_tracers(on_event)))

    def remove_tracer(self, tracer: Tracer) -> None:
        """The tracer is told no more. Harmless if it isn't. Doesn't suspend."""
        self._core.trace(tuple(other for other in self._tracers if other is not tracer))

    @property
    def _tracers(self) -> tuple[Tracer, ...]:
        return () if self._core.tracing is None else self._core.tracing.tracers

    @property
    def min_size(self) -> int:
        """So many connections are kept open."""
        return self._core.ledger.min_size

    @property
    def max_size(self) -> int:
        """There are never more connections."""
        return self._core.ledger.max_size

    def get_stats(self) -> dict[str, int]:
        """psycopg_pool's counters and measures by name, and some more; times are in milliseconds. Doesn't suspend.

        Other than there, `usage_ms` has the loans of `getconn()`, too, and `requests_errors` also what got a
        `PoolTimeout` because of `timeout=0`.
        """
        ledger = self._core.ledger
        measures = {
            "pool_min": ledger.min_size,
            "pool_max": self.max_size,
            "pool_size": ledger.size,
            "pool_available": len(ledger.idle),
            "pool_lent": ledger.lent_count,
            "requests_waiting": len(ledger.line),
        }
        return self._core.stats.as_dict() | measures

    def pop_stats(self) -> dict[str, int]:
        """The same as `get_stats()`, and sets the counters to zero."""
        stats = self.get_stats()
        self._core.stats = Stats()
        return stats

    def get_loans(self, *, stacks: bool = False) -> list[Loan]:
        """Who has a connection now, the longest first; with `stacks`, also where each of them is. Doesn't suspend."""
        return loans_of(self._core, stacks)

    def keep_histograms(self) -> None:
        """Count waiting and holding times from now on, as with `histograms=True`. Doesn't suspend."""
        self._core.keep_histograms()

    def get_histograms(self) -> dict[str, dict[str, int]]:
        """How often requests waited (`wait_ms`), and connections were held (`hold_ms`), by upper bound.

        The bounds are milliseconds, "inf" the last; each count is of its own range, not of all below. Raises ValueError
        unless the pool was made with `histograms=True`. Doesn't suspend.
        """
        if self._core.histograms is None:
            raise ValueError(f"the pool {self.name!r} doesn't keep histograms: make it with histograms=True")
        return self._core.histograms.as_dict()

    def __repr__(self) -> str:
        ledger = self._core.ledger
        state = "open" if not self.closed else "closed" if self._core.was_opened else "not open yet"
        if ledger.is_paused:
            state += ", paused"
        return (
            f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r} {state}: {ledger.size} of "
            f"{self.max_size} connections, {ledger.lent_count} lent, {len(ledger.line)} waiting>"
        )
