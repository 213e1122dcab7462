"""Cancel requests, and the end of a connection that can't be saved.

psycopg2's `connection.cancel()` holds the GIL while it connects: it freezes the process, even from a native thread.
libpq 17 has a cancel that can be polled; with an older one PQcancel runs in a native thread, the GIL released.
"""

from __future__ import annotations

import os
import socket

import psycopg2
from psycopg2 import extensions

from .. import libpq
from ..errors import note_interruption
from ..hubs import hub


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
    """A request that is prepared while the connection is open, and can be sent when it isn't any more."""

    def __init__(self, conn: extensions.connection) -> None:
        self._is_polled = libpq.has_function("PQcancelStart")
        self._handle = libpq.function("PQcancelCreate" if self._is_polled else "PQgetCancel")(conn.pgconn_ptr)
        if not self._handle:
            raise psycopg2.OperationalError("can't cancel: the connection is closed")

    def send(self, deadline: float | None) -> None:
        """See `request_cancel()`."""
        if self._is_polled:
            self._send_by_polling(deadline)
        else:
            self._send_from_thread()

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            libpq.function("PQcancelFinish" if self._is_polled else "PQfreeCancel")(handle)

    def _send_by_polling(self, deadline: float | None) -> None:
        if not libpq.function("PQcancelStart")(self._handle):
            raise self._error()
        poll, get_socket = libpq.function("PQcancelPoll"), libpq.function("PQcancelSocket")
        state = libpq.POLLING_WRITING  # that is how polling begins
        while state != libpq.POLLING_OK:
            waiter = hub().fd_waiter(get_socket(self._handle))
            try:
                wait = waiter.wait_read if state == libpq.POLLING_READING else waiter.wait_write
                is_in_time = wait(deadline)
            finally:
                waiter.close()
            if not is_in_time:
                raise psycopg2.OperationalError("can't cancel: the server doesn't answer")
            state = poll(self._handle)
            if state == libpq.POLLING_FAILED:
                raise self._error()

    def _error(self) -> psycopg2.OperationalError:
        message: bytes = libpq.function("PQcancelErrorMessage")(self._handle)
        return psycopg2.OperationalError(f"can't cancel: {message.decode('utf-8', 'replace').strip()}")

    def _send_from_thread(self) -> None:
        send, free = libpq.blocking_function("PQcancel"), libpq.function("PQfreeCancel")
        # The thread has the handle to itself: who is killed meanwhile can't take it away.
        handle, self._handle = self._handle, None
        message = libpq.text_buffer(256)

        def cancel() -> bool:
            try:
                return bool(send(handle, message, len(message)))
            finally:
                free(handle)

        try:
            is_sent = hub().run_in_thread(cancel)
        except BaseException as exception:  # none of its own: cancel() raises nothing
            note_interruption(exception)
            raise
        if not is_sent:
            raise psycopg2.OperationalError(f"can't cancel: {message.value.decode('utf-8', 'replace').strip()}")


def shut_down(conn: extensions.connection) -> None:
    """Cut the connection's socket, whoever is using it: reads and writes on it end at once. Doesn't suspend.

    Closing the descriptor instead would let somebody else get its number while it is waited for.
    """
    try:
        fd = os.dup(conn.fileno())
    except (OSError, psycopg2.Error):  # closed already
        return
    with socket.socket(fileno=fd) as duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side was faster
            pass
