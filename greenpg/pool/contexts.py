"""What `with pool.connection()` and `with pool.cursor()` enter. Classes with slots: generators cost more."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..connection.riding import Ride, hide_autocommit, show_autocommit
from .healing import note_error
from .returning import IDLE_STATUS

if TYPE_CHECKING:
    from .pool import ConnectionPool

logger = logging.getLogger("greenpg.pool")


class ConnectionContext:
    """Lends a connection for a block: commits at its end, rolls back if it raises, and returns it in any case."""

    __slots__ = ("_conn", "_lent_at", "_pool", "_timeout")

    def __init__(self, pool: ConnectionPool, timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __enter__(self) -> Any:
        self._conn = conn = self._pool._lend(self._timeout)
        self._lent_at = conn._slot.lent_at
        if conn._hides_autocommit:
            show_autocommit(conn)
        return conn

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn = self._conn
        if conn._slot.lent_at != self._lent_at:
            return  # the block has returned it, and it may be somebody else's by now
        if exc is not None:
            note_error(self._pool, conn, exc)
        try:
            if conn.get_transaction_status() != IDLE_STATUS:
                finish_transaction(conn, exc_type)
        finally:
            # Killed in the commit or not: the pool looks at the connection's state and does what is needed.
            self._pool.putconn(conn)


class CursorContext:
    """Lends a cursor in a transaction of its own: commits at the end, rolls back if the block raises.

    BEGIN rides with the first statement (see connection/riding.py), unless the connections are in autocommit.
    """

    __slots__ = ("_conn", "_cursor", "_cursor_factory", "_lent_at", "_pool", "_timeout")

    def __init__(self, pool: ConnectionPool, cursor_factory: Any, timeout: float | None) -> None:
        self._pool = pool
        self._cursor_factory = cursor_factory
        self._timeout = timeout
        self._conn: Any = None
        self._cursor: Any = None

    def __enter__(self) -> Any:
        self._conn = conn = self._pool._lend(self._timeout)
        self._lent_at = conn._slot.lent_at
        try:
            if not conn._hides_autocommit:
                hide_autocommit(conn)
            if conn._hides_autocommit or not conn.autocommit:
                ride = Ride(conn)
                ride.session_reset = self._pool._session_reset
                ride.start()
            self._cursor = cursor = conn.cursor(None, self._cursor_factory)
        except BaseException:
            self._pool.putconn(conn)
            raise
        return cursor

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, self._conn = self._conn, None
        cursor, self._cursor = self._cursor, None
        if conn._slot.lent_at != self._lent_at:
            return
        if exc is not None:
            note_error(self._pool, conn, exc)
        try:
            if conn._ride is not None:
                end_ride(conn._ride, exc_type)
            else:
                finish_transaction(conn, exc_type)
            cursor.close()
        finally:
            self._pool.putconn(conn)


class TransactionContext(ConnectionContext):
    """Lends a connection for a transaction block, `conn.transaction()`."""

    __slots__ = ("_options", "_transaction")

    def __init__(self, pool: ConnectionPool, timeout: float | None, options: dict[str, Any]) -> None:
        super().__init__(pool, timeout)
        self._options = options
        self._transaction: Any = None

    def __enter__(self) -> Any:
        # Not super().__enter__(), which would show the autocommit that is to be hidden.
        self._conn = conn = self._pool._lend(self._timeout)
        self._lent_at = conn._slot.lent_at
        try:
            if not conn._hides_autocommit:
                hide_autocommit(conn)
            self._transaction = conn.transaction(**self._options)
            self._transaction.__enter__()
            conn._ride.session_reset = self._pool._session_reset
        except BaseException:
            super().__exit__(*sys.exc_info())
            raise
        return conn

    def __exit__(  # type: ignore[override]  # the others never settle an error
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        transaction, self._transaction = self._transaction, None
        try:
            is_settled: bool = transaction.__exit__(exc_type, exc, traceback)
        except BaseException:
            super().__exit__(*sys.exc_info())
            raise
        if is_settled:
            exc_type = exc = traceback = None
        super().__exit__(exc_type, exc, traceback)
        return is_settled


def end_ride(ride: Ride, exc_type: type[BaseException] | None) -> None:
    """Commit, or roll back after an error without hiding it. Suspends if anything was sent."""
    if exc_type is None:
        ride.end(commit=True)
        return
    try:
        ride.end(commit=False)
    except Exception as error:
        logger.warning("rollback after %s failed: %s", exc_type.__name__, error)


def finish_transaction(conn: Any, exc_type: type[BaseException] | None) -> None:
    """Commit, or roll back after an error without hiding it. Suspends if there is a transaction.

    A connection that is closed has nothing to finish: whatever broke it has been raised to the block already.
    """
    if conn.closed or conn.get_transaction_status() == IDLE_STATUS:
        return
    if exc_type is None:
        conn.commit()
        return
    try:
        conn.rollback()
    except Exception as error:
        logger.warning("rollback after %s failed: %s", exc_type.__name__, error)
