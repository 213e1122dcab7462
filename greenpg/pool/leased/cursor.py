"""`LeasedCursor`: a cursor that is executed on whatever connection is leased then, and keeps its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import psycopg2

from ...connection.guarded_cursor import Params, Query
from .blocks import LeasedBlock
from .fetching import FetchingCursor
from .state import leaves_state

T = TypeVar("T", bound="LeasedCursor")


class LeasedCursor(FetchingCursor):
    """Made by `LeasedConnection.cursor()`: psycopg2's cursor, and greenpg's, whose connection may change.

    What it has fetched from the server stays readable when the connection has gone back. All that talks to the server
    suspends, and raises as a `greenpg.Cursor` does; and as `pool.getconn()`, if there is no connection to be had.
    """

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
        tag = real.statusmessage
        text = query if isinstance(query, str | bytes) else real.query
        if text and tag is not None and leaves_state(text, tag):  # None: nothing was sent
            self._lease.stick()

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
        """Does nothing, as psycopg2's. Doesn't suspend."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Does nothing, as psycopg2's. Doesn't suspend."""

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
