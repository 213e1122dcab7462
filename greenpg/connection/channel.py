"""Libpq's non-blocking calls on psycopg2's own connection, and the hub's waits: what COPY and executemany share.

psycopg2 must have opened the transaction itself before. Nobody else may touch the connection until libpq's results have
been read to their end: whoever drives a channel sees to it that `conn._owner` is set.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from .. import libpq
from ..hubs import FdWaiter, hub
from .cancel import shut_down

#: Seconds that an abandoned statement gets to come to its end; then the connection is closed.
ABANDON_TIMEOUT = 5.0

#: Work that never has to wait lets the other tasks run after so many seconds.
LONGEST_RUN = 0.004
#: sleep(0) isn't enough: gevent runs up to 50 such callbacks before it looks at timers and sockets again.
SHORTEST_PAUSE = 1e-6
# While it can't write, libpq's input is read from time to time: a server that is stuck sending notices reads nothing.
_NOTICE_INTERVAL = 0.01


class ConnectionLost(Exception):
    """libpq has noticed that the connection is gone; psycopg2's `poll()` says how."""


class Channel:
    """One statement's traffic on a connection."""

    statement_name = "the statement"

    def __init__(self, conn: Any, waiter: FdWaiter, deadline: float | None = None) -> None:
        self._conn = conn
        self._waiter = waiter
        self._deadline = deadline
        self._pgconn: int = conn.pgconn_ptr
        self._hub = hub()
        self._ran_since = time.monotonic()

    def _set_nonblocking(self) -> None:
        # psycopg2 has done it where a wait callback was set when it connected. It is never undone: PQexec, which is
        # psycopg2's way without a callback, switches for itself.
        if not libpq.function("PQisnonblocking")(self._pgconn):
            libpq.function("PQsetnonblocking")(self._pgconn, 1)

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
        self._breathe()

    def _wait(self, wait: Any, at_most_until: float | None) -> None:
        deadline = self._deadline
        if at_most_until is not None and (deadline is None or at_most_until < deadline):
            wait(at_most_until)
        elif not wait(deadline):
            raise self._too_late()
        self._ran_since = time.monotonic()

    def _breathe(self) -> None:
        now = time.monotonic()
        if now - self._ran_since >= LONGEST_RUN:
            if self._deadline is not None and now >= self._deadline:
                raise self._too_late()
            self._hub.sleep(SHORTEST_PAUSE)
            self._ran_since = time.monotonic()

    def _give_up_later(self) -> float:
        """From now on the deadline is `ABANDON_TIMEOUT` away, no longer the user's. Returns it."""
        self._deadline = give_up_at = time.monotonic() + ABANDON_TIMEOUT
        return give_up_at

    def _too_late(self) -> psycopg2.Error:
        if self._conn._interruption is None and self._conn._deadlines is not None:
            return self._conn._deadlines.exceeded()  # type: ignore[no-any-return]
        return psycopg2.OperationalError(f"the server has not ended {self.statement_name} within {ABANDON_TIMEOUT:g} s")


def waiter_of(conn: Any) -> FdWaiter:
    """The connection's waiter, made if there is none yet."""
    waiter: FdWaiter | None = conn._fd_waiter
    if waiter is None:
        waiter = conn._fd_waiter = hub().fd_waiter(conn.fileno())
    return waiter


def cut_off(conn: Any) -> None:
    """Close a connection whose statement could not be brought to its end."""
    shut_down(conn)
    conn._owner = None
    if conn._fd_waiter is not None:
        conn._fd_waiter.close()
    extensions.connection.close(conn)
