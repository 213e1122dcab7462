"""Fetching a big result without holding up the other tasks: psycopg2 makes a million rows in one go."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

import psycopg2
from psycopg2 import extensions
from psycopg2.extras import NamedTupleCursor

from ..guarded_cursor import GuardedCursor
from .pacing import Pacer

_cursor = extensions.cursor
_fetchmany: Any = _cursor.fetchmany
_description: Any = _cursor.description.__get__
_query: Any = _cursor.query.__get__

#: Results with fewer rows are fetched in one go.
BIG_ROWS = 1000
#: The clock is looked at after so many.
_CHUNK_ROWS = 500


def fetch_in_turns(cursor: GuardedCursor) -> list[Any]:
    """What psycopg2's `fetchall()` gives. Suspends now and then.

    Raises ProgrammingError if another task gives the cursor another result meanwhile: the rest of its rows is gone.
    """
    rows: list[Any] = _Yielding() if isinstance(cursor, NamedTupleCursor) else []
    query, result = _query(cursor), _description(cursor)
    pacer = Pacer()
    while chunk := _fetchmany(cursor, _CHUNK_ROWS):
        rows += chunk
        if pacer.pause() and (_query(cursor) is not query or _description(cursor) is not result):
            raise psycopg2.ProgrammingError(
                "another task has executed the cursor again during fetchall(): give each task a cursor of its own"
            )
    return rows


def iterate_in_turns(cursor: Any) -> Iterator[Any]:
    """The rows of an unnamed cursor, each by its own `__next__()`: whatever is done with the cursor meanwhile, the next
    row is psycopg2's. Suspends now and then."""
    return map(type(cursor).__next__, _in_turns(cursor))


def _in_turns(cursor: Any) -> Iterator[Any]:
    pacer = Pacer()
    while True:
        yield from repeat(cursor, _CHUNK_ROWS)
        pacer.pause()


class _Yielding(list[Any]):
    """Rows of which psycopg2's `NamedTupleCursor.fetchall()` goes on to make other rows, which takes as long again."""

    def __iter__(self) -> Iterator[Any]:
        rows = super().__iter__()
        pacer = Pacer()
        for _ in range(0, len(self), _CHUNK_ROWS):
            yield from islice(rows, _CHUNK_ROWS)
            pacer.pause()
