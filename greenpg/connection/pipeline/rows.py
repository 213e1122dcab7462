"""`executemany()` through a pipeline: for rows whose results are kept, or that are transactions of their own.

Each by itself: BEGIN and COMMIT go around each row's statement, without a Sync in between. So the server passes over
all that comes after the row that fails, as psycopg2 stops there; a Sync for each row would have it go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ...errors import DeadlineExceeded, PipelineAborted, is_interruption
from ...libpq.pipeline import Address, Rows
from ..bulk.row_errors import note_row
from ..deadlines import rollback_deadline
from ..guarded_connection import GuardedConnection
from ..guarded_cursor import Query
from ..interrupting import cut_off
from ..lazy_begin import merged
from .commands import goes_alone
from .flow import Flow
from .gathering import Gathering
from .pipeline import flow_of, pipeline_of
from .pipelined_cursor import PipelinedCursor, as_pipelined
from .statement import NO_RESULTS, PipelinedStatement

logger = logging.getLogger("greenpg.connection")

_execute: Any = extensions.cursor.execute
_IDLE = extensions.TRANSACTION_STATUS_IDLE
_AROUND = b"BEGIN", b"COMMIT"
#: Rows that no code of the user's makes while they are sent, and what `iter()` makes of them.
_STORED: tuple[type, ...] = (list, tuple, type(iter([])), type(iter(())))


class Batch:
    """What has become of the rows."""

    def __init__(self, cursor: PipelinedCursor, flow: Flow, *, keeps: bool, before: tuple[int, int]) -> None:
        self._cursor = cursor
        self._flow = flow
        self._keeps = keeps
        #: The number of the first of them; the sum of row counts, to which theirs are added, -1 when a row has none.
        self.first_row, self.rowcount = before
        #: The rows' statements, if they are kept.
        self.kept: list[PipelinedStatement] = []
        self.done = 0
        self._made = 0
        self._last: PipelinedStatement | None = None
        #: Also when somebody has got its error: the rows' generator may have caught it.
        self.failed: PipelinedStatement | None = None
        #: A row's arguments couldn't be merged into the statement.
        self.has_refused = False
        #: The error of `failed` comes out.
        self.has_raised = False

    def made(self, statement: bytes, each_by_itself: bool) -> list[PipelinedStatement]:
        """What is to be sent for the next row."""
        row = _Row(self._made, statement, self._cursor, self._flow, self, statement)
        self._made += 1
        if self._keeps:
            self.kept.append(row)
        if not each_by_itself:
            return [row]
        begin, commit = (_Around(row.index, each, self._cursor, self._flow, self, statement) for each in _AROUND)
        return [begin, row, commit]

    def note(self, row: _Row) -> None:
        """It has been answered."""
        if row.is_told or row.has_failed:
            self.failed = self.failed or row
            return
        self.done += 1
        self.rowcount = -1 if row.rowcount == -1 or self.rowcount == -1 else self.rowcount + row.rowcount
        if not self._keeps and row.rows is not None:
            row.command, row.rows = row.rows.command(), None
        self._last = row

    def show(self) -> None:
        """The cursor shows the first of those that are kept."""
        self._cursor._show_sets(self.kept, self.rowcount)

    def show_last(self) -> None:
        """The cursor is as after psycopg2's own `executemany()`."""
        if self._last is not None:
            self._cursor._show_sum(self._last, self.rowcount)

    def show_interrupted(self) -> None:
        """The cursor is as after psycopg2's own when there was no next row, or it has been refused: then it says how
        many rows the last one has touched, not how many all have."""
        if self._last is not None and self.has_refused:
            self._last.query = b""
            self.rowcount = self._last.rowcount
        self.show_last()

    def raise_failed(self) -> None:
        if self.failed is not None:
            self._cursor._show_sum(self.failed, -1)
            self.has_raised = True
            raise self.failed.error(self._cursor)


