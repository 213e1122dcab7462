"""pgclient 0.2.4 on greenpg: `from greenpg.compat.pgclient import PostgresClient, exceptions`.

Kept, since programs rely on it: one transaction for each `get_cursor()`, rows that can be fetched after it,
`RealDictCursor`, an exhausted pool raises `PoolError` at once, `acquire_conn()` gives a connection that has been tried,
errors of `exceptions` with their texts and fields.

What differs, and why:
- `auto_reconnect` is bounded by `reconnect_timeout` (30 s), and doesn't try again what trying can't mend: a wrong
  password, an unknown database. The original tried for ever, slept for a second each time, and held the pool's lock.
- A connection is tried in autocommit, so it is handed out without an open transaction, and `conn.autocommit = True`
  works. Whatever it was set to, it is off for the next user.
- Returned connections are kept, up to `pool_size`; the original closed all but one.
- An error is of psycopg2's class, too: `except psycopg2.errors.UniqueViolation` catches the same exception as `except
  exceptions.IntegrityConstraintViolation`, and `except PgClientError` catches PoolError and InterfaceError as well.
  Errors that don't come from the server have a message; unknown SQLSTATEs are plain `PgClientError`s (they were
  TypeErrors); all can be pickled.
- New: `timeout` (wait so long for a connection instead of raising at once), `close()` and `with`, and what the README
  says, `username=` and `conn.execute()`. Importing it doesn't configure the program's logging.
- `_pool` is a `greenpg.ConnectionPool`. The properties of 0.2.3 (`cursor`, `dict_cursor`, `nt_cursor`) are there.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import psycopg2
import psycopg2.extras
import psycopg2.pool

from .. import ConnectionPool, PoolClosed, PoolTimeout, errors

__all__ = ["PostgresClient", "exceptions"]
__version__ = "0.2.4"

logger = logging.getLogger("pgclient")

#: Seconds that the pool has for connecting before an exhausted client says so.
_SHORT = 1.0


class PgClientError(psycopg2.Error):
    """Every error of the client. Fields: `message`, `pgcode`, `pgerror`, `diag`."""

    CLASS_CODE: str | None = None
    # psycopg2's own are read-only: these stand before them.
    message: str | None = None
    pgcode: Any = None
    pgerror: Any = None
    diag: Any = None

    def __init__(self, **fields: Any) -> None:
        super().__init__(*filter(None, [fields.get("message")]))
        for name, value in fields.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.message}, {self.pgcode}, {self.diag})"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {"message": self.message, "pgcode": self.pgcode, "pgerror": self.pgerror, "diag": self.diag}
        if isinstance(self.diag, psycopg2.extensions.Diagnostics):
            names = [name for name in dir(self.diag) if not name.startswith("_")]
            fields["diag"] = SimpleNamespace(**{name: getattr(self.diag, name) for name in names})
        return _rebuilt, (*_parts.get(type(self), (type(self), None)), fields)


class ErrorsRegistry:
    """Finds the class for a SQLSTATE."""

    ERRORS: ClassVar[dict[str, type[PgClientError]]] = {}

    @classmethod
    def register(cls, code: str) -> Callable[[type[PgClientError]], type[PgClientError]]:
        """Class decorator: errors whose SQLSTATE begins with `code` are of this class."""

        def wrapper(error_class: type[PgClientError]) -> type[PgClientError]:
            error_class.CLASS_CODE = code
            cls.ERRORS[code] = error_class
            return error_class

        return wrapper

    @classmethod
    def get_error_class(cls, pg_code: str | None) -> type[PgClientError]:
        """The class for a SQLSTATE; `PgClientError` if there's none."""
        return cls.ERRORS.get((pg_code or "")[:2], PgClientError)

    @classmethod
    def get_error(cls, pg_error: Any) -> PgClientError:
        """The error of `exceptions` for one of psycopg2's. It is of psycopg2's class, too."""
        psycopg2_class = type(pg_error)
        error_class = _composed(cls.get_error_class(pg_error.pgcode), psycopg2_class)
        message = getattr(pg_error, "message", pg_error.pgerror) or str(pg_error).strip()
        error = error_class(message=message, pgcode=pg_error.pgcode, pgerror=pg_error.pgerror, diag=pg_error.diag)
        if issubclass(psycopg2_class, psycopg2.Error):
            error.__dict__.update(vars(pg_error))  # what greenpg knows of it: errors.commit_outcome()
        return error


