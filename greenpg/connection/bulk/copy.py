"""psycopg 3's `with cur.copy(...) as copy`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import psycopg2
from psycopg2 import extensions

from ... import libpq
from ...errors import CopyInProgress, is_interruption
from ...errors.sqlstate import name_by_sqlstate
from ...hubs import hub
from ..guarded_cursor import GuardedCursor, Params, Query
from ..interrupting import cut_off
from ..occupants import Occupant
from ..server_errors import error_of, text_codec
from .channel import ConnectionLost, Refused
from .copy_channel import REFUSED, CopyChannel, end_stray_copy, is_ready_for_copy
from .copy_format import RowFormat

_cursor = extensions.cursor
_Typecaster = type(extensions.UNICODE)  # takes bytes in the client encoding; text it would encode in UTF-8

# write_row() collects lines up to so many characters: a call into libpq for each row would cost more than the row.
_WRITE_BEHIND = 32 * 1024
_BINARY_SIGNATURE = b"PGCOPY\n\xff\r\n\0"


class Copy(Occupant):
    """A COPY under way, from `Cursor.copy()`; all its methods suspend, and any error ends the COPY.

    COPY ... FROM STDIN: `write()` and `write_row()`. COPY ... TO STDOUT: iterate, `read()`, or `rows()` and
    `read_row()`. Until the block ends the connection takes no other statement: `errors.CopyInProgress`.

    Leaving the block normally ends the COPY and raises the server's error if there is one. Leaving it by an exception
    (a kill and a timeout included), or before all was read, ends it on the server: the rows don't arrive, the
    transaction is in error, the exception comes out unchanged, and the connection can be used on after a rollback.
    """

    def __init__(self, cursor: GuardedCursor, statement: Query, params: Params = None) -> None:
        self._cursor = cursor
        self._conn = cursor.connection
        self._statement = statement
        self._params = params
        self._channel: CopyChannel | None = None
        self._task: object = None  # who opened the block
        self._is_busy = False
        self._at_end = False
        self._unsent: list[str] = []
        self._unsent_length = 0
        self._rows: list[bytes] = []  # read, the next one last
        self._casts: list[Any] = []

    def __enter__(self) -> Copy:
        conn = self._conn
        self._codec = text_codec(conn)
        self._format = RowFormat(conn)
        deadline = self._start()
        self._task = hub().current()
        conn._gate.occupy(self)
        try:
            channel = CopyChannel(conn, conn._gate.waiter_of(conn), deadline)
        except BaseException:
            cut_off(conn)
            raise
        self._channel = channel
        return self

    def _start(self) -> float | None:
        conn = self._conn
        gate = conn._gate
        gate.make_way("copy")
        self._cursor._refuse_if_void("copy")
        if self._cursor.name is not None:
            raise psycopg2.ProgrammingError("copy() can't be used with a named cursor")
        if conn.async_:
            raise psycopg2.ProgrammingError("copy cannot be used in asynchronous mode")
        deadline: float | None = gate.next_deadline()
        outer_call = gate.enter("copy")
        try:
            _cursor.execute(self._cursor, self._statement, self._params)
        except psycopg2.DatabaseError as error:
            if gate.interruption is not None:
                end_stray_copy(conn, error)  # interrupted just before
                raise
            if not is_ready_for_copy(error):
                name_by_sqlstate(error)
                raise error
            return deadline
        finally:
            gate.leave(outer_call)
        raise psycopg2.ProgrammingError("copy() is for COPY ... FROM STDIN and COPY ... TO STDOUT, not for other SQL")

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn = self._conn
        if self._channel is None or conn._gate.owner is not self:
            return  # the connection was closed meanwhile
        try:
            if exc is None:
                self._finish()
            elif not conn.closed:
                self._abandon(f"error from Python: {type(exc).__name__}: {exc}", exc)
        except BaseException as second:
            if not conn.closed and conn._gate.owner is self:
                self._end_or_cut_off(second)
            if exc is None or is_interruption(second) or not isinstance(second, Exception):
                raise
            # the first one is of more interest
        finally:
            self._channel = None
            self._rows.clear()
            conn._gate.vacate(self)

    def _finish(self) -> None:
        channel = self._active("copy")
        if channel.direction == libpq.COPY_IN:
            with _Turn(self):
                try:
                    self._send_unsent(channel)
                except Refused:
                    channel.finish_writing(REFUSED)
                else:
                    channel.finish_writing()
                channel.direction = None
        elif not self._at_end:
            self._abandon("not read to its end")
            return
        with _Turn(self):
            outcome = channel.outcome()
        self._settle(outcome)
        if outcome.status == libpq.FATAL_ERROR:
            raise error_of(outcome, self._conn, self._cursor)

    def _abandon(self, reason: str, exception: BaseException | None = None) -> None:
        channel = self._active("copy")
        with _Turn(self):
            if channel.direction is not None and not self._at_end:
                channel.abandon(reason, exception)
            self._settle(channel.outcome())

    def _end_or_cut_off(self, exception: BaseException) -> None:
        """The COPY could not be ended: because of the server's error, or of an interruption."""
        conn = self._conn
        if conn.get_transaction_status() != extensions.TRANSACTION_STATUS_ACTIVE:
            return
        is_interrupted = is_interruption(exception) or not isinstance(exception, psycopg2.Error)
        if self._channel is not None and self._channel.direction is None and is_interrupted:
            try:  # interrupted while waiting for the outcome
                self._settle(self._channel.cancel_outcome(exception))
                return
            except BaseException as second:
                if is_interruption(second) or not isinstance(second, psycopg2.Error | ConnectionLost):
                    cut_off(conn)
                    raise
        cut_off(conn)

    def _settle(self, outcome: libpq.Result) -> None:
        rows = -1 if outcome.status == libpq.FATAL_ERROR else outcome.rows_affected
        self._cursor._note_copy(rows, outcome.command.decode("ascii", "replace"))
        self._conn.poll()  # psycopg2 looks for notices and notifications; it doesn't wait

    # -- to the server

    def write(self, buffer: bytes | bytearray | memoryview | str) -> None:
        """Send data in the COPY's format, cut anywhere; str is encoded. Suspends until the system has taken it.

        Raises the server's error as soon as it is known that it has refused the COPY; so does `write_row()`.
        """
        channel = self._active("write", libpq.COPY_IN)
        self._send(channel, buffer.encode(self._codec) if isinstance(buffer, str) else bytes(buffer))

    def write_row(self, row: Sequence[Any]) -> None:
        """Send a row of Python values; the COPY must be in the text format. Suspends now and then.

        Raises `psycopg2.ProgrammingError` for a value that has no text form.
        """
        channel = self._active("write_row", libpq.COPY_IN)
        line = self._format.line(row)
        self._unsent.append(line)
        self._unsent_length += len(line)
        if self._unsent_length >= _WRITE_BEHIND:
            self._send(channel, b"")

    def _send(self, channel: CopyChannel, data: bytes) -> None:
        try:
            with _Turn(self):
                self._send_unsent(channel)
                channel.write(data)
        except Refused:
            self._raise_refusal(channel)

    def _raise_refusal(self, channel: CopyChannel) -> None:
        with _Turn(self):
            channel.finish_writing(REFUSED)
            channel.direction = None
            outcome = channel.outcome()
        self._settle(outcome)
        self._channel = None
        self._conn._gate.vacate(self)
        raise error_of(outcome, self._conn, self._cursor) from None

    def _send_unsent(self, channel: CopyChannel) -> None:
        if self._unsent:
            data = "".join(self._unsent).encode(self._codec)
            self._unsent.clear()
            self._unsent_length = 0
            channel.write(data)

    # -- from the server

    def read(self) -> bytes:
        """Some of the data, 128 KiB at most, rows cut anywhere; b"" at its end."""
        channel = self._active("read", libpq.COPY_OUT)
        if self._rows:
            data = b"".join(reversed(self._rows))
            self._rows.clear()
            return data
        if self._at_end:
            return b""
        with _Turn(self):
            data = channel.read_block()
        self._at_end = not data
        return data

    def __iter__(self) -> Iterator[bytes]:
        """The data, in blocks as `read()` gives them."""
        while data := self.read():
            yield data

    def read_row(self) -> tuple[Any, ...] | None:
        """The next row, None after the last. Its values are str, or as `set_types()` says. Text format only.

        Don't mix it with `read()`, which may cut rows.
        """
        channel = self._active("read_row", libpq.COPY_OUT)
        if not self._rows:
            if self._at_end:
                return None
            with _Turn(self):
                self._rows = channel.read_rows()
            if self._rows and self._rows[0].startswith(_BINARY_SIGNATURE):
                raise psycopg2.NotSupportedError("read_row() and rows() need a COPY in the text format, not in binary")
            self._rows.reverse()
            if not self._rows:
                self._at_end = True
                return None
        line = self._rows.pop()
        if not self._casts:
            return self._format.row(line)
        cursor = self._cursor
        return tuple([cast(value, cursor) for cast, value in zip(self._casts, self._format.fields(line), strict=True)])

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows, as `read_row()` gives them."""
        while (row := self.read_row()) is not None:
            yield row

    def set_types(self, types: Sequence[Any]) -> None:
        """Of which type the columns are: OIDs or psycopg2 typecasters (`psycopg2.extensions.INTEGER`, ...).

        `read_row()` and `rows()` then give Python values. Doesn't suspend. Raises `psycopg2.ProgrammingError` for an
        OID without a typecaster.
        """
        self._casts = [self._typecaster(type_) for type_ in types]

    def _typecaster(self, type_: Any) -> Any:
        if callable(type_):
            if isinstance(type_, _Typecaster):
                return type_
            codec = self._codec  # a function, made to take text
            return lambda value, cursor: type_(None if value is None else value.decode(codec), cursor)
        for registry in (self._cursor.string_types, self._conn.string_types, extensions.string_types):
            if registry and type_ in registry:
                return registry[type_]
        raise psycopg2.ProgrammingError(f"psycopg2 has no typecaster for the type {type_!r}")

    # -- checks

    def _active(self, operation: str, direction: int | None = None) -> CopyChannel:
        conn, channel = self._conn, self._channel
        if self._is_busy:
            self.make_way(operation)
        if channel is None or conn.closed or conn._gate.owner is not self:
            raise psycopg2.InterfaceError(f"{operation}(): the COPY has ended")
        if direction is not None and channel.direction != direction:
            needed = "FROM STDIN" if direction == libpq.COPY_IN else "TO STDOUT"
            raise psycopg2.ProgrammingError(f"{operation}() needs a COPY ... {needed}")
        return channel

    # -- what the connection asks of its owner

    def make_way(self, operation: str) -> None:
        raise CopyInProgress(operation, hub().describe(self._task))

    def let_go(self) -> bool:
        if not self._is_busy:
            self._conn._gate.vacate(self)
        return not self._is_busy


class _Turn:
    """A call into the channel: one task at a time; a lost connection becomes psycopg2's error."""

    __slots__ = ("_copy",)

    def __init__(self, copy: Copy) -> None:
        self._copy = copy

    def __enter__(self) -> None:
        self._copy._is_busy = True

    def __exit__(self, exc_type: Any, exc: BaseException | None, traceback: Any) -> None:
        self._copy._is_busy = False
        if isinstance(exc, ConnectionLost):
            conn = self._copy._conn
            try:
                conn.poll()  # marks the connection as closed, and raises
            finally:
                cut_off(conn)
            raise psycopg2.OperationalError("the connection was lost during a COPY")
