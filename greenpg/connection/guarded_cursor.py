"""What a cursor says of its last statement, where psycopg2 has seen a part of it only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from psycopg2 import extensions
from psycopg2.sql import Composable

from ..driver import set_rowcount
from ..errors import ConnectionReturned
from .guarded_connection import GuardedConnection

#: What can be executed, and what is merged into it.
Query = str | bytes | Composable
Params = Sequence[Any] | Mapping[str, Any] | None

#: What a cursor of no special class fetches.
Row = tuple[Any, ...]

_cursor = extensions.cursor
_query: Any = _cursor.query.__get__
_rowcount: Any = _cursor.rowcount.__get__
_statusmessage: Any = _cursor.statusmessage.__get__


class GuardedCursor(_cursor):
    """The part of `Cursor` that the files of its methods know."""

    connection: GuardedConnection  # psycopg2 makes no other with this class

    #: The gate's `loan` when the connection made it; None: not one of a pool.
    _loan: object = None

    #: (the message that was sent, how many bytes of it aren't the user's): see lazy_begin.py.
    _prefixed: tuple[bytes, int] | None = None

    #: (the query, row count and status) of the last `copy()` block, or of an `executemany()` whose row count can't be
    #: written: psycopg2 saw a part of it only.
    _copied: tuple[Any, int, str | None] | None = None

    def _belongs_to(self, loan: object) -> None:
        self._loan = loan

    def _is_void(self) -> bool:
        """Its connection has gone back to its pool, and has another borrower."""
        return self._loan is not None and self._loan is not self.connection._gate.loan

    def _refuse_if_void(self, call: str) -> None:
        if self._is_void():
            raise ConnectionReturned(call)

    def _calling(self, call: str) -> AbstractContextManager[None]:
        """`with self._calling("fetchone"):` as the gate's `calling()`."""
        self._refuse_if_void(call)
        return self.connection._gate.calling(call)

    def _note_rowcount(self, rowcount: int) -> None:
        if not set_rowcount(self, rowcount):
            self._copied = (_query(self), rowcount, _statusmessage(self))

    def _note_copy(self, rowcount: int, statusmessage: str) -> None:
        self._copied = (_query(self), rowcount, statusmessage)

    def _hide_prefix(self, message: bytes, length: int) -> None:
        self._prefixed = (message, length)

    @property
    def query(self) -> bytes | None:
        """The last statement that was sent, as bytes; as psycopg2's."""
        query: bytes | None = _query(self)
        prefixed = self._prefixed
        return query[prefixed[1] :] if query is not None and prefixed is not None and prefixed[0] is query else query

    @property
    def rowcount(self) -> int:
        """Number of rows of the last statement, as psycopg2's; -1 if there is none."""
        copied = self._copied
        if copied is not None and copied[0] is _query(self):
            return copied[1]
        return _rowcount(self)  # type: ignore[no-any-return]

    @property
    def statusmessage(self) -> str | None:
        """What the server called the last statement, as "COPY 42"; as psycopg2's."""
        copied = self._copied
        if copied is not None and copied[0] is _query(self):
            return copied[2]
        return _statusmessage(self)  # type: ignore[no-any-return]
