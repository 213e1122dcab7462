"""`executemany()` in few round trips: the rows' statements are joined into pages, and a page is one message.

The first and the last row go through psycopg2's own `executemany()`: the first opens the transaction and shows whether
the statement is one that can be joined, the last leaves the cursor as psycopg2 would. What is between goes through
libpq directly, result by result, so that each row's count, and the row that failed, are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import psycopg2
from psycopg2 import extensions, sql

from ... import libpq
from ...errors import ConnectionInUse, is_interruption
from ...hubs import hub
from ...libpq.pipeline import is_supported as has_pipelines
from ..guarded_connection import GuardedConnection
from ..guarded_cursor import GuardedCursor, Params, Query
from ..interrupting import cut_off, note_first
from ..lazy_begin import is_autocommit, show_refused
from ..occupants import Occupant
from ..server_errors import text_codec
from .channel import ConnectionLost
from .pacing import Pacer
from .page_channel import PageChannel
from .row_by_row import RowByRow
from .row_errors import SEPARATOR, error_of_page, note_row

_cursor = extensions.cursor
_execute: Any = _cursor.execute
_mogrify: Any = _cursor.mogrify
_ALIKE = re.compile(rb"\s*(?:INSERT|UPDATE|DELETE|MERGE|SELECT|WITH|VALUES)\b", re.IGNORECASE)
_IDLE = extensions.TRANSACTION_STATUS_IDLE
_INTRANS = extensions.TRANSACTION_STATUS_INTRANS
_INERROR = extensions.TRANSACTION_STATUS_INERROR
_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE

#: A page is sent when it has so many rows, or so many bytes.
PAGE_ROWS = 1000
PAGE_BYTES = 1_000_000


def run_pages(cursor: GuardedCursor, query: Query, vars_list: Iterable[Params]) -> None:
    """`Cursor.executemany()`. Begins the transaction as psycopg2 does, if none has begun yet.

    If there is none after the first row, that is in autocommit, the others go one by one as well.
    """
    conn = cursor.connection
    call = RowByRow(cursor, query)
    try:
        rows = iter(vars_list)
    except TypeError:
        return call.pass_on(vars_list)
    call.execute_alone(islice(rows, 1))  # psycopg2 looks at the cursor's state before it asks for a row
    if not call.done:
        return
    statement = _joinable(query, conn, cursor)
    status = conn.get_transaction_status()
    is_alone = status == _IDLE and is_autocommit(conn) and has_pipelines()
    if statement is not None and is_alone and _is_alike_in_a_block(statement):
        _run_each_by_itself(call, query, rows)
    elif statement is None or status != _INTRANS:
        call.execute_alone(rows)
    else:
        # A generator is only asked for rows while nothing is under way: it may wait for other tasks that need them.
        _Pages(call, statement, rows, in_advance=isinstance(vars_list, list | tuple)).run()
    call.show_sum()


def run_returning(cursor: GuardedCursor, query: Query, vars_list: Iterable[Params]) -> None:
    """`Cursor.executemany(returning=True)`."""
    conn = cursor.connection
    is_alone = bool(is_autocommit(conn)) and conn.get_transaction_status() == _IDLE
    batch = conn._execute_rows(cursor, query, vars_list, is_alone, True, (0, 0))
    if batch.kept:
        batch.show()
    else:
        RowByRow(cursor, query).pass_on([])


def _run_each_by_itself(call: RowByRow, query: Query, rows: Iterator[Any]) -> None:
    """The rows in autocommit, after the first."""
    cursor = call.cursor
    batch = cursor.connection._execute_rows(cursor, query, rows, True, False, (call.done, call.rowcount))
    if batch.done:
        call.done += batch.done
        call.rowcount = batch.rowcount
        batch.show_last()


def _is_alike_in_a_block(statement: bytes) -> bool:
    """Whether it does the same between BEGIN and COMMIT; VACUUM doesn't, for one."""
    return _ALIKE.match(statement) is not None


