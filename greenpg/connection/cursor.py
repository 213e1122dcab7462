"""`Cursor`: psycopg2's cursor, safe in the presence of other tasks, kills and timeouts."""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2 import extensions

from ..errors.sqlstate import name_by_sqlstate
from .copy import Copy
from .copy_file import FileCopyMixin
from .copying import end_stray_copy
from .executemany import run_pages
from .fetching import BIG_ROWS, fetch_in_turns, iterate_in_turns
from .guarding import guarded_cursor_method
from .rows import DictFetches

_cursor = extensions.cursor
_execute = _cursor.execute
_query: Any = _cursor.query.__get__
_fetchall = _cursor.fetchall
_rowcount: Any = _cursor.rowcount.__get__
_statusmessage: Any = _cursor.statusmessage.__get__


class Cursor(DictFetches, FileCopyMixin, _cursor):
    """psycopg2's cursor on a `greenpg.Connection`. Everything psycopg2 documents of cursors holds.

    While another task waits for the server on the same connection, `execute()` and its kin raise
    `errors.ConnectionInUse`, and the other task's statement goes on unharmed. An exception thrown into `execute()` (a
    kill, a timeout) cancels the statement and comes out unchanged; the connection can be used on after a rollback.
    """

    connection: Any  # a Connection; psycopg2 makes no other with this class

    #: (the message that was sent, the user's statement in it): see riding.py.
    _ridden: tuple[Any, bytes] | None = None

    #: (the query, row count and status) of the last `copy()` block or `executemany()`: psycopg2 saw a part of it only.
    _copied: tuple[Any, int, str | None] | None = None

    # Calls go to psycopg2's C class directly: this class always stands just above it (see composing.py).

    def execute(self, query: Any, vars: Any = None) -> None:
        # guarded_cursor_method() spelled out, because of its cost
        conn = self.connection
        if conn._owner is not None:
            conn._refuse_if_owned("execute")
        ride = conn._ride
        if ride is not None and ride.is_pending and ride.execute_first(self, query, vars):
            return
        conn._call = "execute"
        try:
            _execute(self, query, vars)
        except psycopg2.DatabaseError as error:
            if isinstance(error, psycopg2.ProgrammingError):
                end_stray_copy(conn, error)
            name_by_sqlstate(error)
            raise error
        finally:
            conn._call = None
            if conn._interruption is not None:
                conn._raise_interruption()

    def copy(self, statement: Any, params: Any = None) -> Copy:
        """`with cur.copy("COPY ...") as copy`: a COPY whose data the program writes or reads by itself, as psycopg 3's.

        Entering the block runs the statement, with `params` merged into it as by `execute()`, and suspends. Raises
        `psycopg2.ProgrammingError` if the statement isn't a COPY FROM STDIN or TO STDOUT. See `Copy`.
        """
        return Copy(self, statement, params)

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Run the statement with each row of arguments in turn, as psycopg2's, but in few round trips. Suspends.

        In a transaction the statements are sent by pages of up to 1000 rows or 1 MB, taken from `vars_list` (which may
        be a generator) a page at a time. In autocommit, where each row is a transaction of its own, and for a query of
        several commands, they're sent one by one, as psycopg2 does.

        An error is psycopg2's, and has the `row_index`, counted from 0 (None if the server didn't say), also told in a
        note from Python 3.11 on; its position is that in the row's own statement. A generator, or an adapter, may use
        the connection, and end its transaction: the rows before are executed first. `rowcount` is the sum, -1 if a row
        has none. For the server a page is one message: `statement_timestamp()` is the same for its rows, and
        `statement_deadline` holds for each page.
        """
        conn = self.connection
        conn._let_psycopg2_begin()
        try:
            run_pages(self, query, vars_list)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error

    def fetchall(self) -> list[Any]:
        """The remaining rows, as psycopg2's. With 1000 rows or more it lets other tasks run every few milliseconds."""
        if _rowcount(self) < BIG_ROWS:
            return _fetchall(self)
        return fetch_in_turns(self)

    def __iter__(self) -> Any:
        """Iterate over the remaining rows, as psycopg2's, letting other tasks run as `fetchall()` does."""
        return self if _rowcount(self) < BIG_ROWS else iterate_in_turns(self)

    def _note_rowcount(self, rowcount: int) -> None:
        self._copied = (self.query, rowcount, _statusmessage(self))

    def _note_copy(self, rowcount: int, statusmessage: str) -> None:
        self._copied = (self.query, rowcount, statusmessage)

    def _hide_prefix(self, statement: bytes) -> None:
        self._ridden = (_query(self), statement)

    @property
    def query(self) -> Any:
        """The last statement that was sent, as bytes; as psycopg2's."""
        query = _query(self)
        return self._ridden[1] if self._ridden is not None and self._ridden[0] is query else query

    @property
    def rowcount(self) -> int:
        """Number of rows of the last statement, as psycopg2's; -1 if there is none."""
        copied = self._copied
        if copied is not None and copied[0] is self.query:
            return copied[1]
        return _rowcount(self)  # type: ignore[no-any-return]

    @property
    def statusmessage(self) -> str | None:
        """What the server called the last statement, as "COPY 42"; as psycopg2's."""
        copied = self._copied
        if copied is not None and copied[0] is self.query:
            return copied[2]
        return _statusmessage(self)  # type: ignore[no-any-return]

    callproc = guarded_cursor_method(_cursor, "callproc")


class ServerCursor(Cursor):
    """psycopg2's named cursor: its fetches talk to the server, so they are guarded as well."""

    def execute(self, query: Any, vars: Any = None) -> None:
        ride = self.connection._ride
        if ride is not None:  # DECLARE is written by psycopg2, which wants to be in a transaction of its own
            self.connection._refuse_if_owned("execute")
            ride.go_native()
        super().execute(query, vars)

    fetchone = guarded_cursor_method(_cursor, "fetchone")
    fetchmany = guarded_cursor_method(_cursor, "fetchmany")
    fetchall = guarded_cursor_method(_cursor, "fetchall")
    scroll = guarded_cursor_method(_cursor, "scroll")
    __iter__ = _cursor.__iter__
    __next__ = guarded_cursor_method(_cursor, "__next__")
    close = guarded_cursor_method(_cursor, "close")
