"""`executemany()` in few round trips: the rows' statements are joined into pages, and a page is one message.

The first and the last row go through psycopg2's own `executemany()`: the first opens the transaction and shows whether
the statement is one that can be joined, the last leaves the cursor as psycopg2 would. What is between goes through
libpq directly, result by result, so that each row's count, and the row that failed, are known.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg2
from psycopg2 import extensions, sql

from .. import libpq
from ..errors import is_interruption, set_attribute
from ..hubs import hub
from .channel import LONGEST_RUN, SHORTEST_PAUSE, ConnectionLost, cut_off, waiter_of
from .copying import end_stray_copy
from .interrupting import note_first
from .paging import PageChannel
from .server_errors import error_of, moved_back, text_codec

_cursor = extensions.cursor
_executemany: Any = _cursor.executemany
_mogrify: Any = _cursor.mogrify
_rowcount: Any = _cursor.rowcount.__get__
_INTRANS = extensions.TRANSACTION_STATUS_INTRANS
_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE

#: A page is sent when it has so many rows, or so many bytes.
PAGE_ROWS = 1000
PAGE_BYTES = 1_000_000

# The newline before ends a comment. The one after lets each statement begin a line: the line that libpq quotes in an
# error is the user's then, only its number is not.
_SEPARATOR = b"\n;\n"

# Errors of the whole message, found before the server looks for statements in it: invalid characters.
_OF_THE_MESSAGE = frozenset({"22021", "22P05"})


def run_pages(cursor: Any, query: Any, vars_list: Iterable[Any]) -> None:
    """`Cursor.executemany()`. Begins the transaction as psycopg2 does, if none has begun yet.

    If there is none after the first row, that is in autocommit, the others go one by one as well.
    """
    conn = cursor.connection
    rows = iter(vars_list)
    call = _Call(cursor, query)
    for row in rows:
        call.execute_alone((row,))
        break
    else:
        call.execute_alone(())  # psycopg2 looks at the cursor's state and does nothing
        return
    statement = None
    if conn.get_transaction_status() == _INTRANS:
        statement = _joinable(query, conn, cursor)
    if statement is None:
        call.execute_alone(rows)
    else:
        # A generator may use the connection: it is only asked for rows while nothing is under way.
        call.execute_in_pages(statement, rows, in_advance=isinstance(vars_list, list | tuple))
    cursor._note_rowcount(call.rowcount)


def _joinable(query: Any, conn: Any, cursor: Any) -> bytes | None:
    """The statement's text, or None if it may be several commands: psycopg2 counts the last one's rows only."""
    if isinstance(query, sql.Composable):
        query = query.as_string(cursor)
    text: bytes = query.encode(text_codec(conn)) if isinstance(query, str) else bytes(query)
    text = text.rstrip(b"; \t\r\n\f\v")
    return None if b";" in text else text


class _Call:
    """One `executemany()` under way."""

    def __init__(self, cursor: Any, query: Any) -> None:
        self._cursor = cursor
        self._conn = cursor.connection
        self._query = query
        #: The sum; -1 when a row's count is.
        self.rowcount = 0
        self._done = 0  # rows

    def _count(self, rowcount: int) -> None:
        self.rowcount = -1 if rowcount == -1 or self.rowcount == -1 else self.rowcount + rowcount

    def execute_alone(self, rows: Iterable[Any]) -> None:
        """psycopg2's way: a round trip for each row."""
        conn = self._conn
        if conn._owner is not None:
            conn._refuse_if_owned("executemany")
        begun = 0

        def counted() -> Iterator[Any]:
            nonlocal begun
            for row in rows:
                begun += 1
                conn._call = "executemany"  # the rows' generator may have used the connection
                yield row

        conn._call = "executemany"
        try:
            _executemany(self._cursor, self._query, counted())
        except Exception as error:
            if begun and conn._interruption is None:
                _note_row(error, self._done + begun - 1)
            if isinstance(error, psycopg2.ProgrammingError):
                end_stray_copy(conn, error)
            raise
        finally:
            conn._call = None
            if conn._interruption is not None:
                conn._raise_interruption()
        self._done += begun
        if begun:
            self._count(_rowcount(self._cursor))

    def execute_in_pages(self, statement: bytes, rows: Iterator[Any], *, in_advance: bool) -> None:
        """All rows but the last in pages. Is a page to be made while the server works on the one before?"""
        pages = _Pages(self._cursor, statement, rows, self._done)
        pages.advance()
        while pages.page:
            self._send(pages.page, pages.advance if in_advance else None)
            if not in_advance:
                pages.advance()
        if pages.failure is not None:
            raise pages.failure
        self.execute_alone(pages.held_back)

    def _send(self, page: list[bytes], meanwhile: Callable[[], None] | None) -> None:
        conn = self._conn
        if conn._owner is not None:
            conn._refuse_if_owned("executemany")
        if conn.closed:
            raise psycopg2.InterfaceError("connection already closed")
        deadline = None if conn._deadlines is None else conn._deadlines.next_deadline()
        channel = PageChannel(conn, waiter_of(conn), deadline)
        conn._owner = conn._last_owner = hub().current()
        try:
            failure = self._run(channel, _SEPARATOR.join(page), meanwhile)
        finally:
            conn._owner = None
        for rowcount in channel.rowcounts:
            self._count(rowcount)
        if failure is not None:
            raise self._error(page, failure, len(channel.rowcounts))
        commands = len(channel.rowcounts)
        if commands != len(page):
            raise psycopg2.ProgrammingError(
                f"rows {self._done} to {self._done + len(page) - 1} of executemany() were {commands} commands for the "
                f"server, instead of {len(page)}: an argument (AsIs?) has changed their number; roll back, and use "
                "execute() for such rows"
            )
        self._done += len(page)

    def _run(self, channel: PageChannel, message: bytes, meanwhile: Callable[[], None] | None) -> libpq.Result | None:
        """Send the page and read its results, the first error if there is one. Whatever happens, the connection is
        at rest afterwards, or closed."""
        conn = self._conn
        try:
            channel.send(message)
            if meanwhile is not None:
                meanwhile()
            return channel.read()
        except ConnectionLost:
            conn.poll()  # marks the connection as closed, and raises
            cut_off(conn)
            raise psycopg2.OperationalError("the connection was lost during executemany()") from None
        except BaseException as exception:
            if conn.closed or conn.get_transaction_status() != _ACTIVE:
                raise
            try:
                channel.cancel()
            except BaseException as second:
                cut_off(conn)
                if is_interruption(second) or not isinstance(second, psycopg2.Error | ConnectionLost):
                    note_first(second, exception)
                    raise
            raise

    def _error(self, page: list[bytes], failure: libpq.Result, succeeded: int) -> psycopg2.Error:
        conn = self._conn
        codec = text_codec(conn)
        row: int | None = succeeded
        offset = offset_lines = 0
        position = failure.diagnostics.get("statement_position")
        if position is not None:
            # The server reads all statements of a message before it runs the first: it needn't be the next one.
            row, offset, offset_lines = _locate(page, int(position), codec)
            failure = moved_back(failure, offset, offset_lines)
        elif succeeded == 0 and failure.diagnostics.get("sqlstate", b"").decode() in _OF_THE_MESSAGE and len(page) > 1:
            row = None
        error = error_of(failure, conn, self._cursor)
        if conn.closed == 0:
            try:
                conn.poll()  # takes in the server's notices; after a FATAL error, marks the connection as closed
            except psycopg2.Error:
                pass
        self._cursor._note_rowcount(-1)
        if row is None:
            _add_note(error, f"executemany(): one of the rows {self._done} to {self._done + len(page) - 1} (from 0)")
            set_attribute(error, "row_index", None)
        else:
            _note_row(error, self._done + row)
        return error


