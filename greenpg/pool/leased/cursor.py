"""`LeasedCursor`: a cursor that is executed on whatever connection is leased then, and keeps its rows."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import psycopg2
from psycopg2 import extensions

from ...connection.bulk.fetchall import BIG_ROWS
from ...connection.bulk.pacing import Pacer
from ...connection.cursor import Cursor
from ...connection.guarded_cursor import Params, Query
from ...connection.rows import RowDict
from ...errors import is_interruption
from .blocks import LeasedBlock
from .lease import Lease
from .state import leaves_state

T = TypeVar("T", bound="LeasedCursor")

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

    def get(self: LeasedCursor) -> Any:
        return self._set.get(name, default)

    def put(self: LeasedCursor, value: Any) -> None:
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


class LeasedCursor:
    """Made by `LeasedConnection.cursor()`: psycopg2's cursor, and greenpg's, whose connection may change.

    What it has fetched from the server stays readable when the connection has gone back. All that talks to the server
    suspends, and raises as a `greenpg.Cursor` does; and as `pool.getconn()`, if there is no connection to be had.
    """

    arraysize: int = _attribute("arraysize", "How many rows `fetchmany()` gives by itself.", 1)
    itersize: int = _attribute("itersize", "How many rows a named cursor fetches at a time.", 2000)
    tzinfo_factory: Any = _attribute("tzinfo_factory", "Makes time zones, as psycopg2's.", datetime.timezone)
    row_factory: Any = _attribute("row_factory", "As psycopg2's.", None)

    def __init__(
        self,
        connection: Any,
        lease: Lease,
        note: Callable[[LeasedCursor], object],
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

    def _run(self, call: str, function: Callable[[Any], Any], query: Any = None) -> Any:
        """`function(cursor)` on a leased connection. `query`: to see what it leaves in the session."""
        self._check()
        lease = self._lease
        conn = lease.enter(call)
        error: BaseException | None = None
        is_autocommit = False
        try:
            is_autocommit = conn.autocommit
            real = self._made(conn)
            self._results, self._at = [], 0
            result = function(real)
            if self.withhold and self._name is not None:
                lease.holders.add(self)
            return result
        except BaseException as raised:
            error = raised
            raise
        finally:
            if query is not None and not lease.is_stuck:
                self._look_for_state(query)
            try:
                lease.leave(error, is_committed=is_autocommit)
            finally:
                del error  # no circle through its traceback

    def _look_for_state(self, query: Any) -> None:
        real = self._real
        if real is None or self._name is not None:
            return
        text = query if isinstance(query, str | bytes) else real.query
        if text and leaves_state(text, real.statusmessage):
            self._lease.stick()

    def keep_rows(self) -> None:
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

    # -- execution

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        """Execute a statement, as `Cursor.execute()`, on the connection that is leased, or on one that is leased for
        it. Suspends."""
        options = {} if prepare is None else {"prepare": prepare}
        # As cursor classes of a program's own take it: by position, and without what isn't given.
        arguments = (query,) if vars is None else (query, vars)
        self._run("execute", lambda real: real.execute(*arguments, **options), query)

    def executemany(self, query: Query, vars_list: Iterable[Params], *, returning: bool = False) -> None:
        """Execute it with each row of arguments, as `Cursor.executemany()`. Suspends."""
        options = {"returning": True} if returning else {}
        self._run("executemany", lambda real: real.executemany(query, vars_list, **options), query)

    def callproc(self, procname: str | bytes, parameters: Params = None, /) -> None:
        """Call a stored procedure, as psycopg2's. Suspends."""
        name = procname.decode() if isinstance(procname, bytes) else procname
        self._run("callproc", lambda real: real.callproc(procname, parameters), f"SELECT {name}()")

    def mogrify(self, query: Query, vars: Params = None) -> bytes:
        """The statement as it would be sent, as psycopg2's. Suspends if no connection is leased, until one is."""
        self._check()
        with self._lease.calling("mogrify") as conn, conn.cursor(None, self._arguments[1]) as real:
            merged: bytes = real.mogrify(query, vars)
        return merged

    def copy(self, statement: Query, params: Params = None) -> LeasedBlock[Any]:
        """`with cur.copy("COPY ...") as copy`, as `Cursor.copy()`; the connection is leased for the block at least."""
        self._check()
        return LeasedBlock(self._lease, "copy", lambda conn: self._made(conn).copy(statement, params))

    def copy_expert(self, sql: Query, file: Any, size: int = 8192) -> None:
        """COPY from or to a file, as psycopg2's. Suspends."""
        self._run("copy_expert", lambda real: real.copy_expert(sql, file, size))

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        """COPY from a file, as psycopg2's. Suspends."""
        self._run("copy_from", lambda real: real.copy_from(*args, **kwargs))

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        """COPY to a file, as psycopg2's. Suspends."""
        self._run("copy_to", lambda real: real.copy_to(*args, **kwargs))

    # -- results

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
            raise psycopg2.ProgrammingError("no results to fetch")
        return self._results[0]

    def _next_rows(self, size: int | None) -> list[Any]:
        rows = self._kept().rows
        end = len(rows) if size is None else min(self._at + size, len(rows))
        found, self._at = rows[self._at : end], end
        return found

    def fetchone(self) -> Any:
        """The next row, None if there is none. Of a named cursor it suspends."""
        if self._name is not None:
            return self._fetching("fetchone", lambda real: real.fetchone())
        real = self._live()
        if real is not None:
            self._check()
            return real.fetchone()
        found = self._next_rows(1)
        return found[0] if found else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next `size` rows (None: `arraysize`). Of a named cursor it suspends."""
        size = self.arraysize if size is None else size
        if self._name is not None:
            rows: list[Any] = self._fetching("fetchmany", lambda real: real.fetchmany(size))
            return rows
        real = self._live()
        if real is not None:
            self._check()
            return real.fetchmany(size)  # type: ignore[no-any-return]
        return self._next_rows(size)

    def fetchall(self) -> list[Any]:
        """The remaining rows. Suspends now and then if there are many, and of a named cursor."""
        if self._name is not None:
            rows: list[Any] = self._fetching("fetchall", lambda real: real.fetchall())
            return rows
        real = self._live()
        if real is not None:
            self._check()
            return real.fetchall()  # type: ignore[no-any-return]
        return self._next_rows(None)

    def fetchone_dict(self) -> RowDict | None:
        """The next row as a `RowDict`, as `Cursor.fetchone_dict()`. Suspends as `fetchone()` does."""
        row = self.fetchone()
        return None if row is None else self._as_dict(row)

    def fetchall_dict(self) -> list[RowDict]:
        """The remaining rows as `RowDict`s. Suspends as `fetchall()` does."""
        return [self._as_dict(row) for row in self.fetchall()]

    def _as_dict(self, row: Any) -> RowDict:
        names = [column[0] for column in self.description or ()]
        return RowDict(zip(names, row.values() if hasattr(row, "values") else row, strict=True))

    def __iter__(self) -> Iterator[Any]:
        """Over the remaining rows; lets other tasks run now and then."""
        return self if self._name is not None or self.rowcount < BIG_ROWS else self._in_turns()

    def _in_turns(self) -> Iterator[Any]:
        pacer = Pacer()
        for row in iter(self.fetchone, None):
            yield row
            pacer.pause()

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
        if self._name is not None:
            self._fetching("scroll", lambda real: real.scroll(value, mode))
            return
        real = self._live()
        if real is not None:
            self._check()
            real.scroll(value, mode)
            return
        result = self._kept()
        if mode not in ("relative", "absolute"):
            raise psycopg2.ProgrammingError("scroll mode must be 'relative' or 'absolute'")
        at = value - result.first + (self._at + result.first if mode == "relative" else 0)
        if not 0 <= at < len(result.rows):
            raise psycopg2.ProgrammingError("scroll destination out of bounds")
        self._at = at

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

    # -- the rest

    @property
    def connection(self) -> Any:
        """The `LeasedConnection`."""
        return self._connection

    @property
    def name(self) -> str | None:
        """Of a cursor at the server; None for others."""
        return self._name.decode() if isinstance(self._name, bytes) else self._name

    @property
    def withhold(self) -> bool:
        """Whether a named cursor outlives its transaction: then the lease lasts until it is closed."""
        return bool(self._arguments[2])

    @property
    def scrollable(self) -> bool | None:
        """Whether a named cursor was asked to be."""
        return self._arguments[3]

    @property
    def closed(self) -> bool:
        """Whether it, or its connection, was closed."""
        return self._is_closed or bool(self._connection.closed)

    def close(self) -> None:
        """Close it. Suspends for a named cursor that is open at the server."""
        if self._is_closed:
            return
        self._is_closed = True
        real = self._live()
        self._results = []
        if real is not None and self._name is None:
            real.close()
        elif real is not None:
            try:
                with self._lease.calling("close"):
                    real.close()
                    self._lease.holders.discard(self)  # not if it was interrupted
            except psycopg2.InterfaceError:
                if not self._connection.closed:
                    raise
        self._real = None

    def setinputsizes(self, sizes: Any) -> None:
        """Does nothing, as psycopg2's."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Does nothing, as psycopg2's."""

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # What a cursor class of the program's own has.
        real = None if name.startswith("_") else self._real
        if real is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(real, name)

    def __repr__(self) -> str:
        return f"<LeasedCursor object at {id(self):#x}; name: {self.name!r}, closed: {self.closed}>"
