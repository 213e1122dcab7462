"""One connection, borrowed (or leased) for a `DatabaseWrapper`: it goes back once, by whoever is first to say so.

That is the wrapper's `close()`; or the end of the task that borrowed it; or the end of the wrapper itself. And a forked
child has nothing to give back.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from typing import Any

import psycopg2

from ...hubs import hub
from ...pool.leased.connection import LeasedConnection
from ...pool.pool import ConnectionPool

logger = logging.getLogger("greenpg.django")

_loans: weakref.WeakSet[Loan] = weakref.WeakSet()
#: Those whose task can't say when it ends: raw greenlets, as `gevent.spawn_raw()` and `eventlet.spawn_n()` make them.
_unannounced: weakref.WeakSet[Loan] = weakref.WeakSet()


def reclaim() -> None:
    """Have the connections given back of tasks that have ended and couldn't say so. Doesn't suspend."""
    for loan in list(_unannounced):
        task = loan.task()
        if loan.conn is not None and (task is None or getattr(task, "dead", False)):
            loan.end_with_task()


class Loan:
    """The wrapper owns it; the task's end knows it, and the wrapper by a weak reference."""

    __slots__ = ("__weakref__", "_forget_task", "_wrapper", "_wrapper_id", "conn", "cursors", "pool", "task")

    def __init__(self, pool: ConnectionPool, conn: Any, wrapper: Any) -> None:
        self.pool = pool
        #: None when it has gone back.
        self.conn: Any = conn
        #: Those that were made of it, lest they be used when it is somebody else's.
        self.cursors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._wrapper = weakref.ref(wrapper)
        self._wrapper_id = id(wrapper)  # in a finalizer the reference is gone
        task = hub().current()
        self._forget_task = hub().on_end(task, self.end_with_task)
        _loans.add(self)
        if self._forget_task is None and not isinstance(task, int):
            #: It isn't kept alive.
            self.task: Any = weakref.ref(task)
            _unannounced.add(self)

    def end(self) -> None:
        """Give the connection back; again is harmless. Suspends for a transaction, or cursors, that are left open."""
        conn, self.conn = self.conn, None
        if conn is None:
            return
        if self._forget_task is not None:
            self._forget_task()
        try:
            self._close_cursors()
        finally:
            if isinstance(conn, LeasedConnection):
                conn.close()
            else:
                self.pool.putconn(conn)

    @property
    def holds_nothing(self) -> bool:
        """It is a lease's, which has no connection at present."""
        return isinstance(self.conn, LeasedConnection) and not self.conn.is_leased

    def _close_cursors(self) -> None:
        for cursor in list(self.cursors):
            try:
                cursor.close()  # a round trip if it's one of the server's that is still open
            except psycopg2.Error as error:
                logger.debug("closing a cursor: %s", error)

    def belongs_to(self, wrapper: Any) -> bool:
        """Whether it was made for this wrapper, and not for one of which this is a copy."""
        return self._wrapper_id == id(wrapper)

    def end_soon(self) -> None:
        """The same, by a task of its own: for the hub and finalizers, where nothing may suspend."""
        if self.conn is not None and not sys.is_finalizing():
            hub().spawn(self._end_quietly)

    def _end_quietly(self) -> None:
        try:
            self.end()
        except Exception as error:
            logger.warning("giving back a connection to pool %r failed: %s", self.pool.name, error)

    def end_with_task(self) -> None:
        """The task that has borrowed it has ended. Called in the hub, or anywhere."""
        self._forget_task = None
        _unannounced.discard(self)
        wrapper = self._wrapper()
        if wrapper is None or wrapper.lost_its_task(self):
            self.end_soon()

    def forget(self) -> None:
        """In a forked child: the connection is the parent's."""
        self.conn = None
        wrapper = self._wrapper()
        if wrapper is not None:
            wrapper.lost_its_connection(self)


def _after_fork_in_child() -> None:
    for loan in list(_loans):
        if loan.conn is not None:
            loan.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
