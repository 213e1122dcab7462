"""What `with pool.connection()` and `with pool.cursor()` enter. Classes with slots: generators cost more."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..connection.transaction import end_transaction
from ..errors import COMMITTED, commit_outcome, is_interruption, note_commit_outcome
from .healing import note_error
from .returning import READY

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
        return conn

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn = self._conn
        if conn._slot.lent_at != self._lent_at:
            return  # the block has returned it, and it may be somebody else's by now
        if exc is None and conn.closed and conn._driver_status == READY:
            self._pool.putconn(conn)  # the block has closed it, and nothing was open in it
        else:
            finish(self._pool, conn, exc)


class CursorContext:
    """Lends a cursor in a transaction of its own: commits at the end, rolls back if the block raises."""

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
            self._cursor = cursor = conn.cursor(None, self._cursor_factory)
        except BaseException:
            self._pool.putconn(conn)
            raise
        if not conn.autocommit:
            conn._blocks.append(self)
        return cursor

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, self._conn = self._conn, None
        cursor, self._cursor = self._cursor, None
        if conn._slot.lent_at != self._lent_at:
            return
        conn._blocks.clear()
        try:
            finish(self._pool, conn, exc)
        finally:
            cursor.close()


class TransactionContext(ConnectionContext):
    """Lends a connection for a transaction block, `conn.transaction()`."""

    __slots__ = ("_options", "_transaction")

    def __init__(self, pool: ConnectionPool, timeout: float | None, options: dict[str, Any]) -> None:
        super().__init__(pool, timeout)
        self._options = options
        self._transaction: Any = None

    def __enter__(self) -> Any:
        conn = super().__enter__()
        try:
            self._transaction = conn.transaction(**self._options)
            self._transaction.__enter__()
        except BaseException:
            super().__exit__(*sys.exc_info())
            raise
        return conn

    def __exit__(  # type: ignore[override]  # the others never settle an error
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        transaction, self._transaction = self._transaction, None
        if self._conn._slot.lent_at != self._lent_at:
            return False
        try:
            is_settled: bool = transaction.__exit__(exc_type, exc, traceback)
        except BaseException:
            super().__exit__(*sys.exc_info())
            raise
        if is_settled:
            exc_type = exc = traceback = None
        super().__exit__(exc_type, exc, traceback)
        return is_settled


def finish(pool: ConnectionPool, conn: Any, exc: BaseException | None) -> None:
    """The end of a block that has raised the exception, or None: commit, or roll back without hiding the exception,
    and give the connection back. Suspends if there is a transaction."""
    is_committed = False
    try:
        if exc is None:
            is_committed = end_transaction(conn, commit=True)
        else:
            note_error(pool, conn, exc)
            try:
                end_transaction(conn, commit=False)
            except Exception as error:
                if is_interruption(error):
                    raise
                logger.warning("rollback after %s failed: %s", type(exc).__name__, error)
    finally:
        # Killed in the commit or not: the pool looks at the connection's state and does what is needed.
        try:
            pool.putconn(conn)
        except BaseException as error:
            if is_committed and commit_outcome(error) is None:
                note_commit_outcome(error, COMMITTED)
            raise
