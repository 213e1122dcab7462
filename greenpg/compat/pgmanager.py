"""pgtoolkit's PgManager on greenpg: `from greenpg.compat import pgmanager; pgm = pgmanager.get_instance()`.

Its source is lost; this follows its manual (2014). Kept: connections by name, made when they are needed; what isn't
committed is rolled back when a connection is returned; dict rows with attributes; the loggers `pgmanager_sql` (each
statement before it runs, and what it raised) and `pgmanager_notices`; LISTEN by name.

What differs, and why:
- A name is a `greenpg.ConnectionPool`: of `pool_size` connections (1) that are kept, and `max_size` (100) at most; then
  `get_conn()` waits for 30 s. An unreachable server raises psycopg2's error, in time by `connect_timeout`.
- A listening connection is a `greenpg.Listener`: any number of tasks wait on one connection, and each hears every
  notification from its first `wait_for_notify()` on; none is lost between two waits; after a lost connection it listens
  again. In parallel, the original lost notifications. The channel is unquoted, as in `LISTEN CHAT`: it hears `chat`.
- Notices are logged once: by `cursor()` when the block ends, else by `log_notices()`. Statements are logged without
  their parameters.
- Names remembered from the sources, which nobody can check: `destroy_conn`, `knows_conn`, `PgManagerError`, `RowDict`,
  the cursor's `row_dict`, `adapt`, `fetchone_adapted`, `fetchall_adapted` and `lstrip`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2 import extensions

from .. import Connection, ConnectionPool, Gap, Listener, SqlLog
from .. import Cursor as GreenCursor
from .. import RowDict as GreenRowDict

__all__ = ["Cursor", "PgManager", "PgManagerError", "RowDict", "get_instance"]

log_sql = logging.getLogger("pgmanager_sql")
log_notices = logging.getLogger("pgmanager_notices")


class PgManagerError(psycopg2.InterfaceError):
    """An unknown name, one that is taken, or a connection that isn't the manager's."""


class RowDict(GreenRowDict, OrderedDict[str, Any]):
    """A row, as its manual says, as an OrderedDict whose columns are attributes, too."""


class Cursor(GreenCursor):
    """psycopg2's cursor with dict rows, and rows as SQL literals.

    Its methods suspend as `greenpg.Cursor`'s do; those that only convert rows don't.
    """

    def fetchone_dict(self, lstrip: str = "") -> RowDict | None:
        """The next row, `lstrip` taken off the front of the columns' names; None after the last."""
        row = super().fetchone_dict()
        return None if row is None else _stripped(row, lstrip)

    def fetchall_dict(self, lstrip: str = "") -> list[RowDict]:  # type: ignore[override]
        """The remaining rows, `lstrip` taken off the front of the columns' names."""
        return [_stripped(row, lstrip) for row in super().fetchall_dict()]

    def row_dict(self, row: Any, lstrip: str = "") -> RowDict:
        """A row that was fetched before as a dict."""
        return _stripped(RowDict(zip([column[0] for column in self.description or ()], row, strict=True)), lstrip)

    def adapt(self, row: Any) -> list[str]:
        """The values as SQL literals."""
        return [self.mogrify("%s", [value]).decode() for value in row]

    def fetchone_adapted(self) -> list[str] | None:
        """The next row as SQL literals; None after the last."""
        row = self.fetchone()
        return None if row is None else self.adapt(row)

    def fetchall_adapted(self) -> list[list[str]]:
        """The remaining rows as SQL literals."""
        return [self.adapt(row) for row in self.fetchall()]


def _stripped(row: Mapping[str, Any], prefix: str) -> RowDict:
    return RowDict((name.removeprefix(prefix), value) for name, value in row.items())


