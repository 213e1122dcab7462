"""Whether a server's host answers at all, asked without making a session there."""

from __future__ import annotations

import _socket  # the module `socket` may be monkey-patched: its calls would wait by other rules
import contextlib
import errno
from collections.abc import Callable

from ...hubs import hub
from .route import Host

#: libpq's SSLRequest, which each server and pooler answers by one byte, before anybody logs in.
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


def answers(host: Host, seconds: float) -> bool:
    """Whether it says something within so many seconds, and be it that nobody listens there. True, too, where that
    can't be asked: a Unix socket, a name that was never looked up. Suspends."""
    if not host.address or not host.port:
        return True
    deadline = hub().now() + seconds
    family = _socket.AF_INET6 if ":" in host.address else _socket.AF_INET
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    with contextlib.closing(sock):
        sock.setblocking(False)
        if sock.connect_ex((host.address, int(host.port))) not in (0, errno.EINPROGRESS):
            return True
        waiter = hub().fd_waiter(sock.fileno())
        try:
            return _says_something(sock, waiter.wait_write, waiter.wait_read, deadline)
        finally:
            waiter.close()


def _says_something(
    sock: _socket.socket,
    wait_write: Callable[[float], bool],
    wait_read: Callable[[float], bool],
    deadline: float,
) -> bool:
    if not wait_write(deadline):
        return False
    try:
        sock.send(_SSL_REQUEST)
    except OSError:  # refused
        return True
    return wait_read(deadline)
