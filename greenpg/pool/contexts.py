"""What users do with a pool's connection: `with pool.connection()`, `cursor()`, `transaction()`; single statements.
Classes with slots: generators cost more."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import psycopg2
import psycopg2.errors

from ..connection.connection import AnyCursor, Connection
from ..connection.deadlines import rollback_deadline
from ..connection.guarded_cursor import Params, Query
from ..connection.lazy_begin import execute_alone, is_autocommit
from ..connection.transaction import Transaction, TransactionOptions, end_transaction
from ..errors import COMMITTED, ROLLED_BACK, UNKNOWN, commit_outcome, is_interruption, note_commit_outcome
from ..hubs import hub
from .core import PoolCore
from .health import IDLE_STATUS, READY
from .lending import lend
from .multiplex import ELSEWHERE
from .options import ConnT
from .pooler import forbid_transactions
from .returning import READ_ONLY, give_back, note_error
from .slot import Slot

logger = logging.getLogger("greenpg.pool")

T = TypeVar("T")


class Block:
    """A block for which something is lent."""

    __slots__ = ("_core", "_lent_at", "_slot", "_timeout")

    _lent_at: float
    _slot: Slot

    def __init__(self, core: PoolCore, timeout: float | None) -> None:
        self._core = core
        self._timeout = timeout

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, GeneratorExit):
            leave_by_task(self._core, self._leave, exc)
        else:
            self._leave(exc)

    def _leave(self, exc: BaseException | None) -> object:
        """Return it, the block having raised that."""
        raise NotImplementedError


class ConnectionContext(Block, Generic[ConnT]):
    """Lends a connection for a block: commits at its end, rolls back if it raises, and returns it in any case."""

    __slots__ = ()

    def __enter__(self) -> ConnT:
        self._slot = slot = lend(self._core, self._timeout)
        self._lent_at = slot.lent_at
        return slot.conn  # type: ignore[return-value]

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:  # finish() spelled out for a block in which no transaction is open
            slot = self._slot
            conn = slot.conn
            if (
                conn._driver_status == READY
                and conn.get_transaction_status() == IDLE_STATUS
                and slot.lent_at == self._lent_at
            ):
                give_back(self._core, slot, is_at_rest=True)
                return
        super().__exit__(exc_type, exc, traceback)

    def _leave(self, exc: BaseException | None) -> None:
        slot = self._slot
        if slot.lent_at != self._lent_at:
            _tell_if_closed(slot, self._lent_at, exc)
            return  # the block has returned it, and it may be somebody else's by now
        if exc is None and slot.conn.closed and slot.conn._driver_status == READY:
            give_back(self._core, slot)  # the block has closed it, and nothing was open in it
        else:
            finish(self._core, slot, exc)


class CursorContext(Block, Generic[AnyCursor]):
    """Lends a cursor in a transaction of its own: commits at the end, rolls back if the block raises."""

    __slots__ = ("_cursor", "_cursor_factory")

    _cursor: Any

    def __init__(self, core: PoolCore, cursor_factory: Callable[..., AnyCursor] | None, timeout: float | None) -> None:
        self._core = core
        self._cursor_factory = cursor_factory
        self._timeout = timeout

    def __enter__(self) -> AnyCursor:
        if self._core.options.pooler is not None:
            forbid_transactions(self._core)
        self._slot = slot = lend(self._core, self._timeout)
        self._lent_at = slot.lent_at
        conn = slot.conn
        try:
            self._cursor = cursor = conn.cursor(None, self._cursor_factory)
        except BaseException:
            give_back(self._core, slot)
            raise
        if not is_autocommit(conn):
            conn._blocks.append(self)
        return cursor  # type: ignore[return-value]

    def _leave(self, exc: BaseException | None) -> None:
        slot = self._slot
        cursor, self._cursor = self._cursor, None
        if slot.lent_at != self._lent_at:
            _tell_if_closed(slot, self._lent_at, exc)
            return
        slot.conn._blocks.clear()
        try:
            finish(self._core, slot, exc)
        finally:
            cursor.close()


class TransactionContext(ConnectionContext[ConnT]):
    """Lends a connection for a transaction block, `conn.transaction()`."""

    __slots__ = ("_options", "_transaction")

    def __init__(self, core: PoolCore, timeout: float | None, options: TransactionOptions) -> None:
        super().__init__(core, timeout)
        self._options = options
        self._transaction: Transaction[Connection] | None = None

    def __enter__(self) -> ConnT:
        if self._core.options.pooler is not None:
            forbid_transactions(self._core)
        conn = super().__enter__()
        try:
            self._transaction = conn.transaction(**self._options)  # type: ignore[attr-defined]
            self._transaction.__enter__()
        except BaseException as exception:
            super()._leave(exception)
            raise
        return conn

    def __exit__(  # type: ignore[override]  # the others never settle an error
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if isinstance(exc, GeneratorExit):
            leave_by_task(self._core, self._leave, exc)
            return False
        return self._leave(exc)

    def _leave(self, exc: BaseException | None) -> bool:  # type: ignore[override]
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return False
        if self._slot.lent_at != self._lent_at:
            _tell_if_closed(self._slot, self._lent_at, exc)
            return False
        try:
            is_settled: bool = transaction.__exit__(None if exc is None else type(exc), exc, None)
        except BaseException as exception:
            super()._leave(exception)
            raise
        is_users_doing = self._options.get("readonly") and getattr(exc, "pgcode", None) == READ_ONLY
        super()._leave(None if is_settled or is_users_doing else exc)
        return is_settled


def leave_by_task(core: PoolCore, leave: Callable[[BaseException], object], exc: BaseException) -> None:
    """Leave a block in a task of its own, since its generator is being closed. That may be done by a finalizer, which
    runs in whatever task there is, in the hub, or while a pool's mutex is held: nothing may be waited for there."""
    exc.__traceback__ = None  # the frames would wait for the task, too
    if not sys.is_finalizing():  # else the process ends with all of its connections
        hub().spawn(_leave_abandoned, core.options.name, leave, exc)