class _Log(SqlLog):
    """Of one name."""

    def __init__(self, name: str) -> None:
        super().__init__(notice_logger=log_notices)
        self.name = name

    def before(self, cursor: Any, statement: Any, parameters: Any) -> None:
        if log_sql.isEnabledFor(logging.DEBUG):
            log_sql.debug("[%s] %s", self.name, self.shown(cursor, statement, parameters))

    def after(self, cursor: Any, statement: Any, parameters: Any, seconds: float) -> None:
        pass

    def failed(self, cursor: Any, statement: Any, parameters: Any, seconds: float, error: BaseException) -> None:
        log_sql.debug("[%s] %s: %s", self.name, type(error).__name__, str(error).strip())

    def log_notices(self, conn: Any) -> None:
        """Not after each statement, but when PgManager is asked to."""

    def log_new_notices(self, conn: Any) -> None:
        super().log_notices(conn)


class _Named:
    """What is known by a name."""

    def __init__(self, name: str, dsn: str, parameters: dict[str, Any]) -> None:
        self.name = name
        self.dsn = dsn
        self.parameters = parameters


class _NamedPool(_Named):
    def __init__(
        self,
        name: str,
        dsn: str,
        parameters: dict[str, Any],
        sizes: tuple[int, int],
        isolation_level: Any,
        init_statement: str | None,
    ) -> None:
        super().__init__(name, dsn, parameters)
        self.sizes = sizes
        self.isolation_level = isolation_level
        self.init_statement = init_statement
        self.log = _Log(name)
        self.pool = self.new_pool()

    def new_pool(self) -> ConnectionPool:
        least, most = self.sizes
        return ConnectionPool(
            self.dsn,
            kwargs=self.parameters | {"cursor_factory": Cursor},
            name=f"pgmanager {self.name}",
            min_size=least,
            max_size=most,
            configure=self._configure,
            fail_fast=True,
        )

    def _configure(self, conn: Any) -> None:
        if self.isolation_level in ("autocommit", extensions.ISOLATION_LEVEL_AUTOCOMMIT):
            conn.autocommit = True
        elif self.isolation_level is not None:
            conn.set_session(isolation_level=self.isolation_level)
        self.log(conn)
        if self.init_statement:
            conn.cursor().execute(self.init_statement)
            conn.commit()

    def take(self) -> tuple[Any, ConnectionPool]:
        """A connection, and the pool that it goes back to. Suspends."""
        pool = self.pool
        # A connection may be put back by another task than got it, after that one's end.
        return pool.getconn(take_back=False), pool


class _NamedListener(_Named):
    def __init__(self, name: str, dsn: str, parameters: dict[str, Any], channel: str) -> None:
        super().__init__(name, dsn, parameters)
        self.channel = channel[1:-1].replace('""', '"') if channel.startswith('"') else channel.lower()
        self.listener = self.new_listener()

    def new_listener(self) -> Listener:
        self._subscriptions = threading.local()  # of each task: it goes when the task has ended
        return Listener(self.dsn, kwargs=self.parameters, name=f"pgmanager {self.name}")

    def wait(self, timeout: float | None) -> extensions.Notify | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        subscription = getattr(self._subscriptions, "mine", None)
        if subscription is None:
            subscription = self._subscriptions.mine = self.listener.subscribe(self.channel)
        while True:
            note = subscription.get(None if deadline is None else max(deadline - time.monotonic(), 0.0))
            if not isinstance(note, Gap):
                return note
            log_sql.warning("[%s] notifications may be missing: %s", self.name, note.reason)


