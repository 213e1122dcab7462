"""The data phase of a COPY, driven on psycopg2's own connection: libpq's non-blocking calls, and the hub's waits.

psycopg2 sends the statement itself, and so opens the transaction. From the server's "ready" to the end of the data
nobody else may touch the connection: whoever drives a COPY sees to it that the connection's gate is occupied.
"""

from __future__ import annotations

import re
import time

import psycopg2
from psycopg2 import extensions

from ... import libpq
from ...errors import is_interruption
from ...hubs import FdWaiter
from ...libpq.copy_reader import CopyReader
from ...libpq.socket_view import SocketView
from ..guarded_connection import GuardedConnection
from ..interrupting import cut_off, end_on_server
from .channel import Channel, ConnectionLost, Refused

# Larger pieces would grow libpq's buffer, which never shrinks, take the hub's time, and be too much for the buffer of a
# TCP socket that is still small.
_PIECE_BYTES = 16 * 1024
_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE

# What libpq reads at once into its buffer, unless large rows have made that grow.
_READ_BYTES = 16 * 1024
_QUIET_INTERVAL = 0.001

# An error among the server's messages: a letter and the length, then the fields, each a letter and a text that ends
# with a zero: severity, the same untranslated, SQLSTATE. libpq may have taken a part of the first message already.
_ERROR = re.compile(rb"E\0.{3}S[^\0]+\0(V(ERROR|FATAL|PANIC)\0)?C[0-9A-Z]{5}\0", re.DOTALL)

#: Said to a server that has refused the data: it doesn't listen, but should it, the COPY must not succeed.
REFUSED = "the server has refused the data"


class CopyChannel(Channel):
    """The COPY under way on a connection. All methods suspend, but for `direction`."""

    what = "the COPY"

    def __init__(self, conn: GuardedConnection, waiter: FdWaiter, deadline: float | None = None) -> None:
        super().__init__(conn, waiter, deadline)
        self._put = libpq.function("PQputCopyData")
        self._unflushed = 0
        self._is_ending = False
        self._socket = SocketView(self._pgconn)
        self._process_notices = libpq.function("PQisBusy")
        self._looked_at = 0
        self._looked_first = 0.0
        self._has_more = False
        self._reader: CopyReader | None = None
        #: libpq.COPY_IN (to the server), libpq.COPY_OUT, or None if no COPY is under way.
        self.direction: int | None = None
        if conn.get_transaction_status() == _ACTIVE:
            direction = libpq.copy_in_progress(self._pgconn)
            if direction in (libpq.COPY_IN, libpq.COPY_OUT):
                self.direction = direction
                self._set_nonblocking()
        if self.direction == libpq.COPY_OUT:
            self._reader = CopyReader(self._pgconn)

    # -- to the server

    def write(self, data: bytes) -> None:
        """Send data. When it returns, at most `_PIECE_BYTES` are not with the operating system yet.

        Raises `Refused` if the server doesn't want any more: `finish_writing(REFUSED)`, then its error is the outcome.
        """
        length = len(data)
        if length <= _PIECE_BYTES:
            self._make_room()
            self._consume()
            if self._put(self._pgconn, data, length) != 1:
                raise ConnectionLost
            # libpq sends by itself what it can. To flush each time would send its 8 KiB in two parts.
            self._unflushed += length
            if self._unflushed >= _PIECE_BYTES:
                self._unflushed = 0
                self._flush()
            return
        for start in range(0, length, _PIECE_BYTES):
            self.write(data[start : start + _PIECE_BYTES])

    # libpq leaves an error that comes during a COPY FROM unread until the data are complete, and hides it in its buffer
    # when it next reads: to get notices, or because it can't send at once. So libpq gets no more to send than there is
    # room for, and reads only what has been looked at: much, or what nothing has been added to for a while.

    def _make_room(self) -> None:
        while not self._socket.is_writable():
            self._wait_for_room()

    def _flush(self) -> None:
        self._make_room()
        super()._flush()

    def _consume(self) -> None:
        if self._is_ending:
            super()._consume()
        else:
            self._look_for_error()

    def _look_for_error(self) -> None:
        while has_come := self._socket.peek():
            if len(has_come) != self._looked_at:
                if _ERROR.search(has_come):
                    raise Refused
                self._looked_at = len(has_come)
                self._looked_first = time.monotonic()
                self._notice_interval = _QUIET_INTERVAL
            if not self._can_be_read(has_come):
                break
            self._read_notices()
            self._breathe()
        if has_come is None:
            self._read_notices()

    def _can_be_read(self, has_come: bytes) -> bool:
        if self._socket.is_encrypted or len(has_come) >= _READ_BYTES:
            return True
        # The server may read nothing before somebody reads its notices.
        quiet_for = time.monotonic() - self._looked_first
        return quiet_for > _QUIET_INTERVAL * (10 if self._socket.is_writable() else 1)

    def _read_notices(self) -> None:
        super()._consume()
        self._process_notices(self._pgconn)  # or libpq's buffer would grow
        self._looked_at = 0

    def finish_writing(self, error: str | None = None) -> None:
        """Say that the data is complete; with an error, that it won't be: the server rolls the COPY back."""
        message = None if error is None else error.encode("utf-8", "replace").replace(b"\0", b"")
        self._is_ending = True
        if libpq.function("PQputCopyEnd")(self._pgconn, message) != 1:
            raise ConnectionLost
        self._flush()

    # -- from the server

    def read_block(self) -> bytes:
        """Some of the data, 128 KiB at most, rows cut anywhere; b"" at its end."""
        assert self._reader is not None
        while True:
            block, state = self._reader.read_block()
            self._act_on(state, bool(block))
            if block or state == libpq.END:
                return block

    def read_rows(self) -> list[bytes]:
        """Some rows, as the server has sent them, each complete; none at the end."""
        assert self._reader is not None
        while True:
            rows, state = self._reader.read_rows()
            self._act_on(state, bool(rows))
            if rows or state == libpq.END:
                return rows

    def _act_on(self, state: int, has_data: bool) -> None:
        if state == libpq.LOST:
            raise ConnectionLost
        if state == libpq.WAIT and not has_data:
            self._wait(self._waiter.wait_read, None)
        else:
            self._breathe()

    # -- the end

    def abandon(self, reason: str, exception: BaseException | None = None) -> None:
        """End the data phase early, on the server as well, because of the exception. See `end_deadline_after()`.

        Raises `psycopg2.OperationalError` if that isn't enough: then the connection is good for nothing any more.
        """
        give_up_at = self._give_up_later(exception)
        if self.direction == libpq.COPY_IN:
            self.finish_writing(reason)
        else:
            end_on_server(self._conn, self, give_up_at)

    def outcome(self) -> libpq.Result:
        """The result of the COPY, once the data phase has ended: the first error, or else the last result."""
        outcome: libpq.Result | None = None
        is_busy, consume = libpq.function("PQisBusy"), libpq.function("PQconsumeInput")
        while True:
            while is_busy(self._pgconn):
                self._wait(self._waiter.wait_read, None)
                if not consume(self._pgconn):
                    raise ConnectionLost
            result = libpq.next_result(self._pgconn)
            if result is None:
                break
            if result.status in (libpq.COPY_IN, libpq.COPY_OUT):
                raise psycopg2.NotSupportedError("one COPY after the other in the same statement isn't supported")
            if outcome is None or outcome.status != libpq.FATAL_ERROR:
                outcome = result
        if outcome is None:
            raise ConnectionLost
        return outcome

    def cancel_outcome(self, exception: BaseException) -> libpq.Result:
        """`outcome()` when nobody wants to wait for it any more, because of the exception, as `abandon()`."""
        end_on_server(self._conn, _Outcome(self._conn, self._waiter), self._give_up_later(exception))
        return self.outcome()

    # -- as what is running on the server: its data, that is

    def is_over(self) -> bool:
        """Drop a part of the data that has come: a server that isn't cancelled yet sends more as fast as it is taken.
        Doesn't suspend."""
        assert self._reader is not None
        _, state = self._reader.read_block()
        if state == libpq.LOST:
            raise ConnectionLost
        self._has_more = state == libpq.MORE
        return bool(state == libpq.END)

    def wait(self, until: float) -> object:
        if self._has_more:
            self._breathe()
            return True
        return self._waiter.wait_read(until)