class _Pages:
    """Makes statements of the rows, page by page, and holds the last row back."""

    def __init__(self, cursor: Any, statement: bytes, rows: Iterator[Any], first_row: int) -> None:
        self._cursor = cursor
        self._statement = statement
        self._rows = rows
        self._row = first_row
        #: The statements of the next page; empty at the end, and when one of its rows can't be had: see `failure`.
        self.page: list[bytes] = []
        #: The last row, once there are no more pages.
        self.held_back: list[Any] = []
        #: Why there are no more pages.
        self.failure: Exception | None = None

    def advance(self) -> None:
        """Make the next page. Suspends now and then."""
        self.page = []
        if self.failure is None:
            try:
                self.page = self._made()
            except Exception as error:
                if is_interruption(error):  # it doesn't wait for the end of the page under way
                    raise
                self.failure = error

    def _made(self) -> list[bytes]:
        page: list[bytes] = []
        cursor, statement, held_back = self._cursor, self._statement, self.held_back
        size = 0
        pause_at = time.monotonic() + LONGEST_RUN
        for row in self._rows:
            if not held_back:
                held_back.append(row)
                continue
            try:
                mogrified = _mogrify(cursor, statement, held_back[0])
            except Exception as error:
                _note_row(error, self._row + len(page))
                raise
            held_back[0] = row
            page.append(mogrified)
            size += len(mogrified)
            count = len(page)
            if size >= PAGE_BYTES or count >= PAGE_ROWS:
                break
            if count % 50 == 0 and time.monotonic() >= pause_at:
                hub().sleep(SHORTEST_PAUSE)
                pause_at = time.monotonic() + LONGEST_RUN
        self._row += len(page)
        return page


def _locate(page: list[bytes], position: int, codec: str) -> tuple[int, int, int]:
    """(row of the page, characters and lines before it) for a position, counted in characters from 1."""
    characters = lines = 0
    for row, statement in enumerate(page):
        text = statement.decode(codec, "replace")
        end = characters + len(text) + len(_SEPARATOR)
        if position <= end or row == len(page) - 1:
            break
        characters = end
        lines += len(re.findall("\r\n|\r|\n", text)) + _SEPARATOR.count(b"\n")
    return row, characters, lines


def _note_row(error: BaseException, row: int) -> None:
    set_attribute(error, "row_index", row)
    _add_note(error, f"executemany(): row {row}, counted from 0")


def _add_note(error: BaseException, note: str) -> None:
    add_note: Callable[[str], None] | None = getattr(error, "add_note", None)  # since Python 3.11
    if add_note is not None:
        with contextlib.suppress(AttributeError):  # a frozen dataclass
            add_note(note)
