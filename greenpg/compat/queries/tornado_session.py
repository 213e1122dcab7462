"""`TornadoSession`: awaitable queries, as many at a time as the pool has connections."""

from __future__ import annotations

import asyncio
import threading
import warnings
from contextlib import suppress
from types import TracebackType
from typing import Any

from psycopg2 import extras

from .pool import DEFAULT_IDLE_TTL, NoIdleConnectionsError, Pool, PoolFullError, PoolManager
from .results import Results as PlainResults
from .session import DEFAULT_URI, Session, run

DEFAULT_MAX_POOL_SIZE = 25


class Results(PlainResults):
    """The rows of a query. The connection is free already: `free()` and the end of a `with` drop the rows."""

    def free(self) -> None:
        """Drop the rows; what is known of the query stays."""
        self._rows = None
        self.cursor = None

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free()


class TornadoSession(Session):
    """Queries whose results are awaited, for programs with an asyncio loop; tornado's is one.

    `io_loop` (None: the one that runs when a query is made): tornado's IOLoop, or asyncio's event loop. The other
    parameters are `Session`'s; `pool_max_size` (25) queries run at a time, and each has a connection of its own.
    Its methods suspend no task: they give futures.
    """

    def __init__(
        self,
        uri: str = DEFAULT_URI,
        cursor_factory: Any = extras.RealDictCursor,
        pool_idle_ttl: float = DEFAULT_IDLE_TTL,
        pool_max_size: int = DEFAULT_MAX_POOL_SIZE,
        io_loop: Any = None,
        *,
        pool_timeout: float = 0.0,
    ) -> None:
        self._uri = uri
        self._cursor_factory = cursor_factory
        self._pool_options = (pool_idle_ttl, pool_max_size)
        self._pool_timeout = pool_timeout
        self._ioloop = io_loop
        self._pool = self._find_pool()

    def _find_pool(self) -> Pool:
        return PoolManager.pool(self.pid, self._uri, *self._pool_options)

    def query(self, sql: Any, parameters: Any = None) -> Any:
        """A future of the `Results` of a statement, or of psycopg2's error. Doesn't block the loop."""
        return self._execute("execute", sql, parameters)

    def callproc(self, name: str, args: Any = None) -> Any:
        """A future of the `Results` of a stored procedure, or of psycopg2's error. Doesn't block the loop."""
        return self._execute("callproc", name, args)

    def close(self) -> None:
        """Close the pool; the next query makes a new one. `pool.ActivePoolError` if a query is running."""
        if self.pid in PoolManager.instance():
            PoolManager.remove(self.pid)

    def validate(self) -> None:
        """Deprecated, as in queries: it does nothing."""
        warnings.warn("All functionality removed from this method", DeprecationWarning, stacklevel=2)

    def _execute(self, method: str, sql: Any, parameters: Any) -> asyncio.Future[Any]:
        loop = getattr(self._ioloop, "asyncio_loop", self._ioloop) or asyncio.get_running_loop()
        future = loop.create_future()
        # A thread, or what the program's monkey-patching makes of it; either way the loop goes on.
        threading.Thread(
            target=self._answer, args=(loop, future, method, sql, parameters), name="TornadoSession", daemon=True
        ).start()
        return future

    def _answer(self, loop: Any, future: Any, method: str, sql: Any, parameters: Any) -> None:
        outcome: object
        try:
            settle, outcome = future.set_result, self._fetch(method, sql, parameters)
        except BaseException as error:
            settle, outcome = future.set_exception, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, future, settle, outcome)

    def _fetch(self, method: str, sql: Any, parameters: Any) -> Results:
        self._pool = pool = self._find_pool()
        try:
            conn = pool.get(self._pool_timeout)
        except NoIdleConnectionsError:
            raise PoolFullError(pool.id) from None
        try:
            conn.autocommit = True
            found: Results = run(pool, self._get_cursor(conn), method, sql, parameters, Results)
            return found
        finally:
            pool.free(conn)

    def _poll_connection(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the original polled its connections from the loop."""


def _settle(future: Any, settle: Any, outcome: Any) -> None:
    if not future.done():  # nor cancelled
        settle(outcome)
