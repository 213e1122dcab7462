"""Libpq's non-blocking calls on psycopg2's own connection, and the hub's waits: what COPY and executemany share.

psycopg2 must have opened the transaction itself before. Nobody else may touch the connection until libpq's results have
been read to their end: whoever drives a channel sees to it that the connection's gate is occupied.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg2

from ... import libpq
from ...hubs import FdWaiter
from ..guarded_connection import GuardedConnection
from ..interrupting import end_deadline_after
from .pacing import Pacer


class ConnectionLost(Exception):
    """libpq has noticed that the connection is gone; psycopg2's `poll()` says how."""


class Refused(Exception):
    """The server has refused the data of a COPY, and throws away what still comes."""


class Channel:
    """One statement's traffic on a connection."""

    what = "the statement"
    # While it can't write, libpq's input is read from time to time: a server stuck sending notices reads nothing.
    _notice_interval = 0.01

    def __init__(self, conn: GuardedConnection, waiter: FdWaiter, deadline: float | None = None) -> None:
        self._conn = conn
        self._waiter = waiter
        self._deadline = deadline
        self._pgconn = conn.pgconn_ptr
        self._pacer = Pacer()

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
            self._wait_for_room()
        self._breathe()

    def _wait_for_room(self) -> None:
        self._wait(self._waiter.wait_write, time.monotonic() + self._notice_interval)
        self._consume()

    def _consume(self) -> None:
        if not libpq.function("PQconsumeInput")(self._pgconn):
            raise ConnectionLost

    def _wait(self, wait: Any, at_most_until: float | None) -> None:
        deadline = self._deadline
        if at_most_until is not None and (deadline is None or at_most_until < deadline):
            wait(at_most_until)
        elif not wait(deadline):
            raise self._too_late()
        self._pacer.start()

    def _breathe(self) -> None:
        if self._pacer.is_due():
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise self._too_late()
            self._pacer.pause()

    def _give_up_later(self, exception: BaseException | None) -> float:
        """From now on the deadline is that of an end after this exception, no longer the user's. Returns it."""
        self._deadline = give_up_at = end_deadline_after(self._conn, exception)
        return give_up_at

    def _too_late(self) -> psycopg2.Error:
        gate = self._conn._gate
        if gate.interruption is None and gate.deadlines is not None:
            return gate.exceeded()
        return psycopg2.OperationalError(f"the server has not ended {self.what} in time")
