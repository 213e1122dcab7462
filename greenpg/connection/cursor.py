"""`Cursor`: psycopg2's cursor, safe in the presence of other tasks, kills and timeouts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal, TypeVar

import psycopg2
from psycopg2 import extensions

from ..errors.sqlstate import name_by_sqlstate
from .bulk.copy import Copy
from .bulk.copy_channel import end_stray_copy
from .bulk.copy_file import FileCopyMixin
from .bulk.executemany import run_pages, run_returning
from .bulk.fetchall import BIG_ROWS, fetch_in_turns, iterate_in_turns
from .guarded_cursor import Params, Query, Row
from .lazy_begin import execute_first, is_autocommit
from .occupants import AT_REST
from .prepared.preparing import execute_prepared
from .rows import DictFetches

_cursor = extensions.cursor
_execute = _cursor.execute
_READY = extensions.STATUS_READY
_fetchall = _cursor.fetchall
_rowcount: Any = _cursor.rowcount.__get__

_SELECT = re.compile(r"[\s(]*SELECT\b", re.IGNORECASE)

S = TypeVar("S", bound="ServerCursor")
T = TypeVar("T", bound="Cursor")


class Cursor(DictFetches, FileCopyMixin):
    """psycopg2's cursor on a `greenpg.Connection`. Everything psycopg2 documents of cursors holds.

    While another task waits for the server on the same connection, `execute()` and its kin raise
    `errors.ConnectionInUse`, and the other task's statement goes on unharmed. An exception thrown into `execute()` (a
    kill, a timeout) cancels the statement and comes out unchanged; the connection can be used on after a rollback.
    """

    # Calls go to psycopg2's C class directly: this class always stands just above it (see composing.py).

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        """Execute a statement, as psycopg2's: `vars` are merged into it. Suspends.

        BEGIN is sent along with the first statement of a transaction.

        `prepare`, as psycopg 3's: True has the server keep the statement's plan, for all executions of the same query
        with arguments of the same types on this connection (SQL's PREPARE, a round trip once, and EXECUTE, which
        `query` shows); None (default): after `conn.prepare_threshold` executions, if that is set; False: not. Where it
        wouldn't do the same (several commands, AsIs, tuples, placeholders in quotes ...), and in a pipeline, it's
        executed in the ordinary way. After a change of the schema, `psycopg2.errors.FeatureNotSupported` may come once
        in a transaction that has done something before: repeat it.
        """
        if prepare:
            return execute_prepared(self, query, vars, partial(Cursor.execute, self), 0)
        # `with gate.calling("execute"):` spelled out, because of its cost
        conn = self.connection
        gate = conn._gate
        if gate.owner is not None and gate.takes_over(self, query, vars):
            return None
        outer_call = gate.call
        gate.call = "execute"
        try:
            if self._loan is not gate.loan:
                self._refuse_if_void("execute")
            if conn._driver_status == _READY and not is_autocommit(conn):
                execute_first(conn, self, query, vars)
            else:
                _execute(self, query, vars)
        except psycopg2.DatabaseError as error:
            if isinstance(error, psycopg2.ProgrammingError):
                end_stray_copy(conn, error)
            name_by_sqlstate(error)
            raise error
        finally:
            gate.call = outer_call
            if gate.interruption is not None or gate.free is not None:
                gate.leave(outer_call)
        return None

    def copy(self, statement: Query, params: Params = None) -> Copy:
        """`with cur.copy("COPY ...") as copy`: a COPY whose data the program writes or reads by itself, as psycopg 3's.

        Entering the block runs the statement, with `params` merged into it as by `execute()`, and suspends. Raises
        `psycopg2.ProgrammingError` if the statement isn't a COPY FROM STDIN or TO STDOUT. See `Copy`.
        """
        return Copy(self, statement, params)

    def executemany(self, query: Query, vars_list: Iterable[Params], *, returning: bool = False) -> None:
        """Run the statement with each row of arguments in turn, as psycopg2's, but in few round trips. Suspends.

        In a transaction the statements are sent by pages of up to 1000 rows or 1 MB, taken from `vars_list` (which may
        be a generator) a page at a time. In autocommit each row is a transaction of its own, and none is executed after
        one that fails. A query of several commands, or (in autocommit) of another kind than INSERT, UPDATE, DELETE,
        MERGE and SELECT, is sent row by row, as psycopg2 does.

        `returning=True`, as psycopg 3's, keeps each row's result: `for _ in cur.results(): cur.fetchone()`.

        An error is psycopg2's, and has the `row_index`, counted from 0 (None if the server didn't say), also told in a
        note from Python 3.11 on; its position is that in the row's own statement. A generator, or an adapter, that uses
        the connection finds all rows before executed first. `rowcount` is the sum, -1 if a row has none. For the server
        a page is one message: `statement_timestamp()` is the same for its rows, and `statement_deadline` holds for each
        page.
        """
        self._refuse_if_void("executemany")
        try:
            with self.connection._gate.turn("executemany"):
                if returning:
                    run_returning(self, query, vars_list)
                else:
                    run_pages(self, query, vars_list)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error

    def results(self: T) -> Iterator[T]:
        """The cursor itself, once for each result of `executemany(returning=True)`, each time showing the next one; as
        psycopg 3's. Once after anything else. Doesn't suspend."""
        yield self
        while self._has_next_set():
            yield self

    def _has_next_set(self) -> bool:
        return False

    def fetchall(self) -> list[Row]:
        """The remaining rows, as psycopg2's. With 1000 rows or more it lets other tasks run every few milliseconds.

        Of a small result it doesn't suspend, unless the cursor is a server-side one.
        """
        if _rowcount(self) < BIG_ROWS:
            return _fetchall(self)
        return fetch_in_turns(self)

    def __iter__(self) -> Iterator[Row]:  # type: ignore[override]  # psycopg2's is always itself
        """Iterate over the remaining rows, as psycopg2's, letting other tasks run as `fetchall()` does."""
        return self if _rowcount(self) < BIG_ROWS else iterate_in_turns(self)

    def callproc(self, procname: str | bytes, parameters: Params = None, /) -> None:
        """Call a stored procedure, as psycopg2's. Suspends."""
        with self._calling("callproc"):
            return _cursor.callproc(self, procname, parameters)


