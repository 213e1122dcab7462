"""Cancel requests, and the end of a connection that can't be saved.

psycopg2's `connection.cancel()` holds the GIL while it connects: it freezes the process, even from a native thread.
libpq 17 has a cancel that can be polled; with an older one PQcancel runs in a native thread, the GIL released.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import psycopg2
from psycopg2 import extensions

from .. import libpq
from ..errors import ConnectionInherited
from ..hubs import hub
from .forking import is_inherited, keep_from_children


def request_cancel(conn: extensions.connection, deadline: float | None) -> None:
    """Ask the server to stop what the connection is running. Suspends until the server has taken the request.

    From then on a statement that is sent can't be hit by it any more: the server signals before it closes the cancel
    connection, and drops a signal that finds nothing running. Raises `psycopg2.OperationalError` if the request
    can't be delivered, or not before the deadline (on `time.monotonic()`'s clock).
    """
    request = CancelRequest(conn)
    try:
        request.send(deadline)
    finally:
        request.close()


class CancelRequest:
    """A request that is prepared while the connection is open, and can be sent when it isn't any more, repeatedly."""

    def __init__(self, conn: extensions.connection) -> None:
        if is_inherited(conn):
            raise ConnectionInherited("cancel")
        self._is_polled = libpq.has_function("PQcancelStart")
        address = libpq.function("PQcancelCreate" if self._is_polled else "PQgetCancel")(conn.pgconn_ptr)
        if not address:
            raise psycopg2.OperationalError("can't cancel: the connection is closed")
        self._handle: _Handle | None = _Handle(address, "PQcancelFinish" if self._is_polled else "PQfreeCancel")

    def send(self, deadline: float | None) -> None:
        """See `request_cancel()`."""
        assert self._handle is not None
        if self._is_polled:
            keep_from_children(self)
            self._send_by_polling(self._handle.address, deadline)
        else:
            self._send_from_thread(self._handle, deadline)

    def fileno(self) -> int:
        """Its socket's descriptor, -1 if there is none."""
        return -1 if self._handle is None else int(libpq.function("PQcancelSocket")(self._handle.address))

    def close(self) -> None:
        self._handle = None

    def _send_by_polling(self, handle: int, deadline: float | None) -> None:
        libpq.function("PQcancelReset")(handle)  # it may have been sent before
        if not libpq.function("PQcancelStart")(handle):
            raise _error(handle)
        poll, get_socket = libpq.function("PQcancelPoll"), libpq.function("PQcancelSocket")
        state = libpq.POLLING_WRITING  # that is how polling begins
        while state != libpq.POLLING_OK:
            waiter = hub().fd_waiter(get_socket(handle))
            try:
                wait = waiter.wait_read if state == libpq.POLLING_READING else waiter.wait_write
                is_in_time = wait(deadline)
            finally:
                waiter.close()
            if not is_in_time:
                raise psycopg2.OperationalError(_NO_ANSWER)
            state = poll(handle)
            if state == libpq.POLLING_FAILED:
                raise _error(handle)

    @staticmethod
    def _send_from_thread(handle: _Handle, deadline: float | None) -> None:
        # In a task of its own: a thread that connects can't be interrupted, but it can be left alone.
        done = hub().event()
        hub().spawn(_cancel_in_thread, handle, done.set)
        if not done.wait(deadline):
            raise psycopg2.OperationalError(_NO_ANSWER)
        if done.value is not _SENT:
            raise psycopg2.OperationalError(f"can't cancel: {done.value}")


_NO_ANSWER = "can't cancel: the server doesn't answer"
_SENT = object()


class _Handle:
    """libpq's object for a request, freed when nobody, no thread either, uses it any more."""

    __slots__ = ("_free", "address")

    def __init__(self, address: int, free: str) -> None:
        self.address = address
        self._free = libpq.function(free)

    def __del__(self) -> None:
        self._free(self.address)


def _cancel_in_thread(handle: _Handle, done: Callable[[object], None]) -> None:
    send = libpq.blocking_function("PQcancel")

    def cancel() -> object:
        message = libpq.text_buffer(256)
        is_sent = send(handle.address, message, len(message))
        return _SENT if is_sent else message.value.decode("utf-8", "replace").strip()

    outcome: object = "interrupted"
    try:
        outcome = hub().run_in_thread(cancel)
    finally:
        done(outcome)


def _error(handle: int) -> psycopg2.OperationalError:
    message: bytes = libpq.function("PQcancelErrorMessage")(handle)
    return psycopg2.OperationalError(f"can't cancel: {message.decode('utf-8', 'replace').strip()}")


def shut_down(conn: extensions.connection, how: int = socket.SHUT_RDWR) -> None:
    """Cut the connection's socket, whoever is using it: reads and writes on it end at once, or only
    the writes, by `socket.SHUT_WR`. Doesn't suspend.

    Closing the descriptor instead would let somebody else get its number while it is waited for.
    """
    try:
        fd = os.dup(conn.fileno())
    except (OSError, psycopg2.Error):  # closed already
        return
    with socket.socket(fileno=fd) as duplicate:
        try:
            duplicate.shutdown(how)
        except OSError:  # the other side was faster
            pass