class PgManager:
    """Connections by name; the usual one is "default".

    Its methods suspend where they talk to the server, as the original's block.
    """

    def __init__(self) -> None:
        self._named: dict[str, _NamedPool | _NamedListener] = {}
        self._lent: dict[Any, tuple[_NamedPool, ConnectionPool]] = {}

    def create_conn(
        self,
        name: str = "default",
        *,
        dsn: str = "",
        isolation_level: Any = None,
        init_statement: str | None = None,
        pool_size: int = 1,
        max_size: int = 100,
        keep_alive: bool = True,
        **parameters: Any,
    ) -> None:
        """Remember how to connect; doesn't connect yet. `parameters` are libpq's.

        `isolation_level`: "autocommit", or one of psycopg2's. `init_statement`: run on each new connection.
        `pool_size` (1): connections that are kept; `max_size` (100): that there can be. Raises PgManagerError if the
        name is taken, psycopg2.ProgrammingError for malformed parameters.
        """
        self._check_new(name)
        if not keep_alive:
            parameters.setdefault("keepalives", 0)
        sizes = (pool_size, max(pool_size, max_size))
        self._named[name] = _NamedPool(name, dsn, parameters, sizes, isolation_level, init_statement)

    def create_conn_listen(
        self, name: str, channel: str, copy_dsn: str | None = None, *, dsn: str = "", **parameters: Any
    ) -> None:
        """Remember how to listen to the channel; doesn't connect yet. `copy_dsn`: as the connection of that name."""
        self._check_new(name)
        if copy_dsn is not None:
            other = self._find(copy_dsn)
            dsn, parameters = other.dsn, other.parameters | parameters
        self._named[name] = _NamedListener(name, dsn, parameters, channel)

    def knows_conn(self, name: str = "default") -> bool:
        """Whether `create_conn()` has been called with that name. Doesn't suspend."""
        return name in self._named

    def close_conn(self, name: str = "default") -> None:
        """Close the connections of that name; those in use when they are put back. What is known of them stays."""
        named = self._find(name)
        if isinstance(named, _NamedPool):
            old_pool, named.pool = named.pool, named.new_pool()
            old_pool.close()
        else:
            old_listener, named.listener = named.listener, named.new_listener()
            old_listener.close()

    def destroy_conn(self, name: str = "default") -> None:
        """Close the connections of that name, and forget it."""
        self.close_conn(name)
        del self._named[name]

    def get_conn(self, name: str = "default") -> Any:
        """A connection, to be put back by `put_conn()`. Suspends while it connects, or while `max_size` are in use.

        Raises PgManagerError for an unknown name, psycopg2's errors if it can't connect.
        """
        named = self._find_pool(name)
        conn, pool = named.take()
        self._lent[conn] = named, pool
        return conn

    def put_conn(self, conn: Any, name: str = "default") -> None:
        """Give a connection back; an open transaction is rolled back. The name doesn't matter. Suspends for that."""
        if conn not in self._lent:
            raise PgManagerError("this connection is not lent by PgManager, or has been put back already")
        _, pool = self._lent.pop(conn)
        pool.putconn(conn)

    @contextmanager
    def cursor(self, name: str = "default") -> Iterator[Any]:
        """A cursor for a block. `curs.connection.commit()` is up to the block; the end rolls back. Logs notices."""
        conn = self.get_conn(name)
        try:
            with conn.cursor() as cursor:
                yield cursor
        finally:
            self.log_notices(conn)
            self.put_conn(conn, name)

    def wait_for_notify(self, name: str, timeout: float | None = None) -> extensions.Notify | None:
        """The next notification for this task; None after `timeout` seconds (None: no limit). Suspends."""
        named = self._find(name)
        if not isinstance(named, _NamedListener):
            raise PgManagerError(f"Connection name {name!r} does not listen: see create_conn_listen().")
        return named.wait(timeout)

    def log_notices(self, conn: Connection) -> None:
        """Log the connection's notices since the last time. Doesn't suspend."""
        if conn in self._lent:
            named, _ = self._lent[conn]
            named.log.log_new_notices(conn)

    def _check_new(self, name: str) -> None:
        if name in self._named:
            raise PgManagerError(f"Connection name {name!r} already registered.")

    def _find(self, name: str) -> _NamedPool | _NamedListener:
        if name not in self._named:
            raise PgManagerError(f"Connection name {name!r} not registered.")
        return self._named[name]

    def _find_pool(self, name: str) -> _NamedPool:
        named = self._find(name)
        if not isinstance(named, _NamedPool):
            raise PgManagerError(f"Connection name {name!r} only listens: see wait_for_notify().")
        return named


_instance = PgManager()


def get_instance() -> PgManager:
    """The program's one PgManager. Doesn't suspend."""
    return _instance
