"""`conn.transaction()`: psycopg 3's transaction blocks, over psycopg2's own; nested ones are savepoints."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any, Generic, Literal, TypedDict, TypeVar

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from ..errors import ROLLED_BACK, UNKNOWN, is_interruption, note_commit_outcome, note_transaction
from ..errors.settling import TransactionIdentity
from .deadlines import rollback_deadline
from .guarded_connection import GuardedConnection
from .identity import ask_identity, check_can_settle

logger = logging.getLogger("greenpg.connection")

_autocommit: Any = extensions.connection.autocommit.__get__  # type: ignore[attr-defined]
_READY, _BEGIN = extensions.STATUS_READY, extensions.STATUS_BEGIN
_IDLE, _INERROR = extensions.TRANSACTION_STATUS_IDLE, extensions.TRANSACTION_STATUS_INERROR

C = TypeVar("C", bound=GuardedConnection)

#: By name, or one of psycopg2's ISOLATION_LEVEL constants.
IsolationLevel = (
    Literal["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
    | Literal["read uncommitted", "read committed", "repeatable read", "serializable"]
    | int
)


class TransactionOptions(TypedDict, total=False):
    """The keywords of `Connection.transaction()`."""

    savepoint_name: str | None
    force_rollback: bool
    isolation_level: IsolationLevel | None
    readonly: bool | None
    deferrable: bool | None
    settle: bool


ISOLATION_LEVELS = {
    extensions.ISOLATION_LEVEL_READ_UNCOMMITTED: "READ UNCOMMITTED",
    extensions.ISOLATION_LEVEL_READ_COMMITTED: "READ COMMITTED",
    extensions.ISOLATION_LEVEL_REPEATABLE_READ: "REPEATABLE READ",
    extensions.ISOLATION_LEVEL_SERIALIZABLE: "SERIALIZABLE",
}


T = TypeVar("T", bound="Transaction[Any]")


class Rollback(Exception):
    """Raised in a transaction block, it rolls the block back, and ends it without an error.

    `raise Rollback(transaction)` leaves all blocks up to that one, which is what `conn.transaction()` gave.
    """

    def __init__(self, transaction: Transaction[Any] | None = None) -> None:
        super().__init__(transaction)
        self.transaction = transaction


class Transaction(Generic[C]):
    """See `Connection.transaction()`."""

    __slots__ = (
        "_characteristics",
        "_conn",
        "_force_rollback",
        "_is_used",
        "_savepoint",
        "_session_before",
        "_settles",
    )

    def __init__(
        self,
        conn: C,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
        isolation_level: IsolationLevel | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
        settle: bool = False,
    ) -> None:
        self._conn = conn
        self._settles = settle and not readonly
        self._savepoint = savepoint_name
        self._force_rollback = force_rollback
        self._is_used = False
        self._characteristics = (_checked_isolation_level(isolation_level), readonly, deferrable)
        self._session_before: tuple[Any, Any, Any, bool] | None = None

    @property
    def connection(self) -> C:
        """Of which it is a transaction."""
        return self._conn

    @property
    def savepoint_name(self) -> str | None:
        """None for an outermost block, which has no savepoint."""
        return self._savepoint

    def __enter__(self: T) -> T:
        conn = self._conn
        if self._is_used:
            raise TypeError("transaction blocks can be used only once: call transaction() again")
        if conn.closed:
            raise psycopg2.InterfaceError("connection already closed")
        gate = conn._gate
        if gate.queue is not None:
            gate.refuse("transaction")
            gate.queue.settle()  # what comes before isn't of this block
        elif gate.owner is not None:
            gate.make_way("transaction")
        if self._is_outermost(conn):
            self._savepoint = None
            if self._settles:
                check_can_settle(conn)
            self._set_session(conn)
            if self._settles:
                conn._want_identity(True)
        else:
            self._begin_nested(conn)
        self._is_used = True
        conn._blocks.append(self)
        return self

    @staticmethod
    def _is_outermost(conn: GuardedConnection) -> bool:
        if conn._blocks or conn._is_entered or conn.get_transaction_status() != _IDLE:
            return False
        if conn._driver_status == _BEGIN:  # somebody executed a COMMIT, which psycopg2 doesn't know of
            conn.rollback()
        return True

    def _set_session(self, conn: GuardedConnection) -> None:
        """What psycopg2 puts into its BEGIN is, for this block, what the block says. Suspends on an autocommit
        connection with settings only."""
        is_autocommit = bool(_autocommit(conn))
        if not is_autocommit and self._characteristics == (None, None, None):
            return
        before = conn.isolation_level, conn.readonly, conn.deferrable, is_autocommit
        conn._set_session(*self._characteristics, autocommit=False)
        self._session_before = before

    def _restore_session(self, conn: GuardedConnection) -> None:
        if self._session_before is None or conn.closed or conn._driver_status != _READY:
            return
        isolation_level, readonly, deferrable, was_autocommit = self._session_before
        if was_autocommit:  # only what differs when autocommit is turned on is told to the server
            conn._set_session("default", "default", "default")
        conn._set_session(
            "default" if isolation_level is None else isolation_level,
            "default" if readonly is None else readonly,
            "default" if deferrable is None else deferrable,
            was_autocommit,
        )

    def _begin_nested(self, conn: GuardedConnection) -> None:
        self._settles = False
        if self._characteristics != (None, None, None):
            raise psycopg2.ProgrammingError(
                "isolation_level, readonly and deferrable can be set for an outermost transaction block only"
            )
        self._savepoint = self._savepoint or f"greenpg_{len(conn._blocks) + 1}"
        self._run(f"SAVEPOINT {self._quoted_savepoint()}")

    def _quoted_savepoint(self) -> str:
        return extensions.quote_ident(str(self._savepoint), self._conn)

    def _run(self, statement: str) -> None:
        with self._conn.cursor(cursor_factory=extensions.cursor) as cur:
            cur.execute(statement)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not self._conn._blocks.leave(self):
            raise psycopg2.ProgrammingError(
                "transaction blocks were left in the wrong order: an inner block is still open; leave it, and roll back"
            ) from exc
        if isinstance(exc, GeneratorExit) and sys.is_finalizing():
            return False  # the process ends with all of its connections
        if exc is None:
            self._end(commit=not self._force_rollback)
            return False
        is_settled = isinstance(exc, Rollback) and exc.transaction in (None, self)
        try:
            with rollback_deadline(self._conn._gate, exc):
                self._end(commit=False)
        except Exception as error:
            if is_settled or is_interruption(error):
                raise
            logger.warning("rollback after %s failed: %s", type(exc).__name__, str(error))
        return is_settled

    def _end(self, commit: bool) -> None:
        conn = self._conn
        if self._savepoint is not None:
            self._end_nested(conn, commit)
            return
        identity: TransactionIdentity | None = None
        failure: psycopg2.Error | None = None
        try:
            if self._settles:
                conn._want_identity(False)
                failure = self._settle_queue(conn) if commit else None
                if failure is not None:
                    end_transaction(conn, commit=False)
                    raise failure
                identity = ask_identity(conn) if commit else None
            end_transaction(conn, commit)
        except BaseException as error:
            if identity is not None:
                note_transaction(error, identity)
            raise
        finally:
            del failure  # no circle through its traceback
            self._restore_session(conn)

    def _end_nested(self, conn: GuardedConnection, commit: bool) -> None:
        if conn.closed:
            if commit:
                raise _closed()
            return
        failure = self._settle_queue(conn)
        name = self._quoted_savepoint()
        is_failed = conn.get_transaction_status() == _INERROR
        is_kept = commit and not is_failed and failure is None
        self._run(f"RELEASE {name}" if is_kept else f"ROLLBACK TO {name}; RELEASE {name}")
        try:
            if commit and failure is not None:
                raise failure
        finally:
            del failure  # no circle through its traceback
        if commit and is_failed:
            raise _failed("rolled back to its beginning instead")

    @staticmethod
    def _settle_queue(conn: GuardedConnection) -> psycopg2.Error | None:
        """Of a pipeline: nothing of the block is under way afterwards. Gives the error of one of its statements."""
        if conn._gate.queue is not None:
            try:
                conn._gate.queue.settle()
            except psycopg2.Error as error:
                if is_interruption(error) or conn.closed:
                    raise
                return error
        return None


def end_transaction(conn: GuardedConnection, commit: bool) -> bool:
    """The end of a block: commit, or roll back, psycopg2's transaction. Suspends if there is one. Was it committed?

    Raises `psycopg2.errors.InFailedSqlTransaction` if a transaction in error, which the server can only roll back, was
    to be committed, and `psycopg2.InterfaceError` if the connection is closed.
    """
    status = conn.get_transaction_status()
    if status == _IDLE and conn._driver_status == _READY:
        return False
    if conn.closed:
        if commit:
            raise _closed()
        return False
    is_failed = status == _INERROR
    conn._end_transaction("commit" if commit and not is_failed else "rollback")
    if commit and is_failed:
        raise _failed("rolled back instead of committed")
    return commit


def _closed() -> psycopg2.Error:
    error = psycopg2.InterfaceError("connection already closed when the transaction block was to be committed")
    note_commit_outcome(error, UNKNOWN)
    return error


def _failed(what: str) -> psycopg2.Error:
    error = psycopg2.errors.InFailedSqlTransaction(
        f"the transaction was in error, so it has been {what}: an error of a statement in it was not let out of the "
        "block"
    )
    note_commit_outcome(error, ROLLED_BACK)
    return error


def _checked_isolation_level(level: int | str | None) -> str | None:
    if isinstance(level, int) and level in ISOLATION_LEVELS:
        return ISOLATION_LEVELS[level]
    if isinstance(level, str) and level.upper() in ISOLATION_LEVELS.values():
        return level.upper()
    if level is None:
        return None
    names = ", ".join(map(repr, ISOLATION_LEVELS.values()))
    raise ValueError(f"unknown isolation level {level!r}: use one of {names}, or psycopg2's ISOLATION_LEVEL constants")
