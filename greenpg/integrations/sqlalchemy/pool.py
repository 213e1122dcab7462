"""`GreenpgPool`: SQLAlchemy's pool interface to a `greenpg.ConnectionPool`, whose slots are its records."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

from psycopg2 import extensions
from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.pool.base import ResetStyle

from ...connection.connection import Connection
from ...errors import PoolTimeout
from ...hubs import hub
from ...pool.core import PoolCore
from ...pool.leased.connection import LeasedConnection
from ...pool.lending import lend
from ...pool.opening import connect_for, start_workers
from ...pool.pool import ConnectionPool
from ...pool.returning import give_back
from ...pool.slot import Slot
from .record import LeaseRecord, SlotRecord

logger = logging.getLogger("greenpg.pool")

_NO_LIMIT = sys.maxsize

#: Seconds for which connections above `pool_size` are kept unused.
_OVERFLOW_KEPT = 30.0

#: Seconds that opening a connection may take, if that is all that a request waits for.
_LONGEST_CONNECT = 30.0


class GreenpgPool(Pool):
    """SQLAlchemy's pool on greenpg: first come, first served, and no kill costs a connection or a place.

    `create_engine("postgresql+greenpg://...")` takes it by itself. Its parameters are QueuePool's, under
    `create_engine`'s names `pool_size` (5), `max_overflow` (10), `pool_timeout` (30 s), `pool_recycle`,
    `pool_pre_ping`, `pool_reset_on_return` ...; and greenpg's `max_waiting`, `check_idle`, `statement_deadline`,
    `leak_after`, `histograms`: see `greenpg.ConnectionPool`.

    `lease`: "checkout" (default), or "transaction": what is checked out is a `greenpg.LeasedConnection`, which has a
    connection only while a transaction is open, or in autocommit a statement is under way.
    `connection_pool`: a `greenpg.ConnectionPool` to share with code that uses greenpg directly, whose sizes, timeout
    and way to connect are used instead. `greenpg_pool` is the one there is in any case.
    Its methods don't suspend, but for `connect()` and what gives connections back.
    """

    def __init__(
        self,
        creator: Any = None,
        pool_size: int | None = None,
        max_overflow: int | None = None,
        timeout: float | None = None,
        use_lifo: bool = False,
        connection_pool: ConnectionPool | None = None,
        max_waiting: int = 0,
        check_idle: float = 30.0,
        statement_deadline: float | None = None,
        leak_after: float | None = None,
        histograms: bool = False,
        lease: Literal["checkout", "transaction"] = "checkout",
        **kw: Any,
    ) -> None:
        if lease not in ("checkout", "transaction"):
            raise exc.ArgumentError(f'lease must be "checkout" or "transaction", not {lease!r}')
        if use_lifo:
            raise exc.ArgumentError(
                "pool_use_lifo can't be had with greenpg's pool, which lends connections strictly in turn; it closes "
                "those above pool_size by itself when they go unused"
            )
        if connection_pool is not None and not (pool_size is max_overflow is timeout is None):
            raise exc.ArgumentError(
                "pool_size, max_overflow and pool_timeout are the connection_pool's own: set its max_size and timeout"
            )
        self._size = 5 if pool_size is None else pool_size
        self._is_shared = connection_pool is not None
        if self._is_shared:
            self._max_overflow = 0
        else:
            self._max_overflow = -1 if pool_size == 0 else 10 if max_overflow is None else max_overflow
        #: For `recreate()`.
        self._options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "timeout": timeout,
            "connection_pool": connection_pool,
            "max_waiting": max_waiting,
            "check_idle": check_idle,
            "statement_deadline": statement_deadline,
            "leak_after": leak_after,
            "histograms": histograms,
            "lease": lease,
        }
        self._leases = lease == "transaction"
        self._has_connected = False
        if connection_pool is None:
            connection_pool = ConnectionPool(
                _no_conninfo,
                name=kw.get("logging_name"),
                min_size=0,
                max_size=_NO_LIMIT if self._max_overflow < 0 else max(self._size + self._max_overflow, 1),
                timeout=30.0 if timeout is None else timeout,
                max_lifetime=recycle if (recycle := kw.get("recycle", -1)) > -1 else float("inf"),
                max_idle=_OVERFLOW_KEPT,
                max_waiting=max_waiting,
                check_idle=check_idle,
                statement_deadline=statement_deadline,
                leak_after=leak_after,
                histograms=histograms,
            )
            connection_pool._core.open_by(_Opener(self))
            connection_pool._core.ledger.keep_at_least(self._size)
        #: The `greenpg.ConnectionPool`.
        self.greenpg_pool = connection_pool
        super().__init__(creator, **kw)

    @property
    def _core(self) -> PoolCore:
        return self.greenpg_pool._core

    # -- connecting

    def _should_wrap_creator(self, creator: Any) -> Callable[[Any], Any]:
        create: Any = super()._should_wrap_creator(creator) if creator is not None else None

        def create_green(record: SlotRecord) -> Any:
            slot = record.slot
            record.wait_for_the_end()
            if self._is_shared:
                is_new_here = slot.conn is not None and slot.conn._lender is slot
                return slot.conn if is_new_here else connect_for(record.core, slot)
            conn = create(record)
            _check_is_ours(conn)
            if self._core.options.statement_deadline is not None:
                conn.statement_deadline = self._core.options.statement_deadline
            return conn

        return create_green

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        slot = getattr(connection, "_lender", None)
        if slot is not None:
            slot.condemn()
            connection._belongs_to(None)  # else close() might return it
        super()._close_connection(connection, terminate=terminate)

    # -- lending

    def _do_get(self) -> ConnectionPoolEntry:
        if self._leases:
            if not self._has_connected:  # the dialect learns of the server when the first one connects
                give_back(self._core, self._lend())
                self._has_connected = True
            return LeaseRecord(self, self._make_lease)
        return self._record_of(self._lend_slot())

    def _lend(self) -> Slot:
        """For a `LeasedConnection`: the slot of a connection that the engine has seen. Suspends."""
        slot = self._lend_slot()
        self._record_of(slot)
        return slot

    def _lend_slot(self) -> Slot:
        try:
            return self._take()
        except PoolTimeout as error:
            raise exc.TimeoutError(
                f"GreenpgPool limit of size {self.size()} overflow {self._max_overflow} reached, connection timed out: "
                f"{error}",
                code="3o7r",
            ) from error

    def _make_lease(self) -> LeasedConnection:
        return LeasedConnection._by(self.greenpg_pool, self._lend)

    def _take(self) -> Slot:
        """SQLAlchemy's timeout is for waiting until somebody returns a connection, not for opening one."""
        core, ledger, timeout = self._core, self._core.ledger, None
        if not ledger.idle and len(ledger.line) < ledger.max_size - ledger.open_count:
            timeout = max(core.options.timeout, _LONGEST_CONNECT)
        return lend(core, timeout)

    def _record_of(self, slot: Slot) -> SlotRecord:
        """Suspends when the engine sees a shared pool's connection for the first time."""
        if not self._is_shared:
            return slot.record  # type: ignore[no-any-return]
        if slot.record is None:
            slot.record = {}
        record: Any = slot.record.get(self)
        core: PoolCore = slot.lent_by  # type: ignore[assignment]  # it is lent
        try:
            if record is None or record.dbapi_connection is not slot.conn:
                record = slot.record[self] = SlotRecord(self, core, slot)
                record.note_settings()
            else:
                record.put_settings()
        except BaseException:
            slot.condemn()
            give_back(core, slot)
            raise
        return record  # type: ignore[no-any-return]

    def _do_return_conn(self, record: Any) -> None:
        if isinstance(record, LeaseRecord):
            record.end(commits=self._reset_on_return is ResetStyle.reset_commit)
            return
        core, slot = record.core, record.slot
        if slot.lent_by is not core:
            return  # lent in the process that this one was forked from
        if record.was_abandoned:
            # Garbage is collected anywhere: in the hub, or while somebody in this very task holds the pool's mutex.
            hub().spawn(_return_abandoned, record, slot.lent_at, self._reset_on_return is ResetStyle.reset_commit)
        elif record.dbapi_connection is None and slot.conn._lender is slot:
            core.let_go(slot)
            start_workers(core)
        else:
            give_back(core, slot)

    def _invalidate(
        self, connection: PoolProxiedConnection, exception: BaseException | None = None, _checkin: bool = True
    ) -> None:
        if not (_checkin and getattr(connection, "closed", True)):  # not lost: a handler wants all to be replaced
            super()._invalidate(connection, exception, _checkin)
            return
        getattr(getattr(connection, "_connection_record", self), "core", self._core).suspect_all()
        if getattr(connection, "is_valid", False):
            connection.invalidate(exception)

    # -- the whole pool

    def recreate(self) -> GreenpgPool:
        """A new pool with the same parameters; of a shared pool, the same one again."""
        self.logger.info("Pool recreating")
        return type(self)(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
            **self._options,
        )

    def dispose(self) -> None:
        """Close the idle connections now, those that are checked out when they come back. The pool can be used on."""
        core = self._core
        with core.mutex:
            idle = core.drain()
        for slot in idle:
            core.close_connection(slot, slot.conn)
        self.logger.info("Pool disposed. %s", self.status())

    def size(self) -> int:
        """`pool_size`; of a shared pool, its max_size."""
        return self.greenpg_pool.max_size if self._is_shared else self._size

    def timeout(self) -> float:
        """The seconds that a checkout waits."""
        return self._core.options.timeout

    def checkedin(self) -> int:
        """How many connections are idle."""
        return len(self._core.ledger.idle)

    def checkedout(self) -> int:
        """How many connections are lent, or being reset."""
        ledger = self._core.ledger
        return ledger.lent_count + len(ledger.resetting)

    def overflow(self) -> int:
        """How many connections there are above `pool_size`; negative as long as there are fewer."""
        return self._core.ledger.size - self.size() if self.size() else 0

    def status(self) -> str:
        """QueuePool's line of text, and how many wait."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} Current Overflow: {self.overflow()} "
            f"Current Checked out connections: {self.checkedout()} Waiting: {len(self._core.ledger.line)}"
        )

    def stats(self) -> dict[str, int]:
        """`ConnectionPool.get_stats()`: counters and measures under psycopg_pool's names."""
        return self.greenpg_pool.get_stats()


