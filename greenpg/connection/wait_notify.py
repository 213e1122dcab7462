"""`conn.wait_notify()`: a connection of one's own that waits for notifications."""

from __future__ import annotations

import time
from typing import Any

import psycopg2
from psycopg2 import extensions
from psycopg2.extensions import Notify

from .guarded_connection import GuardedConnection

_IN_TRANSACTION = frozenset({extensions.TRANSACTION_STATUS_INTRANS, extensions.TRANSACTION_STATUS_INERROR})


class NotifyWaits(GuardedConnection):
    """The part of `Connection` that waits for notifications."""

    def wait_notify(self, timeout: float | None = None) -> Notify | None:
        """The oldest notification in `conn.notifies`, taken out of it; suspends until there is one.

        LISTEN first, with `autocommit` on (or commit). Waits for at most `timeout` seconds (None, the default: no
        limit; 0: only looks what has come), then returns None. While it waits, calls of other tasks that would talk to
        the server raise `errors.ConnectionInUse`, and `close()` throws it out. A kill or a timeout thrown into it
        leaves the connection as it was, and no notification is lost.

        Raises `psycopg2.OperationalError` if the connection is lost; `psycopg2.ProgrammingError` in a transaction, in
        which the server holds notifications back, and on an asynchronous connection while it runs a query.
        """
        self._gate.make_way("wait_notify")
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if self.isexecuting():
            raise psycopg2.ProgrammingError(
                "wait_notify() cannot be used while an asynchronous query is underway: greenpg.wait(conn) first"
            )
        self._has_altered_settings = True  # a pool looks whether somebody is still here
        with self._gate.occupied():
            is_in_time = True
            while True:
                # What a query has brought along is in conn.notifies already; poll() fetches what has come since.
                if not self.notifies:
                    self.poll()
                if self.notifies:
                    return take_oldest(self.notifies)
                if not is_in_time:
                    return None
                if self.get_transaction_status() in _IN_TRANSACTION:
                    raise psycopg2.ProgrammingError(
                        "wait_notify() in a transaction would wait in vain, since the server holds notifications back "
                        "until its end: commit first, or set autocommit"
                    )
                is_in_time = self._gate.waiter_of(self).wait_read(deadline)


def take_oldest(notifies: Any) -> Notify:
    """The first one, taken out of what a program may have put in the place of psycopg2's list."""
    oldest: Notify = notifies.popleft() if hasattr(notifies, "popleft") else notifies.pop(0)
    return oldest
