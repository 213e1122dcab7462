"""`SharedConnection`: many tasks, one connection, taking turns."""

from __future__ import annotations

import logging
import os
from types import TracebackType
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..connection.connect.connecting import connect
from ..connection.connect.dsn import checked_dsn, masked_dsn
from ..connection.connection import Connection
from ..connection.patching import check_patched
from ..errors import is_interruption
from .turns import Turns

logger = logging.getLogger("greenpg.shared")

_LEFT_OPEN = "Did not commit or rollback open transaction before releasing connection."


class SharedConnection:
    """One connection that any number of tasks use in turn, first come, first served.

        shared = greenpg.SharedConnection("postgresql://app@db/app")
        with shared() as conn:
            with conn.cursor() as cur:
                cur.execute("UPDATE ...")
            conn.commit()

    It connects when it is first used, and again when the connection was closed or lost. At the end of a block:

    - a transaction that is still open (a SELECT opens one, too) is rolled back, and RuntimeError is raised;
    - if the block raises a `psycopg2.Error`, the connection is closed, and the next user gets a new one;
    - if it raises anything else, a kill or a timeout included, an open transaction is rolled back.

    The exception of a block passes unchanged. What a block has set on the connection (`autocommit`, isolation level,
    `readonly`, `deferrable`, client encoding, `cursor_factory`) is put back for the next one; what it has SET by SQL
    stays.

    `dsn` and the keywords are those of `greenpg.connect`. Raises `psycopg2.ProgrammingError` if they are malformed. It
    may be used from any task of any native thread; after a fork, the child gets a connection of its own.
    """

    def __init__(self, dsn: str = "", **kwargs: Any) -> None:
        self._connect_kwargs = kwargs
        self._dsn = dsn
        self._shown_dsn = masked_dsn(checked_dsn(dsn, **_for_libpq(kwargs)))
        self._start_here()

    def __call__(self, *, timeout: float | None = None, close: bool = False) -> Turn:
        """`with shared() as conn:` the connection, exclusively, for the block.

        Entering suspends until it's the task's turn, for at most `timeout` seconds (None, the default: no limit; 0:
        doesn't wait), and while it connects. `close`: close the connection at the end of the block.

        Entering raises `errors.WaitTimeout`; what `greenpg.connect` raises; RuntimeError if the task has the turn
        already. Leaving raises RuntimeError if a transaction was left open.
        """
        return Turn(self, timeout, close)

    def close(self, *, timeout: float | None = None) -> None:
        """Close the connection when it is the caller's turn; suspends as entering does. The next use opens it again."""
        self._here().take(timeout)
        try:
            self._drop()
        finally:
            self._turns.give_back()

    @property
    def dsn(self) -> str:
        """The connection string, its password masked."""
        return self._shown_dsn

    @property
    def closed(self) -> bool | int:
        """True before the first use; then psycopg2's 0 (open), 1 (closed) or 2 (lost). Doesn't suspend."""
        conn = self._conn
        return True if conn is None else int(conn.closed)

    @property
    def status(self) -> int | None:
        """The connection's transaction status, psycopg2's TRANSACTION_STATUS_*; None without one. Doesn't suspend."""
        conn = self._conn
        return None if conn is None or conn.closed else int(conn.get_transaction_status())

    def __str__(self) -> str:
        return self._shown_dsn

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__module__}.{type(self).__qualname__}: {self._shown_dsn} ({state})>"

    # -- for Turn

    def _here(self) -> Turns:
        if self._pid != os.getpid():  # the connection is the parent's; psycopg2 leaves it alone when it is forgotten
            self._start_here()
        return self._turns

    def _start_here(self) -> None:
        self._pid = os.getpid()
        self._turns = Turns()
        self._conn: Connection | None = None
        self._settings: tuple[Any, ...] = ()

    def _open(self) -> Connection:
        """The connection, for who has the turn. Suspends if it has to connect."""
        if self._conn is not None and not _is_usable(self._conn):
            self._drop()
        if self._conn is None:
            check_patched()
            logger.debug("connecting to %s", self._shown_dsn)
            conn = connect(self._dsn, **self._connect_kwargs)
            self._settings = _settings_of(conn)
            self._conn = conn
        return self._conn

    def _finish(self, exception: BaseException | None, close: bool) -> None:
        """Bring the connection back to where the next user may have it. Suspends if there's work to do."""
        conn = self._conn
        is_error = isinstance(exception, psycopg2.Error) and not is_interruption(exception)
        if conn is None or conn.closed or is_error:
            self._drop()
            return
        was_clean = _is_clean(conn)
        try:
            if not was_clean:
                if exception is not None:
                    logger.warning("rolling back after %s: %s", type(exception).__name__, self)
                conn.rollback()
            self._restore_settings(conn)
        except BaseException as error:  # nobody knows how far it came
            self._drop()
            if is_interruption(error) or not isinstance(error, psycopg2.Error):
                raise
            logger.warning("could not clean up %s, which is closed: %s", self, str(error).strip())
        if not _is_clean(conn):  # a BEGIN in autocommit is none that rollback() knows of
            self._drop()
        if not was_clean and exception is None:
            raise RuntimeError(_LEFT_OPEN)
        if close:
            self._drop()

    def _restore_settings(self, conn: Connection) -> None:
        if _settings_of(conn) == self._settings:
            return
        autocommit, isolation_level, readonly, deferrable, encoding, cursor_factory = self._settings
        conn.cursor_factory = cursor_factory
        conn.set_session(
            isolation_level="default" if isolation_level is None else isolation_level,
            readonly="default" if readonly is None else readonly,
            deferrable="default" if deferrable is None else deferrable,
            autocommit=autocommit,
        )
        if conn.encoding != encoding:
            conn.set_client_encoding(encoding)
            if not conn.autocommit:
                conn.commit()

    def _drop(self) -> None:
        """Close the connection. Suspends only if another task, whose turn it isn't, is inside."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        try:
            conn.close()
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            logger.info("closing the connection failed: %s", error)


class Turn:
    """What `shared()` gives: `with` it, the connection is the block's."""

    __slots__ = ("_close", "_shared", "_timeout", "_turns")

    def __init__(self, shared: SharedConnection, timeout: float | None, close: bool) -> None:
        self._shared = shared
        self._timeout = timeout
        self._close = close

    def __enter__(self) -> Connection:
        turns = self._shared._here()
        turns.take(self._timeout)
        self._turns = turns
        try:
            return self._shared._open()
        except BaseException:
            turns.give_back()
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._shared._finish(exc, self._close)
        finally:
            self._turns.give_back()


def _for_libpq(kwargs: dict[str, Any]) -> dict[str, Any]:
    own = ("connection_factory", "cursor_factory", "total_connect_timeout")
    for name in ("async", "async_"):
        if kwargs.get(name):
            raise TypeError("an asynchronous connection can't be shared")
    return {name: value for name, value in kwargs.items() if name not in own}


def _is_clean(conn: Connection) -> bool:
    return bool(
        not conn.closed
        and conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        and conn.status == extensions.STATUS_READY
    )


def _is_usable(conn: Connection) -> bool:
    """Whether the connection is there, and as it was left. Doesn't suspend, and costs no round trip."""
    try:
        # The first poll takes in the server's last words, the second one sees that it has hung up.
        conn.poll()
        conn.poll()
        return _is_clean(conn)
    except psycopg2.Error:
        return False


def _settings_of(conn: Connection) -> tuple[Any, ...]:
    return conn.autocommit, conn.isolation_level, conn.readonly, conn.deferrable, conn.encoding, conn.cursor_factory
