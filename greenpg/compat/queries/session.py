"""`Session`: a connection and a cursor, for as long as the session lives."""

from __future__ import annotations

import hashlib
import logging
from types import TracebackType
from typing import Any

import psycopg2
from psycopg2 import extensions, extras

from .pool import DEFAULT_IDLE_TTL, DEFAULT_MAX_SIZE, Pool, PoolManager
from .results import Results

LOGGER = logging.getLogger("queries.session")

DEFAULT_ENCODING = "UTF8"
DEFAULT_URI = "postgresql://localhost:5432"


class Session:
    """A connection of the URI's pool and a cursor on it, held until `close()`, the end of a `with`, or deletion.

    - `uri`: where to connect to. `cursor_factory`: what rows are like. `autocommit` (True).
    - `pool_idle_ttl` (60): seconds after which unused connections are closed. `pool_max_size` (1, or the environment's
      QUERIES_MAX_POOL_SIZE): connections in the pool. The first session of a pool decides.
    - `pool_timeout` (0): seconds to wait for a connection when all are in use.

    Suspends. Raises `pool.NoIdleConnectionsError`, and psycopg2's errors if it can't connect.
    """

    INTRANS = extensions.STATUS_IN_TRANSACTION
    PREPARED = extensions.STATUS_PREPARED
    READY = extensions.STATUS_READY
    SETUP = extensions.STATUS_SETUP

    TX_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE
    TX_IDLE = extensions.TRANSACTION_STATUS_IDLE
    TX_INERROR = extensions.TRANSACTION_STATUS_INERROR
    TX_INTRANS = extensions.TRANSACTION_STATUS_INTRANS
    TX_UNKNOWN = extensions.TRANSACTION_STATUS_UNKNOWN

    _conn: Any = None
    _cursor: Any = None

    def __init__(
        self,
        uri: str = DEFAULT_URI,
        cursor_factory: Any = extras.RealDictCursor,
        pool_idle_ttl: float = DEFAULT_IDLE_TTL,
        pool_max_size: int = DEFAULT_MAX_SIZE,
        autocommit: bool = True,
        *,
        pool_timeout: float = 0.0,
    ) -> None:
        self._uri = uri
        self._cursor_factory = cursor_factory
        self._pool = PoolManager.pool(self.pid, uri, pool_idle_ttl, pool_max_size)
        try:
            self._conn = self._pool.get(pool_timeout)
        except psycopg2.Error:
            PoolManager.clean(self.pid)  # lest a pool stay that nobody can connect by
            raise
        self._conn.autocommit = autocommit
        self._cursor = self._get_cursor(self._conn)

    def query(self, sql: Any, parameters: Any = None) -> Any:
        """The `Results` of a statement. Suspends; raises psycopg2's errors."""
        return self._run("execute", sql, parameters)

    def callproc(self, name: str, args: Any = None) -> Any:
        """The `Results` of a stored procedure. Suspends; raises psycopg2's errors."""
        return self._run("callproc", name, args)

    def _run(self, method: str, sql: Any, parameters: Any) -> Any:
        self._open_connection()
        return run(self._pool, self._cursor, method, sql, parameters)

    def close(self) -> None:
        """Close the connection, too. InterfaceError if the session is closed. Suspends."""
        conn = self._open_connection()
        LOGGER.info("Closing connection %r in %s", conn, self.pid)
        self._conn = self._cursor = None
        conn.close()
        self._pool.free(conn)

    def set_encoding(self, value: str = DEFAULT_ENCODING) -> None:
        """Set the client encoding, for this session. Suspends if it is another one."""
        if self.encoding != value:
            self._open_connection().set_client_encoding(value)

    @property
    def backend_pid(self) -> int:
        """The server's process for this session."""
        return int(self._open_connection().get_backend_pid())

    @property
    def connection(self) -> Any:
        """psycopg2's connection; None after the session."""
        return self._conn

    @property
    def cursor(self) -> Any:
        """psycopg2's cursor; None after the session."""
        return self._cursor

    @property
    def encoding(self) -> str:
        """The client encoding."""
        return str(self._open_connection().encoding)

    @property
    def notices(self) -> list[str]:
        """The last 50 notices of the server, in this session."""
        notices: list[str] = self._open_connection().notices
        return notices

    @property
    def pid(self) -> str:
        """The pool's ID."""
        return hashlib.md5(f"{type(self).__name__}:{self._uri}".encode(), usedforsecurity=False).hexdigest()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, self._conn, self._cursor = self._conn, None, None
        if conn is not None:
            self._pool.free(conn)

    def __del__(self) -> None:
        if self._conn is not None:
            self._pool.forget(self._conn)

    def _open_connection(self) -> Any:
        if self._conn is None:
            raise psycopg2.InterfaceError("Connection not open")
        return self._conn

    def _get_cursor(self, connection: Any, name: str | None = None) -> Any:
        cursor = connection.cursor(name=name, cursor_factory=self._cursor_factory)
        if name is not None:
            cursor.scrollable = True
            cursor.withhold = True
        return cursor


def run(pool: Pool, cursor: Any, method: str, sql: Any, parameters: Any, make_results: Any = Results) -> Any:
    """The results of `cursor.execute` or `callproc`, counted in the pool's report."""
    pool.executions += 1
    pool.executing += 1
    try:
        getattr(cursor, method)(sql, parameters)
    except psycopg2.Error:
        pool.exceptions += 1
        raise
    finally:
        pool.executing -= 1
    return make_results(cursor)
