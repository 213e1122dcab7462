"""What a connection's socket holds, seen without taking it from libpq."""

from __future__ import annotations

import ctypes
import select
import socket

from ..errors import LibpqUnavailable
from . import function

#: What `SocketView.peek()` can see.
PEEK_BYTES = 32 * 1024

_AT_ITS_END = select.POLLERR | select.POLLHUP | getattr(select, "POLLRDHUP", 0)


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class SocketView:
    """A look at the socket of one connection, by one task at a time. Nothing here suspends."""

    def __init__(self, pgconn: int | None) -> None:
        self._pgconn = pgconn
        self._ssl = function("PQgetssl")(pgconn)
        self._memory = ctypes.create_string_buffer(PEEK_BYTES)
        self._polled = _PollFd()

    @property
    def is_encrypted(self) -> bool:
        """By SSL. Then only the next message can be seen, and libpq reads no more than that at once."""
        return bool(self._ssl)

    def is_writable(self) -> bool:
        """Whether there is room: a third of the socket's buffer at least, says Linux. What is lost has room."""
        return bool(self._poll() & ~select.POLLIN)

    def peek(self) -> bytes | None:
        """The next bytes that the server has sent, `PEEK_BYTES` at most; b"": there are none.

        None: the connection is at its end, or nothing of it can be seen.
        """
        events = self._poll()
        try:
            if self._ssl:
                length = function("SSL_peek")(self._ssl, self._memory, PEEK_BYTES)
            elif events & ~select.POLLOUT:
                length = function("recv")(self._fd(), self._memory, PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            else:
                return b""
        except LibpqUnavailable:
            return None
        if length > 0:
            return ctypes.string_at(self._memory, length)
        return b"" if self._ssl and not events & _AT_ITS_END else None

    def _poll(self) -> int:
        polled = self._polled
        polled.fd = self._fd()
        polled.events = select.POLLIN | select.POLLOUT | _AT_ITS_END
        if polled.fd < 0:
            return select.POLLERR
        try:
            function("poll")(ctypes.byref(polled), 1, 0)
        except LibpqUnavailable:
            return select.POLLIN | select.POLLOUT
        return int(polled.revents)

    def _fd(self) -> int:
        return int(function("PQsocket")(self._pgconn))
