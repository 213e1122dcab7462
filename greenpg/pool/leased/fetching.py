"""What a `LeasedCursor` has fetched: by a cursor below while the connection is leased, kept by itself afterwards."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import psycopg2
from psycopg2 import extensions

from ...connection.bulk.fetchall import BIG_ROWS, iterate_in_turns
from ...connection.cursor import Cursor
from ...connection.rows import RowDict, as_dicts, scrolled
from ...errors import is_interruption
from .lease import Lease

T = TypeVar("T", bound="FetchingCursor")

#: In the place of a lease's number: the rows can't be read at once, since one of them raises an error.
_UNREADABLE = -1.0


class Result(NamedTuple):
    """What a cursor says of a statement, and its rows from the `first` one on."""

    description: Any
    rowcount: int
    statusmessage: str | None
    query: bytes | None
    lastrowid: int
    rows: list[Any]
    first: int


def _attribute(name: str, doc: str, default: Any) -> Any:
    """One of psycopg2's, which the program sets: for each cursor below."""

    def get(self: FetchingCursor) -> Any:
        return self._set.get(name, default)

    def put(self: FetchingCursor, value: Any) -> None:
        self._set[name] = value
        real = self._live()
        if real is not None:
            setattr(real, name, value)

    return property(get, put, doc=doc)


def _results_of(real: Any) -> list[Result]:
    results = [_result_of(real)]
    while isinstance(real, Cursor) and real._has_next_set():
        results.append(_result_of(real))
    return results


def _result_of(real: Any) -> Result:
    rows: list[Any] = []
    description, rowcount, first = real.description, real.rowcount, 0
    if description is not None:
        first = real.rownumber
        if rowcount > first:
            rows = real.fetchall()
    return Result(description, rowcount, real.statusmessage, real.query, real.lastrowid, rows, first)


