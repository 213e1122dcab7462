"""`conn.transaction()`: psycopg 3's transaction blocks; nested ones are savepoints."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from .riding import Characteristics, Ride

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger("greenpg.connection")


class Rollback(Exception):
    """Raised in a transaction block, it rolls the block back, and ends it without an error.

    `raise Rollback(transaction)` leaves all blocks up to that one, which is what `conn.transaction()` gave.
    """

    def __init__(self, transaction: Transaction | None = None) -> None:
        super().__init__(transaction)
        self.transaction = transaction


class Transaction:
    """See `Connection.transaction()`."""

    __slots__ = ("_characteristics", "_conn", "_force_rollback", "_ride", "_savepoint")

    def __init__(
        self,
        conn: Connection,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
        isolation_level: int | str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> None:
        self._conn = conn
        self._savepoint = savepoint_name
        self._force_rollback = force_rollback
        self._ride: Ride | None = None
        self._characteristics = None
        if not isolation_level is readonly is deferrable is None:
            self._characteristics = Characteristics(isolation_level, readonly, deferrable)

    @property
    def connection(self) -> Connection:
        """Of which it is a transaction."""
        return self._conn

    @property
    def savepoint_name(self) -> str | None:
        """None for an outermost block, which has no savepoint."""
        return self._savepoint

    def __enter__(self) -> Transaction:
        conn = self._conn
        if conn.closed:
            raise psycopg2.InterfaceError("connection already closed")
        is_outermost = conn._ride is None and conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        if is_outermost:
            self._savepoint = None
            self._ride = Ride(conn, *filter(None, [self._characteristics]))
            self._ride.start()
        else:
            self._begin_nested(conn)
        conn._transactions.append(self)
        return self

    def _begin_nested(self, conn: Connection) -> None:
        if self._characteristics is not None:
            raise psycopg2.ProgrammingError(
                "isolation_level, readonly and deferrable can be set for an outermost transaction block only"
            )
        self._savepoint = self._savepoint or f"greenpg_{len(conn._transactions) + 1}"
        self._run(f"SAVEPOINT {self._quoted_savepoint()}")

    def _quoted_savepoint(self) -> str:
        return extensions.quote_ident(str(self._savepoint), self._conn)

    def _run(self, statement: str) -> None:
        with self._conn.cursor(cursor_factory=extensions.cursor) as cur:
            cur.execute(statement)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        conn = self._conn
        if self not in conn._transactions or conn._transactions[-1] is not self:
            if self in conn._transactions:
                conn._transactions.remove(self)
            raise psycopg2.ProgrammingError(
                "transaction blocks were left in the wrong order: an inner block is still open"
            ) from exc
        conn._transactions.pop()
        if exc is None:
            self._end(commit=not self._force_rollback)
            return False
        try:
            self._end(commit=False)
        except Exception as error:  # the first one says more
            logger.warning("rollback after %s failed: %s", type(exc).__name__, error)
        return isinstance(exc, Rollback) and exc.transaction in (None, self)

    def _end(self, commit: bool) -> None:
        if self._ride is not None:
            self._ride.end(commit)
        elif not self._conn.closed:
            name = self._quoted_savepoint()
            self._run(f"RELEASE {name}" if commit else f"ROLLBACK TO {name}; RELEASE {name}")


def forbid_inside(conn: Any, name: str) -> None:
    """ProgrammingError if the connection is in a transaction block, which ends its transaction by itself."""
    if conn._ride is not None:
        raise psycopg2.ProgrammingError(
            f"{name}() is not possible inside a transaction block: leave the block to commit, raise an exception "
            "(greenpg.Rollback for one that goes no further) to roll back"
        )


def settle_before(conn: Any, name: str) -> None:
    """What psycopg2 refuses inside a transaction: done by psycopg2 while nothing has been sent, else refused too."""
    ride = conn._ride
    if ride is None or ride.is_native:
        return
    if not ride.is_pending:
        raise psycopg2.ProgrammingError(f"{name} cannot be used inside a transaction")
    ride.go_native()
