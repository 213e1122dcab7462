"""The data phase of a COPY, driven on psycopg2's own connection: libpq's non-blocking calls, and the hub's waits.

psycopg2 sends the statement itself, and so opens the transaction. From the server's "ready" to the end of the data
nobody else may touch the connection: whoever drives a COPY sees to it that `conn._owner` is set.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from .. import libpq
from ..hubs import FdWaiter, hub
from .cancel import request_cancel, shut_down

#: Seconds that an abandoned COPY gets to come to its end; then the connection is closed.
ABANDON_TIMEOUT = 5.0

#: A COPY that never has to wait lets the other tasks run after so many seconds.
_LONGEST_RUN = 0.004
#: sleep(0) isn't enough: gevent runs up to 50 such callbacks before it looks at timers and sockets again.
SHORTEST_PAUSE = 1e-6
# Larger pieces would grow libpq's buffer, which never shrinks, and take the hub's time.
_PIECE_BYTES = 64 * 1024
# While it can't write, libpq's input is read from time to time: a server that is stuck sending notices reads nothing.
_NOTICE_INTERVAL = 0.01
_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE


class ConnectionLost(Exception):
    """libpq has noticed that the connection is gone; psycopg2's `poll()` says how."""


class CopyChannel:
    """The COPY under way on a connection. All methods suspend, but for `direction`."""

    def __init__(self, conn: Any, waiter: FdWaiter, deadline: float | None = None) -> None:
        self._conn = conn
        self._waiter = waiter
        self._deadline = deadline
        self._pgconn: int = conn.pgconn_ptr
        self._hub = hub()
        self._ran_since = time.monotonic()
        self._put = libpq.function("PQputCopyData")
        self._unflushed = 0
        self._reader: libpq.CopyReader | None = None
        #: libpq.COPY_IN (to the server), libpq.COPY_OUT, or None if no COPY is under way.
        self.direction: int | None = None
        if conn.get_transaction_status() == _ACTIVE:
            direction = libpq.copy_in_progress(self._pgconn)
            if direction in (libpq.COPY_IN, libpq.COPY_OUT):
                self.direction = direction
                self._set_nonblocking()
        if self.direction == libpq.COPY_OUT:
            self._reader = libpq.CopyReader(self._pgconn)

    def _set_nonblocking(self) -> None:
        # psycopg2 has done it where a wait callback was set when it connected. It is never undone: PQexec, which is
        # psycopg2's way without a callback, switches for itself.
        if not libpq.function("PQisnonblocking")(self._pgconn):
            libpq.function("PQsetnonblocking")(self._pgconn, 1)

    # -- to the server

    def write(self, data: bytes) -> None:
        """Send data. When it returns, at most `_PIECE_BYTES` are not with the operating system yet."""
        length = len(data)
        if length <= _PIECE_BYTES:
            if self._put(self._pgconn, data, length) != 1:
                raise ConnectionLost
            # libpq sends by itself what it can. To flush each time would send its 8 KiB in two parts.
            self._unflushed += length
            if self._unflushed >= _PIECE_BYTES:
                self._flush()
            return
        for start in range(0, length, _PIECE_BYTES):
            self.write(data[start : start + _PIECE_BYTES])

    def finish_writing(self, error: str | None = None) -> None:
        """Say that the data is complete; with an error, that it won't be: the server rolls the COPY back."""
        message = None if error is None else error.encode("utf-8", "replace").replace(b"\0", b"")
        if libpq.function("PQputCopyEnd")(self._pgconn, message) != 1:
            raise ConnectionLost
        self._flush()

    def _flush(self) -> None:
        flush = libpq.function("PQflush")
        pgconn = self._pgconn
        while True:
            unsent = flush(pgconn)
            if unsent == 0:
                break
            if unsent < 0:
                raise ConnectionLost
            self._wait(self._waiter.wait_write, time.monotonic() + _NOTICE_INTERVAL)
            if not libpq.function("PQconsumeInput")(pgconn):
                raise ConnectionLost
        self._unflushed = 0
        self._breathe()

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

    def abandon(self, reason: str) -> None:
        """End the data phase early, on the server as well. Takes `ABANDON_TIMEOUT` at most.

        Raises `psycopg2.OperationalError` if that isn't enough: then the connection is good for nothing any more.
        """
        self._deadline = give_up_at = time.monotonic() + ABANDON_TIMEOUT
        if self.direction == libpq.COPY_IN:
            self.finish_writing(reason)
            return
        request_cancel(self._conn, give_up_at)
        while self.read_block():
            pass

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

    def cancel_outcome(self) -> libpq.Result:
        """`outcome()` when nobody wants to wait for it any more. Takes `ABANDON_TIMEOUT` at most, as `abandon()`."""
        self._deadline = time.monotonic() + ABANDON_TIMEOUT
        request_cancel(self._conn, self._deadline)
        return self.outcome()

    # -- waiting

    def _wait(self, wait: Any, at_most_until: float | None) -> None:
        deadline = self._deadline
        if at_most_until is not None and (deadline is None or at_most_until < deadline):
            wait(at_most_until)
        elif not wait(deadline):
            raise self._too_late()
        self._ran_since = time.monotonic()

    def _breathe(self) -> None:
        now = time.monotonic()
        if now - self._ran_since >= _LONGEST_RUN:
            if self._deadline is not None and now >= self._deadline:
                raise self._too_late()
            self._hub.sleep(SHORTEST_PAUSE)
            self._ran_since = time.monotonic()

    def _too_late(self) -> psycopg2.Error:
        if self._conn._interruption is None and self._conn._deadlines is not None:
            return self._conn._deadlines.exceeded()  # type: ignore[no-any-return]
        return psycopg2.OperationalError(f"the server has not ended the COPY within {ABANDON_TIMEOUT:g} s")


def waiter_of(conn: Any) -> FdWaiter:
    """The connection's waiter, made if there is none yet."""
    waiter: FdWaiter | None = conn._fd_waiter
    if waiter is None:
        waiter = conn._fd_waiter = hub().fd_waiter(conn.fileno())
    return waiter


def cut_off(conn: Any) -> None:
    """Close a connection whose COPY could not be brought to its end."""
    shut_down(conn)
    conn._owner = None
    if conn._fd_waiter is not None:
        conn._fd_waiter.close()
    extensions.connection.close(conn)


def is_ready_for_copy(error: psycopg2.Error) -> bool:
    """Whether it is how psycopg2 says that the server is ready for the data of a COPY."""
    return str(error).startswith("can't execute COPY ")


def end_stray_copy(conn: Any, error: psycopg2.Error) -> None:
    """End a COPY that was started by `execute()`, which psycopg2 refuses after the fact: by this error. Suspends.

    psycopg2 leaves a green connection in the middle of the COPY, good for nothing.
    """
    if not is_ready_for_copy(error) or conn.closed or conn.get_transaction_status() != _ACTIVE:
        return
    conn._owner = hub().current()
    try:
        channel = CopyChannel(conn, waiter_of(conn))
        if channel.direction is not None:
            channel.abandon("COPY was started by execute()")
            channel.outcome()
    except BaseException as exception:
        cut_off(conn)
        if not isinstance(exception, ConnectionLost | psycopg2.Error):
            raise
    finally:
        conn._owner = None
