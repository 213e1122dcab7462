"""psycopg2's own way of `executemany()`, a round trip for each row, done piece by piece as if in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..guarded_cursor import GuardedCursor, Query
from .copy_channel import end_stray_copy
from .row_errors import note_row

_cursor = extensions.cursor
_execute: Any = _cursor.execute
_executemany: Any = _cursor.executemany
_rowcount: Any = _cursor.rowcount.__get__
_query: Any = _cursor.query.__get__


class RowByRow:
    """One `executemany()` under way: what it has done. `execute_alone()` and its like suspend."""

    def __init__(self, cursor: GuardedCursor, query: Query) -> None:
        self.cursor = cursor
        self.conn = cursor.connection
        self._sql = query
        #: The sum; -1 when a row's count is.
        self.rowcount = 0
        self.done = 0  # rows

    def count(self, rowcount: int) -> None:
        """So many rows are concerned by what has just been done."""
        self.rowcount = -1 if rowcount == -1 or self.rowcount == -1 else self.rowcount + rowcount

    def show_sum(self) -> None:
        """The rows are through, for good or because their iterator has failed."""
        self.cursor._note_rowcount(self.rowcount)

    def execute_alone(self, rows: Iterable[Any]) -> None:
        """The next rows."""
        self._run(rows, lambda counted: _executemany(self.cursor, self._sql, counted))

    def execute_statement(self, statement: bytes) -> None:
        """The next row, whose statement is made already."""
        self._run(((),), lambda counted: [_execute(self.cursor, statement) for _ in counted])

    def pass_on(self, vars_list: Any) -> None:
        """Arguments that psycopg2 is going to refuse."""
        self._run((), lambda _: _executemany(self.cursor, self._sql, vars_list))

    def _run(self, rows: Iterable[Any], execute: Callable[[Iterator[Any]], object]) -> None:
        cursor, gate = self.cursor, self.conn._gate
        rowcount_before = _rowcount(cursor)
        begun = 0
        is_asking = False  # the rows' iterator for the next one

        def counted() -> Iterator[Any]:
            nonlocal begun, is_asking
            is_asking = True
            for row in rows:
                begun += 1
                is_asking = False
                yield row
                is_asking = True

        outer_call = gate.enter("executemany")
        try:
            execute(counted())
        except Exception as error:
            if is_asking:
                if begun:
                    self.count(_rowcount(cursor))
                self.show_sum()
            elif begun and gate.interruption is None:
                note_row(error, self.done + begun - 1)
            if begun == 1 and self.done and _query(cursor) is None:  # refused, which leaves the row before
                cursor._note_rowcount(rowcount_before)
            if isinstance(error, psycopg2.ProgrammingError):
                end_stray_copy(self.conn, error)
            raise
        finally:
            gate.leave(outer_call)
        self.done += begun
        if begun:
            self.count(_rowcount(cursor))