def _joinable(query: Query, conn: GuardedConnection, cursor: GuardedCursor) -> bytes | None:
    """The statement's text, or None if it may be several commands: psycopg2 counts the last one's rows only."""
    if isinstance(query, sql.Composable):
        query = query.as_string(cursor)
    text: bytes = query.encode(text_codec(conn)) if isinstance(query, str) else bytes(query)
    text = text.rstrip(b"; \t\r\n\f\v")
    return None if b";" in text else text


class _Pages(Occupant):
    """Makes statements of the rows, and sends them by pages.

    The rows' iterator and their adapters are the user's code, and may use the connection, even end the transaction.
    Then it is brought to rest first, and as psycopg2 would have it: all rows before have been executed.
    """

    def __init__(self, call: RowByRow, statement: bytes, rows: Iterator[Any], *, in_advance: bool) -> None:
        self._call = call
        self._cursor = call.cursor
        self._conn = call.conn
        self._gate = call.conn._gate
        self._statement = statement
        self._rows = rows
        #: Is a page to be made while the server works on the one before?
        self._in_advance = in_advance
        self._task = hub().current()
        self._page: list[bytes] = []
        self._size = 0
        #: The last row, for psycopg2, unless another one comes.
        self._held_back: list[Any] = []
        #: The page that the server works on.
        self._flight: tuple[PageChannel, list[bytes]] | None = None
        #: A row's arguments can't be merged into the statement.
        self._is_refused = False
        #: What went wrong when the connection was brought to rest: the user's code may have caught it.
        self._failure: BaseException | None = None

    def run(self) -> None:
        """All rows that are left."""
        try:
            self._run()
        except BaseException as error:
            is_of_the_users_code = self._failure is None and isinstance(error, Exception) and not is_interruption(error)
            if is_of_the_users_code and not self._conn.closed:
                self._settle()  # psycopg2 would have executed the rows before; if one of them fails, that came first
                if self._is_refused:
                    show_refused(self._cursor)
                else:
                    self._call.show_sum()
            elif self._flight is not None:
                self._cancel(error)
            raise
        finally:
            self._gate.vacate(self)
            self._failure = None  # its traceback refers to this

    def _run(self) -> None:
        cursor, statement, held_back = self._cursor, self._statement, self._held_back
        pacer = Pacer()
        self._gate.occupy(self)
        for row in self._rows:
            if self._failure is not None:
                raise self._failure
            if not held_back:
                self._begin(row)
                continue
            try:
                mogrified = _mogrify(cursor, statement, held_back.pop())
            except Exception as error:
                self._is_refused = True
                if self._failure is None and not is_interruption(error):
                    under_way = 0 if self._flight is None else len(self._flight[1])
                    note_row(error, self._call.done + under_way + len(self._page))
                raise
            held_back.append(row)
            self._page.append(mogrified)
            self._size += len(mogrified)
            count = len(self._page)
            if self._size >= PAGE_BYTES or count >= PAGE_ROWS:
                self._send()
                if not self._in_advance:
                    self._collect()
                pacer.start()
            elif count % 50 == 0:
                pacer.pause()
            self._gate.occupy(self)
        if self._failure is not None:
            raise self._failure
        self._settle()

    def _begin(self, row: Any) -> None:
        """The first row, or the rows' iterator has used the connection."""
        if self._conn.get_transaction_status() == _IDLE:  # and ended the transaction: psycopg2 begins anew
            self._execute_alone((row,))
        else:
            self._held_back.append(row)
        self._gate.occupy(self)

    # -- when the user's code uses the connection

    def make_way(self, operation: str) -> None:
        if hub().current() == self._task:
            if self._failure is not None:  # executemany() has failed, though the user's code goes on
                raise self._failure
            try:
                self._settle()
            except BaseException:
                self._gate.occupy(self)
                raise
        elif self._flight is not None:
            raise ConnectionInUse(operation, hub().describe(self._task))
        # Another task may come in between two pages, as it may between two statements of psycopg2's executemany().

    def let_go(self) -> bool:
        if hub().current() == self._task:
            if self._failure is None:
                self._settle()
        elif self._flight is not None:
            return False
        self._gate.vacate(self)
        return True

    def _settle(self) -> None:
        """Execute all rows that have been taken. The connection is at rest then."""
        if self._page:
            self._send()
        self._collect()
        self._gate.vacate(self)
        if self._held_back:
            self._execute_alone((self._held_back.pop(),))

    def _execute_alone(self, rows: Iterable[Any]) -> None:
        self._gate.vacate(self)
        try:
            self._call.execute_alone(rows)
        except BaseException as error:
            self._failure = error
            raise

    # -- pages

    def _send(self) -> None:
        self._collect()
        page, self._page, self._size = self._page, [], 0
        conn = self._conn
        self._gate.vacate(self)
        try:
            self._gate.make_way("executemany")
            if conn.closed:
                raise psycopg2.InterfaceError("connection already closed")
            while page and conn.get_transaction_status() == _IDLE:  # an adapter has ended it; psycopg2 begins anew
                self._call.execute_statement(page.pop(0))
            if page:
                channel = PageChannel(conn, self._gate.waiter_of(conn), self._gate.next_deadline())
                self._flight = channel, page
                self._wait(lambda: channel.send(SEPARATOR.join(page)))
                self._gate.occupy(self)
        except BaseException as error:
            self._failure = error
            raise

    def _collect(self) -> None:
        """Wait for the results of the page under way, if there is one."""
        if self._flight is None:
            return
        channel, page = self._flight
        call = self._call
        try:
            failure = self._wait(channel.read)
            self._flight = None
            for rowcount in channel.rowcounts:
                call.count(rowcount)
            commands = len(channel.rowcounts)
            if failure is not None:
                error, statement = error_of_page(failure, page, commands, call.done, self._cursor)
                self._show_failed(statement)
                raise error
            if commands != len(page):
                raise psycopg2.ProgrammingError(
                    f"rows {call.done} to {call.done + len(page) - 1} of executemany() were {commands} commands for "
                    f"the server, instead of {len(page)}: an argument (AsIs?) has changed their number; roll back, and "
                    "use execute() for such rows"
                )
            call.done += len(page)
        except BaseException as error:
            self._failure = error
            raise

    def _show_failed(self, statement: bytes | None) -> None:
        """Leave the cursor as psycopg2 would: the statement is refused now, and the cursor shows that it has failed."""
        if statement is None or self._conn.closed or self._conn.get_transaction_status() != _INERROR:
            return
        self._gate.vacate(self)
        outer_call = self._gate.enter("executemany")
        try:
            _execute(self._cursor, statement)
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
        finally:
            self._gate.leave(outer_call)

    def _wait(self, transfer: Callable[[], libpq.Result | None]) -> libpq.Result | None:
        """Send the page, or read its results, the first error if there is one. If it raises, the connection is at rest
        afterwards, or closed."""
        conn = self._conn
        with self._gate.occupied():
            try:
                return transfer()
            except ConnectionLost:
                self._flight = None
                conn.poll()  # marks the connection as closed, and raises
                cut_off(conn)
                raise psycopg2.OperationalError("the connection was lost during executemany()") from None
            except BaseException as exception:
                self._cancel(exception)
                raise

    def _cancel(self, exception: BaseException) -> None:
        conn = self._conn
        if self._flight is None:
            return
        channel, self._flight = self._flight[0], None
        if conn.closed or conn.get_transaction_status() != _ACTIVE:
            return
        with self._gate.occupied():
            try:
                channel.cancel(exception)
            except BaseException as second:
                cut_off(conn)
                if is_interruption(second) or not isinstance(second, psycopg2.Error | ConnectionLost):
                    note_first(second, exception)
                    raise