class PreparingCursor(Cursor):
    """Goes on top of a cursor whose connection has a `prepare_threshold`."""

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        threshold = 0 if prepare else self.connection.prepare_threshold
        if prepare is False or threshold is None or self.name is not None:
            return super().execute(query, vars)
        return execute_prepared(self, query, vars, super().execute, threshold)


class TellingCursor(Cursor):
    """Goes on top of a cursor whose connection tells of its COMMITs: in autocommit whatever is executed may be one."""

    #: It is to read from where what it executes would be refused if it wrote: a SELECT is told to nobody.
    only_reads = False

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        if not (self.only_reads and isinstance(query, str) and _SELECT.match(query)):
            self._tell()
        return super().execute(query, vars, prepare=prepare)

    def executemany(self, query: Query, vars_list: Iterable[Params], *, returning: bool = False) -> None:
        self._tell()
        return super().executemany(query, vars_list, returning=returning)

    def copy(self, statement: Query, params: Params = None) -> Copy:
        self._tell()
        return super().copy(statement, params)

    def copy_from(self, *args: Any, **keywords: Any) -> None:
        self._tell()
        return super().copy_from(*args, **keywords)

    def copy_expert(self, *args: Any, **keywords: Any) -> None:
        self._tell()
        return super().copy_expert(*args, **keywords)

    def callproc(self, procname: str | bytes, parameters: Params = None, /) -> None:
        self._tell()
        return super().callproc(procname, parameters)

    def _tell(self) -> None:
        conn = self.connection
        if conn._tells_commit is not None and is_autocommit(conn):
            conn._tells_commit(None)


class ServerCursor(Cursor):
    """psycopg2's named cursor: its fetches talk to the server, so they are guarded as well."""

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        """DECLARE the cursor, as psycopg2's, which begins a transaction if there is none. Suspends."""
        with self._calling("execute"):
            _execute(self, query, vars)

    def fetchone(self) -> Row | None:
        """The next row, None if there is none. Suspends."""
        with self._calling("fetchone"):
            return _cursor.fetchone(self)

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """The next `size` rows (None: `arraysize`). Suspends."""
        with self._calling("fetchmany"):
            return _cursor.fetchmany(self, size)

    def fetchall(self) -> list[Row]:
        """The remaining rows. Suspends."""
        with self._calling("fetchall"):
            return _cursor.fetchall(self)

    def scroll(self, value: int, mode: Literal["relative", "absolute"] = "relative") -> None:
        """Move to another row. Suspends."""
        with self._calling("scroll"):
            _cursor.scroll(self, value, mode)

    def __iter__(self: S) -> S:
        return _cursor.__iter__(self)

    def __next__(self) -> Row:
        with self._calling("__next__"):
            return _cursor.__next__(self)

    def close(self) -> None:
        """Close the cursor, on the server too. Suspends."""
        if not self._is_void() and self.connection._gate.owner is not AT_REST:  # else it has ended with its transaction
            with self._calling("close"):
                _cursor.close(self)
