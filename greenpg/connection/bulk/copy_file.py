"""psycopg2's `copy_from`, `copy_to` and `copy_expert`, green.

psycopg2 runs the statement, and stays in its wait callback until the server's final answer: so transaction, row count,
status and errors are its own. In between, when the server is ready for data, the callback lets `FileCopy` run.
"""

from __future__ import annotations

import codecs
import inspect
import io
from collections.abc import Iterable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ... import libpq
from ...driver import set_rowcount
from ...errors import is_interruption
from ...errors.sqlstate import name_by_sqlstate
from ...hubs import FdWaiter
from ..guarded_connection import GuardedConnection
from ..guarded_cursor import GuardedCursor, Query
from ..interrupting import interrupt, note_first
from ..remains import give_up
from ..server_errors import text_codec
from .channel import ConnectionLost, Refused
from .copy_channel import REFUSED, CopyChannel, end_stray_copy

_cursor = extensions.cursor

# Files that don't care how their data is cut. Any other gets a row at a time, as from psycopg2: its write() may count.
_TAKES_BLOCKS = (io.BytesIO, io.StringIO, io.BufferedWriter, io.BufferedRandom, io.FileIO, io.TextIOWrapper)


# Files whose read() nobody else sees: they may be read in larger pieces than psycopg2's.
_GIVES_BLOCKS = (io.BytesIO, io.StringIO, io.BufferedReader, io.BufferedRandom, io.TextIOWrapper)
_BLOCK_BYTES = 64 * 1024


def _is_method_of(method: Any, classes: tuple[type, ...]) -> bool:
    """Whether it is a method of exactly one of these classes; tempfile's wrappers wrap their methods, too."""
    return type(getattr(inspect.unwrap(method) if callable(method) else method, "__self__", None)) in classes


class FileCopy:
    """One copy_from, copy_to or copy_expert: moves the data between a file and the connection."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self._size = size
        #: What `file.read()` raised: like psycopg2, the error of the failed COPY is raised, this one named in it.
        self.read_error: BaseException | None = None

    def run(self, conn: GuardedConnection, waiter: FdWaiter, deadline: float | None) -> bool:
        """Move the data, if a COPY has begun. Called in the wait callback; suspends.

        False: there was no COPY. True: the server's next answer is to be waited for.
        """
        channel = CopyChannel(conn, waiter, deadline)
        if channel.direction is None:
            return False
        try:
            if channel.direction == libpq.COPY_IN:
                self._send(channel, conn)
            else:
                self._receive(channel, conn)
        except ConnectionLost:
            pass  # the callback's next poll() raises psycopg2's error
        except BaseException as exception:
            self._abandon(channel, conn, exception)
            interrupt(conn, waiter, exception)
        return True

    @staticmethod
    def _abandon(channel: CopyChannel, conn: GuardedConnection, exception: BaseException) -> None:
        try:
            channel.abandon(f"{type(exception).__name__}: {exception}", exception)
        except ConnectionLost:
            pass
        except BaseException as second:
            give_up(conn)
            if isinstance(second, psycopg2.Error) and not is_interruption(second):
                conn._gate.hold_back(exception)
                raise
            note_first(second, exception)
            conn._gate.hold_back(second)
            # Any other exception would make the callback try once more to save the connection.
            raise psycopg2.OperationalError("interrupted again while ending a COPY") from None
        finally:
            del exception  # its context may get to refer to this frame

    def _send(self, channel: CopyChannel, conn: GuardedConnection) -> None:
        write, size = channel.write, self._size
        codec = text_codec(conn)
        try:
            read = self._file.read
        except AttributeError as error:
            self._fail(channel, error)
            return
        if 0 < size < _BLOCK_BYTES and _is_method_of(read, _GIVES_BLOCKS) and self._file.seekable():  # no pipe
            size = _BLOCK_BYTES
        while True:
            try:
                data = read(size)
                if isinstance(data, str):
                    data = data.encode(codec)
                elif not isinstance(data, bytes):
                    raise TypeError(f"got {type(data).__name__} instead of bytes")
            except Exception as error:
                if is_interruption(error):  # the file waits by greenpg, too
                    raise
                self._fail(channel, error)
                return
            if not data:
                break
            try:
                write(data)
            except Refused:
                channel.finish_writing(REFUSED)
                return
        channel.finish_writing()

    def _fail(self, channel: CopyChannel, error: Exception) -> None:
        self.read_error = error
        channel.finish_writing(f"error in .read() call: {type(error).__name__} {error}")

    def _receive(self, channel: CopyChannel, conn: GuardedConnection) -> None:
        write = self._file.write
        is_text = isinstance(self._file, io.TextIOBase)
        codec = text_codec(conn)
        if _is_method_of(write, _TAKES_BLOCKS):
            decode = codecs.getincrementaldecoder(codec)().decode  # a character may be cut
            while block := channel.read_block():
                write(decode(block) if is_text else block)
            return
        while rows := channel.read_rows():
            for row in rows:
                write(row.decode(codec) if is_text else row)


class FileCopyMixin(GuardedCursor):
    """The methods, for `Cursor`. All suspend; other tasks run meanwhile."""

    def copy_from(
        self,
        file: Any,
        table: str,
        sep: str = "\t",
        null: str = "\\N",
        size: int = 8192,
        columns: Iterable[str] | None = None,
    ) -> None:
        """COPY a table from a file, as psycopg2's: `file.read(size)` gives bytes or str. Files of
        the `io` module on a disk or in memory are read by 64 KiB at least.

        An exception of `read()` ends the COPY; what is raised is the COPY's error, with that one in its text and as its
        `__cause__`. A kill or a timeout ends it as well, comes out unchanged, and the connection is kept. Suspends.
        """
        if not _is_refused_because_green(_cursor.copy_from, self, file, table, sep, null, size, columns):
            return
        where = _table_and_columns(self, table, columns)
        options = f"WITH DELIMITER AS {_quoted(self, sep)} NULL AS {_quoted(self, null)}"
        _run(self, "copy_from", f"COPY {where} FROM stdin {options}", file, size)

    def copy_to(
        self, file: Any, table: str, sep: str = "\t", null: str = "\\N", columns: Iterable[str] | None = None
    ) -> None:
        """COPY a table to a file, as psycopg2's: `file.write()` gets bytes, or str if it is an `io.TextIOBase`.

        Files of the `io` module get many rows at once, any other object one row at a time. An exception of `write()`
        cancels the COPY and comes out unchanged, as a kill or a timeout does; the connection is kept. Suspends.
        """
        if not _is_refused_because_green(_cursor.copy_to, self, file, table, sep, null, columns):
            return
        where = _table_and_columns(self, table, columns)
        options = f"WITH DELIMITER AS {_quoted(self, sep)} NULL AS {_quoted(self, null)}"
        _run(self, "copy_to", f"COPY {where} TO stdout {options}", file, 0)

    def copy_expert(self, sql: Query, file: Any, size: int = 8192) -> None:
        """Any COPY statement, as psycopg2's, from or to a file. See `copy_from()` and `copy_to()`."""
        if not _is_refused_because_green(_cursor.copy_expert, self, sql, file, size):
            return
        if not hasattr(file, "read") and not hasattr(file, "write"):
            raise TypeError(
                "file must be a readable file-like object for COPY FROM; a writable file-like object for COPY TO."
            )
        _run(self, "copy_expert", sql, file, size)


