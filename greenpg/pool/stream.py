"""`pool.stream()`: the rows of a big result, a chunk at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import psycopg2

from ..connection.guarded_cursor import Params, Query
from ..errors import ConnectionInUse
from .contexts import finish, leave_by_task
from .core import PoolCore
from .lending import lend
from .pooler import forbid_transactions
from .slot import Slot

RowT = TypeVar("RowT")

_NAME = "greenpg_stream"


class Stream(Generic[RowT]):
    """The rows of a statement, from `ConnectionPool.stream()`: iterable, and a context manager.

    It borrows a connection when the first row is asked for, and gives it back when the last chunk has been fetched, at
    `close()`, at the end of the `with` block, when an error or a kill comes out of it, or when nobody refers to it any
    more: a `for` loop over `pool.stream(...)` may simply be left. Until the last chunk has been fetched it is in a
    transaction, which is committed then, and rolled back in all other cases.

    Iterating it again goes on where the last loop was left; after the last row there is nothing more, after `close()`
    `psycopg2.InterfaceError`. One task at a time: another one gets `errors.ConnectionInUse`.
    """

    __slots__ = (
        "_args",
        "_chunk_size",
        "_core",
        "_cursor",
        "_cursor_factory",
        "_has_begun",
        "_is_busy",
        "_is_closed",
        "_lent_at",
        "_rows",
        "_slot",
        "_sql",
        "_timeout",
    )

    def __init__(
        self,
        core: PoolCore,
        sql: Query,
        args: Params = None,
        *,
        chunk_size: int = 2000,
        cursor_factory: Any = None,
        timeout: float | None = None,
    ) -> None:
        # What __del__ looks at comes first.
        #: While a connection is borrowed.
        self._slot: Slot | None = None
        self._is_busy = False
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
        self._core = core
        self._sql = sql
        self._args = args
        self._chunk_size = chunk_size
        self._cursor_factory = cursor_factory
        self._timeout = timeout
        self._cursor: Any = None
        self._lent_at = 0.0
        self._has_begun = self._is_closed = False
        self._rows: Iterator[RowT] = iter(())

    def __iter__(self) -> Iterator[RowT]:
        """The rows. Suspends for each chunk. Raises what `getconn()` and `execute()` raise."""
        while True:
            yield from self._rows  # kept, so that a later loop finds the rest of the chunk
            if not self._fetch():
                return

    def _fetch(self) -> bool:
        """Get the next chunk. False: there is none."""
        if self._is_closed:
            raise psycopg2.InterfaceError("the stream is closed")
        if self._is_busy:
            raise ConnectionInUse("stream", "another task")
        if self._has_begun and self._slot is None:
            return False
        self._is_busy = True
        try:
            if not self._has_begun:
                self._begin()
            rows = self._cursor.fetchmany(self._chunk_size)
            if len(rows) < self._chunk_size:
                self._finish(None)
        except BaseException as exception:
            self._is_closed = True
            self._finish(exception)
            raise
        finally:
            self._is_busy = False
        self._rows = iter(rows)
        return bool(rows)

    def _begin(self) -> None:
        self._has_begun = True
        forbid_transactions(self._core)
        self._slot = slot = lend(self._core, self._timeout)
        self._lent_at = slot.lent_at
        conn = slot.conn
        if conn.autocommit:  # a cursor lives in a transaction
            conn.autocommit = False
        self._cursor = conn.cursor(_NAME, cursor_factory=self._cursor_factory)
        self._cursor.itersize = self._chunk_size
        self._cursor.execute(self._sql, self._args)

    def _finish(self, exception: BaseException | None) -> None:
        """Commit, or roll back because of the exception, and return the connection. Suspends."""
        slot, self._slot, self._cursor = self._slot, None, None
        if slot is None or slot.lent_at != self._lent_at:
            return  # nothing borrowed, or somebody has returned it behind our back
        finish(self._core, slot, exception)

    def close(self) -> None:
        """End the stream and give the connection back, rolling back what isn't complete. Suspends; again is harmless.

        Raises `errors.ConnectionInUse` if another task waits for a chunk.
        """
        if self._is_busy:
            raise ConnectionInUse("close", "another task")
        self._is_closed = True
        self._rows = iter(())
        self._finish(GeneratorExit())

    def __enter__(self) -> Stream[RowT]:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None and not self._is_busy:
            self._is_closed = True
            if isinstance(exc, GeneratorExit):
                self._give_back_later()
            else:
                self._finish(exc)
        self.close()

    def _give_back_later(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None and slot.lent_at == self._lent_at:
            leave_by_task(self._core, functools.partial(finish, self._core, slot), GeneratorExit())

    def __del__(self) -> None:
        self._give_back_later()  # runs wherever the last reference goes, be it in the hub