def _leave_abandoned(name: str, leave: Callable[[BaseException], object], exc: BaseException) -> None:
    try:
        leave(exc)
    except Exception as error:
        logger.warning("pool %r: giving back the connection of an abandoned block failed: %s", name, error)


def _tell_if_closed(slot: Slot, lent_at: float, exc: BaseException | None) -> None:
    """Raise if the block has closed its connection in the middle of a transaction, and no exception says so already."""
    if exc is None and slot.closed_in == lent_at and slot.conn._driver_status != READY:
        end_transaction(slot.conn, commit=True)


def finish(core: PoolCore, slot: Slot, exc: BaseException | None) -> None:
    """The end of a block that has raised the exception, or None: commit, or roll back without hiding the exception,
    and give the connection back. Suspends if there is a transaction."""
    conn, is_committed = slot.conn, False
    try:
        if exc is None:
            is_committed = end_transaction(conn, commit=True)
        else:
            note_error(core, slot, exc)
            try:
                with rollback_deadline(conn._gate, exc):
                    end_transaction(conn, commit=False)
            except Exception as error:
                if is_interruption(error):
                    raise
                logger.warning("rollback after %s failed: %s", type(exc).__name__, str(error))
    finally:
        # Killed in the commit or not: the pool looks at the connection's state and does what is needed.
        give_back(core, slot, is_committed=is_committed)


def run_one_shot(
    core: PoolCore, query: Query, vars: Params, fetch: Callable[[Any], T], cursor_factory: Any, timeout: float | None
) -> T:
    """One statement, committed by itself, in one round trip.

    On a connection whose BEGIN says more than that (its isolation level ...) it's a transaction, which takes two.
    """
    if core.multiplexer is not None and cursor_factory is None:
        shared: T = core.multiplexer.run(core, query, vars, fetch)
        if shared is not ELSEWHERE:
            return shared
    slot = lend(core, timeout)
    conn, is_done = slot.conn, False
    try:
        cur = conn.cursor(None, cursor_factory)
        is_transaction = (slot.puts_more_into_begin or conn._tells_commit is not None) and not is_autocommit(conn)
        try:
            if is_transaction:
                with conn.transaction():
                    cur.execute(query, vars)
                    result = fetch(cur)
            else:
                execute_alone(conn, cur, query, vars)
                result = fetch(cur)
        except BaseException as error:
            is_done = not is_transaction and bool(cur.statusmessage)  # "" after an error, None if nothing was sent
            _note_outcome(conn, error, COMMITTED if is_done else ROLLED_BACK)
            raise
        is_done = True
        cur.close()
        return result
    except psycopg2.Error as error:
        note_error(core, slot, error)
        raise
    finally:
        give_back(core, slot, is_committed=is_done)


def _note_outcome(conn: Connection, error: BaseException, outcome: str) -> None:
    """What has become of the statement. Nothing is said of an error before anything was sent."""
    if commit_outcome(error) is not None:
        return
    if conn.closed:
        note_commit_outcome(error, UNKNOWN)
    elif outcome == COMMITTED or is_interruption(error) or getattr(error, "pgcode", None) is not None:
        note_commit_outcome(error, outcome)


def first_value(cur: Any) -> Any:
    """The first column of the first row; None if there is no row."""
    row = cur.fetchone()
    if row is None:
        return None
    return next(iter(row.values())) if isinstance(row, dict) else row[0]