def _is_refused_because_green(method: Any, cursor: GuardedCursor, *args: Any) -> bool:
    """Let psycopg2 check the arguments and the state. False: there is no wait callback, so it has done it all."""
    conn = cursor.connection
    conn._gate.make_way(method.__name__)
    cursor._refuse_if_void(method.__name__)
    try:
        method(cursor, *args)
    except psycopg2.DatabaseError as error:
        if isinstance(error, psycopg2.ProgrammingError) and "asynchronous callback" in str(error):
            return True
        name_by_sqlstate(error)
        raise error
    return False


def _table_and_columns(cursor: GuardedCursor, table: str, columns: Iterable[str] | None) -> str:
    name = extensions.quote_ident(table, cursor)
    if columns is None:
        return name
    return f"{name}({','.join(extensions.quote_ident(column, cursor) for column in columns)})"


def _quoted(cursor: GuardedCursor, text: str) -> str:
    literal = extensions.QuotedString(text)
    literal.prepare(cursor.connection)
    return literal.getquoted().decode(text_codec(cursor.connection))


def _run(cursor: GuardedCursor, name: str, sql: Any, file: Any, size: int) -> None:
    conn = cursor.connection
    if conn.status == extensions.STATUS_PREPARED:
        raise psycopg2.ProgrammingError(f"{name} cannot be used with a prepared two-phase transaction")
    runner: extensions.cursor = cursor
    if cursor.name is not None:  # execute() would make a server-side cursor of it
        runner = extensions.connection.cursor(conn, None, _cursor)
    gate = conn._gate
    outer_call = gate.enter(name)
    copy = FileCopy(file, size)
    gate.copying(copy)
    try:
        _cursor.execute(runner, sql)
    except psycopg2.Error as error:
        name_by_sqlstate(error)
        if copy.read_error is not None:
            raise error from copy.read_error
        end_stray_copy(conn, error)  # there is one if the call was interrupted just before
        raise error
    finally:
        gate.copying(None)
        if gate.interruption is not None:
            set_rowcount(cursor, -1)  # though all of the data may have come
        gate.leave(outer_call)
