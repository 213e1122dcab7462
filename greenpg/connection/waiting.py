"""The wait callback: what psycopg2 calls whenever it would block.

psycopg2 holds the connection's mutex while it calls. Whoever calls into the same connection meanwhile would block the
whole native thread, hub and all; that's why the waiting task is noted on the connection (`WaitState.owner`) and why
`Connection` and `Cursor` look there before they call psycopg2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..errors import ConnectionInUse
from ..hubs import FdWaiter, Hub, hub

_OK, _READ, _WRITE = extensions.POLL_OK, extensions.POLL_READ, extensions.POLL_WRITE
_CONNECTED = frozenset({extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED})


class WaitState:
    """What a `Connection` knows of its waits. No slots: they would keep it from being mixed into other classes."""

    #: The task that waits inside psycopg2 on this connection.
    _owner: object | None = None
    #: Made at the first wait after connecting; until then libpq may go from socket to socket.
    _fd_waiter: FdWaiter | None = None

    def _refuse_if_owned(self, operation: str) -> None:
        if self._owner is not None:
            raise ConnectionInUse(operation, hub().describe(self._owner))


def make_wait_callback(wait_hub: Hub) -> Callable[[Any], None]:
    """The function for `psycopg2.extensions.set_wait_callback`, waiting by the hub. It suspends its caller."""
    current_task = wait_hub.current

    def wait_callback(conn: Any) -> None:
        try:
            waiter = conn._fd_waiter
        except AttributeError:  # not one of ours
            return wait_by_poll(conn, wait_hub)
        if waiter is None:
            if conn.status not in _CONNECTED:
                return wait_by_poll(conn, wait_hub)
            waiter = conn._fd_waiter = wait_hub.fd_waiter(conn.fileno())
        poll = conn.poll
        conn._owner = current_task()
        try:
            while True:
                state = poll()
                if state == _READ:
                    waiter.wait_read()
                elif state == _OK:
                    return None
                elif state == _WRITE:
                    waiter.wait_write()
                else:
                    raise psycopg2.OperationalError(f"unexpected result of poll(): {state!r}")
        finally:
            conn._owner = None

    return wait_callback


def wait_by_poll(conn: Any, wait_hub: Hub) -> None:
    """Wait for a connection of which nothing can be kept from wait to wait: a foreign one, or one that is connecting.

    While it connects, libpq may close its socket and get the same number for the next one, to another host.
    """
    while True:
        state = conn.poll()
        if state == _OK:
            return
        waiter = wait_hub.fd_waiter(conn.fileno())
        try:
            if state == _READ:
                waiter.wait_read()
            elif state == _WRITE:
                waiter.wait_write()
            else:
                raise psycopg2.OperationalError(f"unexpected result of poll(): {state!r}")
        finally:
            waiter.close()
