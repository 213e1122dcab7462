"""`Cursor`: psycopg2's cursor, which refuses to freeze the process."""

from __future__ import annotations

from typing import Any

from psycopg2 import extensions

_cursor = extensions.cursor
_execute = _cursor.execute


class Cursor(_cursor):
    """psycopg2's cursor on a `greenpg.Connection`. Everything psycopg2 documents of cursors holds.

    While another task waits for the server on the same connection, `execute()` and its kin raise
    `errors.ConnectionInUse`, and the other task's statement goes on unharmed.
    """

    connection: Any  # a Connection; psycopg2 makes no other with this class

    # Calls go to psycopg2's C class directly: this class always stands just above it (see composing.py).

    def execute(self, query: Any, vars: Any = None) -> None:
        conn = self.connection
        if conn._owner is not None:
            conn._refuse_if_owned("execute")
        _execute(self, query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        self.connection._refuse_if_owned("executemany")
        _cursor.executemany(self, query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None, /) -> Any:
        self.connection._refuse_if_owned("callproc")
        return _cursor.callproc(self, procname, parameters)


class ServerCursor(Cursor):
    """psycopg2's named cursor: its fetches talk to the server, so they are guarded as well."""

    def fetchone(self) -> Any:
        self.connection._refuse_if_owned("fetchone")
        return _cursor.fetchone(self)

    def fetchmany(self, size: int | None = None) -> Any:
        self.connection._refuse_if_owned("fetchmany")
        return _cursor.fetchmany(self, size)

    def fetchall(self) -> Any:
        self.connection._refuse_if_owned("fetchall")
        return _cursor.fetchall(self)

    def __next__(self) -> Any:
        self.connection._refuse_if_owned("fetchmany")
        return _cursor.__next__(self)

    def scroll(self, value: int, mode: Any = "relative") -> None:
        self.connection._refuse_if_owned("scroll")
        _cursor.scroll(self, value, mode)

    def close(self) -> None:
        if not self.connection.closed:
            self.connection._refuse_if_owned("close")
        _cursor.close(self)
