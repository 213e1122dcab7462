"""`Connection`: psycopg2's connection, safe in the presence of other tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from psycopg2 import extensions

from .composing import compose
from .cursor import Cursor, ServerCursor
from .waiting import WaitState

_connection = extensions.connection


def _guarded(name: str) -> Callable[..., Any]:
    """psycopg2's method of that name, refused while another task waits inside the connection."""
    method = getattr(_connection, name)

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._owner is not None:
            self._refuse_if_owned(name)
        return method(self, *args, **kwargs)

    return guarded


def _guarded_property(name: str) -> Any:
    """psycopg2's attribute of that name, whose setter talks to the server in some cases."""
    descriptor = getattr(_connection, name)

    def assign(self: Any, value: Any) -> None:
        self._refuse_if_owned(f"{name} = ")
        descriptor.__set__(self, value)

    return property(descriptor.__get__, assign, doc=descriptor.__doc__)


class Connection(WaitState, _connection):
    """psycopg2's connection; everything psycopg2 documents of connections holds.

    While another task waits for the server on it, calls that would talk to the server raise
    `errors.ConnectionInUse` where psycopg2 would stop the whole process.
    """

    #: The pool that has lent the connection, while it is lent.
    _pool: Any = None

    commit = _guarded("commit")
    rollback = _guarded("rollback")
    reset = _guarded("reset")
    set_session = _guarded("set_session")
    set_isolation_level = _guarded("set_isolation_level")
    set_client_encoding = _guarded("set_client_encoding")
    tpc_begin = _guarded("tpc_begin")
    tpc_prepare = _guarded("tpc_prepare")
    tpc_commit = _guarded("tpc_commit")
    tpc_rollback = _guarded("tpc_rollback")
    tpc_recover = _guarded("tpc_recover")

    autocommit = _guarded_property("autocommit")
    isolation_level = _guarded_property("isolation_level")
    readonly = _guarded_property("readonly")
    deferrable = _guarded_property("deferrable")

    def close(self) -> None:
        """Close the connection, as psycopg2's; or return it, if a pool made with `close_returns` has lent it."""
        if self._pool is not None and self._pool.close_returns:
            self._pool.putconn(self)
            return
        self._refuse_if_owned("close")
        _connection.close(self)

    def cursor(
        self, name: Any = None, cursor_factory: Any = None, withhold: bool = False, scrollable: bool | None = None
    ) -> Any:
        """A cursor, as psycopg2's: of `cursor_factory`, or else the connection's, with greenpg's methods under it."""
        factory = cursor_factory or self.cursor_factory
        green = Cursor if name is None else ServerCursor
        factory = green if factory is None else compose(factory, green)
        return _connection.cursor(self, name, factory, withhold, scrollable)