_composed_classes: dict[tuple[type, type], type[PgClientError]] = {}
#: The other way round, for pickling.
_parts: dict[type, tuple[type, type | None]] = {}


def _composed(error_class: type[PgClientError], psycopg2_class: type) -> type[PgClientError]:
    """The class that is both, under the name of the first."""
    if issubclass(error_class, psycopg2_class) or not issubclass(psycopg2_class, psycopg2.Error):
        return error_class
    parts = (error_class, psycopg2_class)
    if parts not in _composed_classes:
        composed = type(error_class.__name__, parts, {"__module__": error_class.__module__})
        _parts[_composed_classes.setdefault(parts, composed)] = parts
    return _composed_classes[parts]


def _rebuilt(error_class: type[PgClientError], psycopg2_class: type | None, fields: dict[str, Any]) -> PgClientError:
    return (error_class if psycopg2_class is None else _composed(error_class, psycopg2_class))(**fields)


exceptions = ModuleType(f"{__name__}.exceptions", "One class for each SQLSTATE class, all of them `PgClientError`s.")
for _code, _core_class in errors.SQLSTATE_CLASSES.items():
    _class = type(_core_class.__name__, (PgClientError, _core_class), {"__module__": exceptions.__name__})
    setattr(exceptions, _class.__name__, ErrorsRegistry.register(_code)(_class))
exceptions.__dict__.update(PgClientError=PgClientError, ErrorsRegistry=ErrorsRegistry, registry=ErrorsRegistry)
# So that `from greenpg.compat.pgclient.exceptions import ...` works, as it did with pgclient.
sys.modules[exceptions.__name__] = exceptions


class PoolError(PgClientError, psycopg2.pool.PoolError):
    """All connections are lent, or one was returned that isn't."""