class _Around(PipelinedStatement):
    __slots__ = ("_batch", "_number", "_shown_query")

    def __init__(
        self, index: int | None, query: bytes, cursor: PipelinedCursor, flow: Flow, batch: Batch, shown_query: bytes
    ) -> None:
        super().__init__(index, query, cursor, flow)
        self._batch: Batch | None = batch  # until it's answered: no circle keeps a connection
        self._number = batch.first_row + (index or 0)
        self._shown_query = shown_query

    def answer(self, address: Address, status: int) -> None:
        super().answer(address, status)
        batch, self._batch = self._batch, None
        if self.has_failed and batch is not None:
            self.query = self._shown_query
            batch.failed = batch.failed or self

    def wait_for_rows(self, cursor: Any) -> Rows:
        if self.has_failed and self.is_told:  # by executemany(), after which psycopg2's cursor has nothing to fetch
            raise psycopg2.ProgrammingError(NO_RESULTS)
        return super().wait_for_rows(cursor)

    def _describe(self, error: psycopg2.Error) -> None:
        note_row(error, self._number)


class _Row(_Around):
    __slots__ = ()

    def answer(self, address: Address, status: int) -> None:
        PipelinedStatement.answer(self, address, status)
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.note(self)


def execute_rows(
    conn: GuardedConnection,
    cursor: Any,
    query: Query,
    rows: Iterable[Any],
    each_by_itself: bool,
    keeps: bool,
    before: tuple[int, int],
) -> Batch:
    """All rows. Suspends. Raises the error of the first that fails, with its `row_index`; none after it has been
    executed then. A generator of rows may use the connection: all rows before have been executed then."""
    pipelined = as_pipelined(cursor)
    if pipelined is None or cursor.name is not None:
        raise psycopg2.ProgrammingError(f"executemany(returning=True) isn't possible with a {type(cursor).__name__}")
    with pipeline_of(conn):
        flow = flow_of(conn)
        batch = Batch(pipelined, flow, keeps=keeps, before=before)
        try:
            _send_all(conn, pipelined, query, rows, each_by_itself, batch, flow)
        except PipelineAborted:
            flow.bring_to_rest()
            batch.raise_failed()
            raise
        except Exception as error:
            is_late = isinstance(error, DeadlineExceeded) and batch.failed is not None  # by the deadline's cancel
            if not (batch.has_raised or is_late or is_interruption(error) or conn.closed):
                flow.bring_to_rest()  # the rows before are executed; if one of them fails, that came first
                batch.raise_failed()
                batch.show_interrupted()
            raise
        finally:
            flow.forget_failed()
            if each_by_itself:
                _leave_transaction(conn, flow)
    return batch


def _send_all(
    conn: GuardedConnection,
    cursor: PipelinedCursor,
    query: Query,
    rows: Iterable[Any],
    each_by_itself: bool,
    batch: Batch,
    flow: Flow,
) -> None:
    gathering = Gathering(flow, is_plain=each_by_itself, at_once=isinstance(rows, _STORED))
    for number, row in enumerate(rows):
        batch.raise_failed()
        try:
            statement = merged(conn, cursor, query, row)
        except Exception as error:
            batch.has_refused = True
            if not is_interruption(error):
                note_row(error, number + batch.first_row)
            raise
        batch.raise_failed()  # an adapter has caught it
        if statement is None:
            raise psycopg2.ProgrammingError("can't execute an empty query")
        if goes_alone(statement):
            raise psycopg2.ProgrammingError("executemany() can't keep the results of what begins or ends transactions")
        gathering.add(*batch.made(statement, each_by_itself))
    flow.bring_to_rest()
    batch.raise_failed()


def _leave_transaction(conn: GuardedConnection, flow: Flow) -> None:
    """A row that has failed leaves its BEGIN behind. Suspends for as long as a ROLLBACK may take."""
    if conn.closed or conn.get_transaction_status() == _IDLE:
        return
    try:
        with rollback_deadline(conn._gate, GeneratorExit()):
            flow.bring_to_rest()
            with conn._gate.calling("rollback"):
                _execute(extensions.cursor(conn), b"ROLLBACK")
    except BaseException as error:
        if not conn.closed:
            cut_off(conn)
        if is_interruption(error) or not isinstance(error, psycopg2.Error):
            raise
        logger.warning("the rollback of a row that failed has failed: %s", error)
