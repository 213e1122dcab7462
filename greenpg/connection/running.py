"""What the connections of this process are running, so that it can be cancelled when the process ends."""

from __future__ import annotations

from collections import deque

import psycopg2
from psycopg2 import extensions

from .. import hubs
from ..errors import is_interruption
from ..hubs import hub
from .cancel import request_cancel
from .forking import all_open
from .guarded_connection import GuardedConnection
from .interrupting import ENDING_CALLS

_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE
_AT_ONCE = 10
_FIRST_PAUSE = 0.05


def running_connections() -> list[GuardedConnection]:
    """The connections whose statement runs at the server, but for those whose transaction is just being ended."""
    return [
        conn
        for conn in all_open()
        if isinstance(conn, GuardedConnection)
        and not conn.closed
        and conn.get_transaction_status() == _ACTIVE
        and conn._gate.call not in ENDING_CALLS
    ]


def cancel_running(deadline: float) -> list[GuardedConnection]:
    """Cancel what runs on all connections, until nothing does. Suspends. Returns those on which something still runs at
    the deadline."""
    pause = _FIRST_PAUSE
    while conns := running_connections():
        left = deadline - hub().now()
        if left <= 0:
            break
        _cancel_at_once(conns, deadline)
        hub().sleep(min(pause, left))
        pause *= 2
    return conns


def _cancel_at_once(conns: list[GuardedConnection], deadline: float) -> None:
    left = deque(conns)
    workers = min(_AT_ONCE, len(conns))
    finished: list[None] = []
    done = hub().event()

    def cancel() -> None:
        try:
            while left:
                _cancel_quietly(left.pop(), deadline)
        finally:
            finished.append(None)
            if len(finished) == workers:
                done.set()

    for _ in range(workers):
        hub().spawn(cancel)
    done.wait(deadline)


def cancel_running_natively(seconds: float) -> None:
    """Cancel once what runs on all connections, blocking the process: it is ending, and no loop may run any more."""
    conns = running_connections()
    if not conns:
        return
    old_hub = hubs.use(hub().natives())
    try:
        deadline = hub().now() + seconds
        for conn in conns:
            if hub().now() < deadline:
                _cancel_quietly(conn, deadline)
    finally:
        hubs.use(old_hub)


def _cancel_quietly(conn: GuardedConnection, deadline: float) -> None:
    try:
        request_cancel(conn, deadline)
    except psycopg2.Error as error:
        if is_interruption(error):
            raise