class _Outcome:
    """The end of a COPY whose data are through."""

    what = "the COPY"

    def __init__(self, conn: GuardedConnection, waiter: FdWaiter) -> None:
        self._pgconn = conn.pgconn_ptr
        self._waiter = waiter

    def is_over(self) -> bool:
        if not libpq.function("PQisBusy")(self._pgconn):
            return True
        if not libpq.function("PQconsumeInput")(self._pgconn):
            raise ConnectionLost
        return not libpq.function("PQisBusy")(self._pgconn)

    def wait(self, until: float) -> object:
        return self._waiter.wait_read(until)


def is_ready_for_copy(error: psycopg2.Error) -> bool:
    """Whether it is how psycopg2 says that the server is ready for the data of a COPY."""
    return str(error).startswith("can't execute COPY ")


def end_copy_begun(conn: GuardedConnection, waiter: FdWaiter) -> None:
    """End the COPY that the server is ready for, if it is. Suspends. If it raises, the connection can't be kept."""
    channel = CopyChannel(conn, waiter)
    if channel.direction is None:
        return
    try:
        channel.abandon("COPY was started by execute()")
        channel.outcome()
    except ConnectionLost:
        raise psycopg2.OperationalError("the connection was lost during a COPY") from None


def end_stray_copy(conn: GuardedConnection, error: psycopg2.Error) -> None:
    """End a COPY that was started by `execute()`, which psycopg2 refuses after the fact: by this error. Suspends.

    psycopg2 leaves a green connection in the middle of the COPY, good for nothing.
    """
    if not is_ready_for_copy(error) or conn.closed or conn.get_transaction_status() != _ACTIVE:
        return
    gate = conn._gate
    with gate.occupied():
        try:
            end_copy_begun(conn, gate.waiter_of(conn))
        except BaseException as exception:
            cut_off(conn)
            if is_interruption(exception) or not isinstance(exception, psycopg2.Error):
                if gate.interruption is not None:
                    gate.hold_back(exception)  # the later one comes out
                raise
