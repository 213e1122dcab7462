"""`Cursor`: psycopg2's cursor, safe in the presence of other tasks, kills and timeouts."""

from __future__ import annotations

from typing import Any

from psycopg2 import extensions

from .guarding import guarded_cursor_method

_cursor = extensions.cursor
_execute = _cursor.execute


class Cursor(_cursor):
    """psycopg2's cursor on a `greenpg.Connection`. Everything psycopg2 documents of cursors holds.

    While another task waits for the server on the same connection, `execute()` and its kin raise
    `errors.ConnectionInUse`, and the other task's statement goes on unharmed. An exception thrown into `execute()` (a
    kill, a timeout) cancels the statement and comes out unchanged; the connection can be used on after a rollback.
    """

    connection: Any  # a Connection; psycopg2 makes no other with this class

    # Calls go to psycopg2's C class directly: this class always stands just above it (see composing.py).

    def execute(self, query: Any, vars: Any = None) -> None:
        # guarded_cursor_method() spelled out, because of its cost
        conn = self.connection
        if conn._owner is not None:
            conn._refuse_if_owned("execute")
        conn._call = "execute"
        try:
            _execute(self, query, vars)
        finally:
            conn._call = None
            if conn._interruption is not None:
                conn._raise_interruption()

    executemany = guarded_cursor_method(_cursor, "executemany")
    callproc = guarded_cursor_method(_cursor, "callproc")


class ServerCursor(Cursor):
    """psycopg2's named cursor: its fetches talk to the server, so they are guarded as well."""

    fetchone = guarded_cursor_method(_cursor, "fetchone")
    fetchmany = guarded_cursor_method(_cursor, "fetchmany")
    fetchall = guarded_cursor_method(_cursor, "fetchall")
    scroll = guarded_cursor_method(_cursor, "scroll")
    __next__ = guarded_cursor_method(_cursor, "__next__")
    close = guarded_cursor_method(_cursor, "close")