class _Opener:
    """How the `ConnectionPool` of an engine gets its connections: through SQLAlchemy, with its events."""

    def __init__(self, pool: GreenpgPool) -> None:
        self._pool = pool

    def open(self, slot: Slot) -> Any:
        """A new record with its connection. Suspends."""
        record = slot.record = SlotRecord(self._pool, self._pool._core, slot)
        return record.dbapi_connection

    def close(self, slot: Slot, conn: Any) -> None:
        """The record is closed, with its events."""
        try:
            if slot.record is not None:
                slot.record.close()
        except Exception:
            self._pool.logger.exception("Exception closing connection %r", conn)


def _return_abandoned(record: SlotRecord, lent_at: float, commits: bool) -> None:
    """In a task of its own: end the transaction as SQLAlchemy would have, and give the connection back."""
    if not record.is_lent(lent_at):
        return
    conn = record.slot.conn
    try:
        if not conn.closed:
            (conn.commit if commits else conn.rollback)()
    except Exception as error:
        logger.warning("ending the transaction of %s, which was left checked out, failed: %s", conn, error)
    finally:
        record.return_if_lent(lent_at)


def _check_is_ours(conn: Any) -> None:
    """TypeError for what a `creator` or a handler of `do_connect` mustn't return."""
    if not isinstance(conn, extensions.connection):
        return  # it wraps one, or is a test's
    if not isinstance(conn, Connection):
        conn.close()
        raise TypeError(
            f"GreenpgPool needs connections of class greenpg.Connection, not {type(conn).__name__}: let the creator "
            "call greenpg.connect(), or greenpg.patch() before"
        )
    if conn._lender is not None:
        raise TypeError(
            "the creator has returned a connection that is a pool's already: to share a greenpg.ConnectionPool, "
            "give it to create_engine as connection_pool"
        )


def _no_conninfo() -> str:
    raise exc.InvalidRequestError(
        "the pool of an engine doesn't know how to connect but through the engine: for listen(), use greenpg.Listener, "
        "or make a greenpg.ConnectionPool, and the engine with connection_pool"
    )
