"""`PipelinedCursor`: a cursor whose last statement went through a pipeline shows that one's answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

import psycopg2
from psycopg2 import extensions
from psycopg2.extras import DictCursorBase

from ...driver import set_rowcount
from ..bulk.pacing import Pacer
from ..composing import adopt
from ..cursor import Cursor
from ..guarded_cursor import GuardedCursor, Params, Query, Row
from ..rows import scrolled
from .results import casts_of, description_of, made_row
from .statement import PipelinedStatement

_cursor = extensions.cursor
_query: Any = _cursor.query.__get__
_description: Any = _cursor.description.__get__
_rownumber: Any = _cursor.rownumber.__get__
_fetchone: Any = _cursor.fetchone
_fetchmany: Any = _cursor.fetchmany
_next: Any = _cursor.__next__
_nextset: Any = _cursor.nextset

#: The clock is looked at after so many rows.
_CHUNK_ROWS = 200


T = TypeVar("T", bound="PipelinedCursor")


class PipelinedCursor(Cursor):
    """The class that a cursor gets when it executes a statement in a pipeline. Outside of one it is as before."""

    # _statement, and psycopg2's own query of that time: another one means that psycopg2 has executed something since.
    _pipelined: tuple[Any, PipelinedStatement] | None = None

    #: Of executemany(returning=True): the statements that come after the one that is shown.
    _next_sets: list[PipelinedStatement] | None = None
    #: Of any executemany(): the sum of row counts, until another one is shown.
    _total: int | None = None
    #: Of an executemany(), psycopg2's own query, the last row's, and its status, which a call that is refused leaves.
    _left: tuple[Any, bytes | None, str | None] | None = None

    def _show(self, statement: PipelinedStatement) -> None:
        self._pipelined = (_query(self), statement)

    def _show_sets(self, statements: list[PipelinedStatement], total: int) -> None:
        """The first of them; `nextset()` and `results()` go on."""
        self._next_sets = statements[:0:-1]
        self._show_sum(statements[0], total)

    def _show_sum(self, statement: PipelinedStatement, total: int) -> None:
        """The last one, of those whose results aren't kept."""
        self._total = total
        self._show(statement)
        if isinstance(self, DictCursorBase):  # psycopg2's executemany() never has rows, so it isn't told
            self.__dict__.update(_query_executed=True, column_mapping=[], index=OrderedDict())

    def _shown(self) -> PipelinedStatement | None:
        pipelined = self._pipelined
        if pipelined is None:
            return None
        if pipelined[0] is not _query(self):
            self._pipelined = None
            return None
        return pipelined[1]

    def _forget_shown(self) -> None:
        if self.closed:  # psycopg2 refuses the call, and forgets nothing
            return
        if self._total is not None and self._shown() is not None:
            self._left = _query(self), self.query, self.statusmessage
            set_rowcount(self, self.rowcount)
        elif self._left is not None and _query(self) is not None and _query(self) is not self._left[0]:
            self._left = None  # psycopg2 has executed something since
        self._pipelined = self._next_sets = self._total = None

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        self._forget_shown()
        super().execute(query, vars, prepare=prepare)

    def executemany(self, query: Query, vars_list: Iterable[Params], *, returning: bool = False) -> None:
        self._forget_shown()
        if self._total is not None:
            self._total = -1  # psycopg2 refuses it, but forgets the sum
        super().executemany(query, vars_list, returning=returning)

    def callproc(self, procname: str | bytes, parameters: Params = None, /) -> None:
        self._forget_shown()
        return super().callproc(procname, parameters)

    def close(self) -> None:
        """As psycopg2's. Until then it keeps its rows, also if its connection is closed."""
        shown = self._shown()
        if shown is not None and not shown.is_told_without_rows:
            self._pipelined = None
        super().close()

    # -- what it says of the statement

    @property
    def query(self) -> bytes | None:
        statement = self._shown()
        if statement is not None:
            return statement.query or None  # b"": it was refused
        left = self._left
        return super().query if left is None or left[0] is not _query(self) else left[1]

    @property
    def rowcount(self) -> int:
        """As psycopg2's. In a pipeline it suspends until the statement's answer is there, and raises its error."""
        statement = self._shown()
        if statement is None:
            return super().rowcount
        if self._total is not None:
            return self._total
        statement.wait(self)
        return statement.rowcount

    @property
    def statusmessage(self) -> str | None:
        """As psycopg2's. Waits as `rowcount` does."""
        statement = self._shown()
        if statement is None:
            left, query = self._left, _query(self)
            is_left = left is not None and (query is left[0] or query is None)  # None: the arguments were refused
            return left[2] if is_left else super().statusmessage  # type: ignore[index]
        statement.wait(self)
        command = statement.command if statement.rows is None else statement.rows.command()
        return command.decode("ascii", "replace")

    @property
    def description(self) -> Any:
        """As psycopg2's. Waits as `rowcount` does."""
        statement = self._shown()
        if statement is None:
            return _description(self)
        statement.wait(self)
        return None if statement.rows is None else description_of(statement.rows, self)

    @property
    def rownumber(self) -> int:
        """As psycopg2's: the next row's number, from 0."""
        statement = self._shown()
        return int(_rownumber(self)) if statement is None else statement.position

    # -- fetches

    def _refuse_if_closed(self, statement: PipelinedStatement) -> None:
        if self._total is not None and statement.is_told_without_rows and self.closed:
            raise psycopg2.InterfaceError("cursor already closed")

    def _answered(self, statement: PipelinedStatement) -> Any:
        self._refuse_if_closed(statement)
        try:
            rows = statement.wait_for_rows(self)
        except psycopg2.ProgrammingError:
            if self._total is not None and statement.rowcount_is_known:
                self._total = -1  # as psycopg2, which forgets executemany()'s sum when there is nothing to fetch
            raise
        if statement.casts is None:
            statement.casts = casts_of(rows, self)
        return rows

    def fetchone(self) -> Row | None:
        """The next row, None after the last. In a pipeline it suspends until the statement's answer is there."""
        statement = self._shown()
        if statement is None:
            return _fetchone(self)  # type: ignore[no-any-return]
        rows = self._answered(statement)
        position = statement.position
        if position >= rows.count:
            return None
        statement.position = position + 1
        return made_row(rows.row(position), statement.casts, self)  # type: ignore[arg-type, no-any-return]

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """The next `size` rows (None: `arraysize`). Suspends as `fetchone()` does."""
        statement = self._shown()
        if statement is None:
            return _fetchmany(self, self.arraysize if size is None else size)  # type: ignore[no-any-return]
        return self._fetched(statement, self.arraysize if size is None else size)

    def fetchall(self) -> list[Row]:
        """The remaining rows. Suspends as `fetchone()` does, and lets other tasks run now and then."""
        statement = self._shown()
        return super().fetchall() if statement is None else self._fetched(statement, None)

    def _fetched(self, statement: PipelinedStatement, size: int | None) -> list[Row]:
        rows = self._answered(statement)
        casts, get_row = statement.casts, rows.row
        end = rows.count if size is None else min(rows.count, statement.position + max(size, 0))
        made: list[Row] = []
        pacer = Pacer()
        while (start := statement.position) < end:
            statement.position = stop = min(start + _CHUNK_ROWS, end)
            if self.row_factory is None:
                made += [
                    tuple([cast(value, self) for cast, value in zip(casts, get_row(index), strict=True)])  # type: ignore[arg-type]
                    for index in range(start, stop)
                ]
            else:
                made += [made_row(get_row(index), casts, self) for index in range(start, stop)]  # type: ignore[arg-type]
            if stop < end:
                pacer.pause()
        return made

    def __iter__(self) -> Iterator[Row]:  # type: ignore[override]
        return super().__iter__() if self._shown() is None else self

    def __next__(self) -> Row:
        if self._shown() is None:
            return _next(self)  # type: ignore[no-any-return]
        row = PipelinedCursor.fetchone(self)  # not a subclass's, which makes something else of it
        if row is None:
            raise StopIteration
        return row

    def nextset(self) -> bool | None:  # type: ignore[override]  # psycopg2 has none
        """Go to the next row's result after `executemany(returning=True)`, as psycopg 3's; None if there is none.

        After anything else psycopg2's, which raises `psycopg2.NotSupportedError`.
        """
        if self._shown() is None or self._next_sets is None:
            return _nextset(self)  # type: ignore[no-any-return]
        self._total = None
        if not self._next_sets:
            return None
        self._show(self._next_sets.pop())
        return True

    def results(self: T) -> Iterator[T]:
        if self._next_sets is not None:
            self._total = None
        return super().results()

    def _has_next_set(self) -> bool:
        return self._next_sets is not None and bool(self.nextset())

    def scroll(self, value: int, mode: Literal["relative", "absolute"] = "relative") -> None:
        """Move to another row, as psycopg2's. Suspends as `fetchone()` does."""
        statement = self._shown()
        if statement is None:
            return _cursor.scroll(self, value, mode)
        self._refuse_if_closed(statement)
        if self._total is not None and statement.is_told_without_rows:  # psycopg2 goes by executemany()'s sum
            rows = range(self._total)
        else:
            rows = range(self._answered(statement).count)
        try:
            statement.position = scrolled(value, mode, statement.position, rows)
        except psycopg2.ProgrammingError:
            _cursor.scroll(self, -1, "absolute" if mode == "relative" else mode)  # whose error tells the cursor


# To users it's a cursor of the class that it was of.
PipelinedCursor.__name__ = PipelinedCursor.__qualname__ = Cursor.__name__


def as_pipelined(cursor: GuardedCursor) -> PipelinedCursor | None:
    """The cursor, of that class from now on. None where a class can't be changed, which has slots."""
    if not isinstance(cursor, PipelinedCursor):
        adopt(cursor, PipelinedCursor)
    return cursor if isinstance(cursor, PipelinedCursor) else None