class PostgresClient:
    """A pool of connections, and cursors with a transaction of their own. `pool_size` connections at most.

    `timeout` (0): seconds to wait for a connection when all are lent; then, or at once, PoolError is raised.
    `reconnect_timeout` (30): seconds that connecting is tried again for, with `auto_reconnect`.
    Its methods suspend where they talk to the server, and while they wait.
    """

    def __init__(
        self,
        dsn: str | None = None,
        database: str | None = None,
        user: str | None = None,
        password: str | None = None,
        host: str | None = None,
        port: int | str | None = None,
        pool_size: int = 1,
        auto_reconnect: bool = True,
        cursor_factory: Any = None,
        *,
        username: str | None = None,
        timeout: float = 0.0,
        reconnect_timeout: float = 30.0,
    ) -> None:
        if pool_size < 1:
            raise ValueError(f"Wrong pool_size value. Must be >= 1. Current: {pool_size}")
        self.dsn = dsn
        self.auto_reconnect = auto_reconnect
        self.timeout = timeout
        self.reconnect_timeout = reconnect_timeout
        self._cursor_factory = cursor_factory or psycopg2.extras.RealDictCursor
        given = {"database": database, "user": user or username, "password": password, "host": host, "port": port}
        parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._pool = ConnectionPool(
            dsn or "",
            kwargs=parameters,
            min_size=1,
            max_size=pool_size,
            open=False,
            fail_fast=self._fails_fast,
            refused_after=float("inf"),
        )
        self._lent: set[Any] = set()
        self._lent_count = 0  # those that are being acquired, too
        self._count_lock = threading.Lock()
        self._pool.open(wait=True, timeout=reconnect_timeout)

    def _fails_fast(self, error: Exception) -> bool:
        """Whether connecting has failed in a way that trying again won't mend."""
        if not self.auto_reconnect or not isinstance(error, psycopg2.OperationalError) or _is_hopeless(error):
            return True
        logger.warning("%s", ErrorsRegistry.get_error(error))
        logger.info("Reconnecting")
        return False

    def get_cursor(self, cursor_factory: Any = None) -> Any:
        """`with client.get_cursor() as cursor:` one transaction, committed at the end, rolled back on error.

        psycopg2's errors come out as those of `exceptions`. Suspends as psycopg2 does.
        """
        return self._get_cursor_ctx(cursor_factory or self._cursor_factory)

    @contextmanager
    def _get_cursor_ctx(self, cursor_factory: Any) -> Iterator[Any]:
        conn = self.acquire_conn()
        try:
            yield conn.cursor(cursor_factory=cursor_factory)
            conn.commit()
        except PgClientError:  # of another client, in the same block
            raise
        except psycopg2.Error as error:
            try:
                conn.rollback()
            except psycopg2.Error as second:
                if errors.is_interruption(second):
                    raise  # else it is closed already
            if errors.is_interruption(error):
                raise
            raise ErrorsRegistry.get_error(error)  # noqa: B904 - the original's __context__, without a __cause__
        finally:
            self.release_conn(conn)

    def acquire_conn(self) -> Any:
        """Borrow a connection, to be given back by `release_conn()`. Raises PoolError when all are lent.

        Suspends for a round trip with `auto_reconnect`, and for as long as connecting takes.
        """
        with self._count_lock:
            if self._lent_count >= self._pool.max_size and not self.timeout:
                raise PoolError(message="connection pool exhausted")
            self._lent_count += 1
        try:
            conn = self._getconn()
            self._lent.add(conn)
            return self._check_connection(conn) if self.auto_reconnect else conn
        except BaseException:
            with self._count_lock:
                self._lent_count -= 1
            raise

    def _getconn(self) -> Any:
        try:
            return self._lend(max(self.timeout, _SHORT))
        except PoolTimeout as error:
            if self._lent_count > self._pool.max_size:
                raise PoolError(message=f"connection pool exhausted: {error}") from None
        except PoolClosed as error:
            raise PoolError(message=f"connection pool is closed: {error}") from None
        return self._lend(self.reconnect_timeout)

    def _lend(self, timeout: float) -> Any:
        # A connection may be released by another task than acquired it, after that one's end.
        return self._pool.getconn(timeout, take_back=False)

    def _check_connection(self, conn: Any) -> Any:
        """The connection if it is alive, or else another one in its place. Suspends."""
        give_up_at = time.monotonic() + self.reconnect_timeout
        while True:
            try:
                if _is_alive(conn):
                    return conn
                conn.close()
            except BaseException:
                self._lent.remove(conn)
                conn.close()
                self._pool.putconn(conn)
                raise
            self._lent.remove(conn)
            self._pool.putconn(conn)
            conn = self._lend(max(give_up_at - time.monotonic(), _SHORT))
            self._lent.add(conn)

    def release_conn(self, conn: Any, close: bool = False) -> None:
        """Give a borrowed connection back; an open transaction is rolled back. `close`: don't keep it.

        Raises PoolError for a connection that isn't lent by this client. Suspends for a rollback.
        """
        if conn not in self._lent:
            raise PoolError(message="trying to put unkeyed connection: it isn't lent by this client")
        self._lent.remove(conn)
        try:
            if close:
                conn.close()
            elif not conn.closed and conn.autocommit:
                conn.rollback()
                conn.autocommit = False
        finally:
            self._pool.putconn(conn)
            with self._count_lock:
                self._lent_count -= 1

    @property
    def available_connections(self) -> int:
        """How many connections are idle."""
        return self._pool.get_stats()["pool_available"]

    @property
    def cursor(self) -> Any:
        """`with client.cursor as cur:` as `get_cursor()`, with the connection's own kind of cursor."""
        return self._get_cursor_ctx(None)

    @property
    def dict_cursor(self) -> Any:
        """The same with psycopg2's `DictCursor`."""
        return self.get_cursor(psycopg2.extras.DictCursor)

    @property
    def nt_cursor(self) -> Any:
        """The same with psycopg2's `NamedTupleCursor`."""
        return self.get_cursor(psycopg2.extras.NamedTupleCursor)

    def close(self) -> None:
        """Close all connections; those that are lent, when they come back."""
        self._pool.close()

    def __enter__(self) -> PostgresClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _is_alive(conn: Any) -> bool:
    if conn.closed:
        return False
    try:
        conn.autocommit = True
        conn.cursor().execute("SELECT 1")
        conn.autocommit = False
    except psycopg2.Error as error:
        if errors.is_interruption(error):
            raise
        return False
    return True


def _is_hopeless(error: psycopg2.OperationalError) -> bool:
    """Whether the server has answered, and not that it is busy, starting or stopping: trying again won't help."""
    text = str(error)
    return "FATAL" in text and not any(
        hint in text for hint in ("too many", "starting up", "shutting down", "remaining")
    )