class FetchingCursor:
    """The part of `LeasedCursor` that is read from."""

    arraysize: int = _attribute("arraysize", "How many rows `fetchmany()` gives by itself.", 1)
    itersize: int = _attribute("itersize", "How many rows a named cursor fetches at a time.", 2000)
    tzinfo_factory: Any = _attribute("tzinfo_factory", "Makes time zones, as psycopg2's.", datetime.timezone)
    row_factory: Any = _attribute("row_factory", "As psycopg2's.", None)

    def __init__(
        self,
        connection: Any,
        lease: Lease,
        note: Callable[[FetchingCursor], object],
        name: str | bytes | None,
        factory: Any,
        withhold: bool,
        scrollable: bool | None,
    ) -> None:
        self._connection = connection
        self._lease = lease
        self._note = note
        self._arguments = (name, factory, withhold, scrollable)
        self._name = name
        #: Of the lease that is under way, or (with a factory) of the last one; by its number.
        self._real: Any = None
        self._lease_number = 0.0
        #: When the lease is over: what there was, and where we are in it.
        self._results: list[Result] = []
        self._at = 0
        self._is_closed = False
        #: What the program has set.
        self._set: dict[str, Any] = {}

    # -- the cursor below

    def _live(self) -> Any:
        """The cursor below while its connection is leased; None afterwards."""
        number = self._lease_number
        return self._real if number and number in (self._lease.number, _UNREADABLE) else None

    def _made(self, conn: Any) -> Any:
        real = self._real
        if real is None or self._lease_number != self._lease.number:
            name, factory, withhold, scrollable = self._arguments
            real = conn.cursor(name, factory or self._connection.cursor_factory, withhold, scrollable)
            for attribute, value in self._set.items():
                setattr(real, attribute, value)
            self._real, self._lease_number = real, self._lease.number
            self._note(self)
        return real

    def _check(self) -> None:
        if self._is_closed:
            raise psycopg2.InterfaceError("cursor already closed")
        if self._connection.closed:
            raise psycopg2.InterfaceError("connection already closed")

    def _note_sent(self) -> None:
        """Something was to be executed. If it was refused before, what there was is still to be seen."""
        if self._name is not None or self._real is None:
            return
        if self._real.statusmessage is not None:
            self._results, self._at = [], 0
        elif self._results:
            self._lease_number = 0.0

    def _keep_rows(self) -> None:
        """The lease is going to end: take what the cursor below has. Suspends now and then if that is much."""
        real = self._live()
        if real is None or self._name is not None:
            return
        self._lease_number = 0.0
        if real.closed:
            return
        first = real.rownumber
        try:
            self._results, self._at = _results_of(real), 0
        except Exception as error:
            if is_interruption(error):
                raise
            real.scroll(first, "absolute")
            self._lease_number = _UNREADABLE
            return
        if self._arguments[1] is None and self._connection.cursor_factory is None:
            self._real = None

    # -- results

    def _read(self, call: str, function: Callable[[Any], Any], read_kept: Callable[[], Any]) -> Any:
        """`function(cursor)` while there is one below; `read_kept()` afterwards. Suspends for a named cursor."""
        if self._name is not None:
            return self._fetching(call, function)
        real = self._live()
        if real is None:
            return read_kept()
        self._check()
        return function(real)

    def _fetching(self, call: str, function: Callable[[Any], Any]) -> Any:
        """Of a named cursor, which asks the server."""
        self._check()
        if self._live() is None and self._real is not None:
            raise psycopg2.ProgrammingError("named cursor isn't valid anymore")
        with self._lease.calling(call) as conn:
            return function(self._made(conn))

    def _kept(self) -> Result:
        self._check()
        if not self._results or self._results[0].description is None:
            if self._results:
                self._results[0] = self._results[0]._replace(rowcount=-1)  # as psycopg2 does
            raise psycopg2.ProgrammingError("no results to fetch")
        return self._results[0]

    def _next_rows(self, size: int | None) -> list[Any]:
        rows = self._kept().rows
        end = len(rows) if size is None else min(self._at + size, len(rows))
        found, self._at = rows[self._at : end], end
        return found

    def _next_row(self) -> Any:
        found = self._next_rows(1)
        return found[0] if found else None

    def fetchone(self) -> Any:
        """The next row, None if there is none. Of a named cursor it suspends."""
        return self._read("fetchone", lambda real: real.fetchone(), self._next_row)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next `size` rows (None: `arraysize`). Of a named cursor it suspends."""
        size = self.arraysize if size is None else size
        rows: list[Any] = self._read("fetchmany", lambda real: real.fetchmany(size), lambda: self._next_rows(size))
        return rows

    def fetchall(self) -> list[Any]:
        """The remaining rows. Suspends now and then if there are many, and of a named cursor."""
        rows: list[Any] = self._read("fetchall", lambda real: real.fetchall(), lambda: self._next_rows(None))
        return rows

    def fetchone_dict(self) -> RowDict | None:
        """The next row as a `RowDict`, as `Cursor.fetchone_dict()`. Suspends as `fetchone()` does."""
        row = self.fetchone()
        return None if row is None else as_dicts([row], self.description)[0]

    def fetchall_dict(self) -> list[RowDict]:
        """The remaining rows as `RowDict`s. Suspends as `fetchall()` does."""
        rows = self.fetchall()
        return as_dicts(rows, self.description)

    def __iter__(self) -> Iterator[Any]:
        """Over the remaining rows; lets other tasks run now and then."""
        return self if self._name is not None or self.rowcount < BIG_ROWS else iterate_in_turns(self)

    def __next__(self) -> Any:
        if self._name is not None:
            return self._fetching("__next__", next)  # by its itersize
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def scroll(self, value: int, mode: Literal["relative", "absolute"] = "relative") -> None:
        """Move to another row, as psycopg2's. Of a named cursor it suspends. Once the connection has gone back: not to
        rows that were read before."""
        self._read("scroll", lambda real: real.scroll(value, mode), lambda: self._scroll_kept(value, mode))

    def _scroll_kept(self, value: int, mode: Literal["relative", "absolute"]) -> None:
        result = self._kept()
        first = result.first
        self._at = scrolled(value, mode, self._at + first, range(first, first + len(result.rows))) - first

    def nextset(self) -> bool | None:
        """Go to the next result of `executemany(returning=True)`, as `Cursor.nextset()`. Doesn't suspend."""
        real = self._live()
        if real is not None:
            return real.nextset()  # type: ignore[no-any-return]
        if not self._results:
            raise psycopg2.NotSupportedError("not supported by PostgreSQL")
        if len(self._results) < 2:
            return None
        del self._results[0]
        self._at = 0
        return True

    def results(self: T) -> Iterator[T]:
        """The cursor itself, once for each result, as `Cursor.results()`. Doesn't suspend."""
        yield self
        while (real := self._live()) is not None and real._has_next_set():
            yield self
        while real is None and len(self._results) > 1 and self.nextset():
            yield self

    def _said(self, name: str, before: Any) -> Any:
        real = self._live()
        if real is None and self._name is not None:
            real = self._real
        if real is not None:
            return getattr(real, name)
        return getattr(self._results[0], name) if self._results else before

    @property
    def description(self) -> tuple[extensions.Column, ...] | None:
        """The columns, as psycopg2's."""
        columns: tuple[extensions.Column, ...] | None = self._said("description", None)
        return columns

    @property
    def rowcount(self) -> int:
        """Number of rows of the last statement, -1 if there is none."""
        count: int = self._said("rowcount", -1)
        return count

    @property
    def statusmessage(self) -> str | None:
        """What the server called the last statement."""
        message: str | None = self._said("statusmessage", None)
        return message

    @property
    def query(self) -> bytes | None:
        """The last statement that was sent."""
        query: bytes | None = self._said("query", None)
        return query

    @property
    def lastrowid(self) -> int:
        """As psycopg2's."""
        oid: int = self._said("lastrowid", 0)
        return oid

    @property
    def rownumber(self) -> int:
        """How many rows have been read."""
        real = self._live()
        if real is not None:
            number: int = real.rownumber
            return number
        return self._at + self._results[0].first if self._results else 0
