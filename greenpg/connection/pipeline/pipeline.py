"""psycopg 3's `with conn.pipeline():` on psycopg2's own connection.

Any other call of the connection finds the pipeline in the gate (gate.py), which has everything answered first: so
psycopg2's calls find psycopg2's connection as they know it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, TypeVar

import psycopg2

from ...errors import LibpqUnavailable
from ...libpq.pipeline import is_supported
from ..cursor import Cursor
from ..deadlines import rollback_deadline
from ..guarded_connection import GuardedConnection
from ..guarded_cursor import Params, Query
from ..lazy_begin import merged
from ..occupants import Queue
from ..queueing import QueueingGate
from .commands import goes_alone
from .flow import Flow
from .pipelined_cursor import as_pipelined

#: Calls that don't raise what has gone wrong before: they are made because something has.
_FORGIVING = frozenset({"rollback", "reset", "tpc_rollback"})

C = TypeVar("C", bound=GuardedConnection)
P = TypeVar("P", bound="Pipeline[Any]")


class Pipeline(Generic[C]):
    """Statements that are sent without waiting; see `Connection.pipeline()` and `ConnectionPool.pipeline()`."""

    def __init__(self, conn: C) -> None:
        self._conn = conn
        self._depth = 0
        self._queue = PipelineQueue(conn)

    @property
    def connection(self) -> C:
        """Of which it is the pipeline."""
        return self._conn

    @classmethod
    def is_supported(cls) -> bool:
        """Whether the libpq that psycopg2 runs on has a pipeline mode: since version 14. Doesn't suspend."""
        return is_supported()

    def execute(self, query: Query, vars: Params = None) -> Cursor:
        """A new cursor that executes the statement, as `conn.execute()`."""
        conn: Any = self._conn
        cursor: Cursor = conn.cursor()
        cursor.execute(query, vars)
        return cursor

    def sync(self) -> None:
        """Wait until every statement so far has been answered. Suspends.

        Raises the first error that no cursor has raised yet. Afterwards the pipeline isn't aborted any more; a
        transaction that has failed is still in error.
        """
        if self._is_open():
            self._queue.settle()

    def __enter__(self: P) -> P:
        if self._depth and self._is_open():
            self._queue.settle()
        else:
            self._open(self._conn)
        self._depth += 1
        return self

    def _open(self, conn: GuardedConnection) -> None:
        if conn.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if conn.async_:
            raise psycopg2.ProgrammingError("pipeline() cannot be used in asynchronous mode")
        if not is_supported():
            raise LibpqUnavailable("pipeline() needs libpq 14 or later under psycopg2: install psycopg2-binary")
        gate = conn._gate
        gate.make_way("pipeline")
        self._queue.pipeline = self
        QueueingGate.open(gate, self._queue)
        conn._note_pipeline(is_open=True)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._is_open():
            return  # the connection was closed, or returned to its pool
        try:
            if exc is None:
                self._queue.settle()
            else:
                with rollback_deadline(self._conn._gate, exc):
                    self._queue.settle_quietly()
        finally:
            if self._depth <= 0 and self._is_open():
                self._queue.close()

    def _is_open(self) -> bool:
        return self._conn._gate.queue is self._queue


class PipelineQueue(Queue):
    """What the gate asks."""

    def __init__(self, conn: GuardedConnection) -> None:
        self._conn = conn
        self.flow = Flow(conn)
        #: Whose it is, while it's open: no circle keeps a connection.
        self.pipeline: Pipeline[Any] | None = None

    def queue(self, cursor: Any, query: Any, vars: Any) -> bool:
        conn, flow = self._conn, self.flow
        pipelined = as_pipelined(cursor)
        statement = None if pipelined is None or cursor.closed or conn.closed else merged(conn, cursor, query, vars)
        if pipelined is None or statement is None or goes_alone(statement) or not flow.turn_on():
            flow.settle()
            flow.count()
            return False
        sent = flow.made(pipelined, statement)
        flow.send(sent)
        pipelined._show(sent)
        return True

    def make_way(self, operation: str) -> None:
        if operation == "commit":
            self.flow.commit()
        elif operation in _FORGIVING:
            self.flow.bring_to_rest()
        else:
            self.flow.settle()

    def let_go(self) -> bool:
        self.flow.settle_quietly()
        self.close()
        return True

    def settle(self) -> None:
        self.flow.settle()

    def settle_quietly(self) -> None:
        """The same; errors are only logged."""
        self.flow.settle_quietly()

    def close(self) -> None:
        """It isn't asked any more. Doesn't suspend."""
        self.pipeline = None
        self._conn._gate.close_queue()
        self._conn._note_pipeline(is_open=False)


def pipeline_of(conn: C) -> Pipeline[C]:
    """The one that is open, or a new one. Doesn't suspend."""
    queue = conn._gate.queue
    pipeline = queue.pipeline if isinstance(queue, PipelineQueue) else None
    return Pipeline(conn) if pipeline is None else pipeline


def flow_of(conn: GuardedConnection) -> Flow:
    """Of the pipeline that is open."""
    queue = conn._gate.queue
    assert isinstance(queue, PipelineQueue)
    return queue.flow
