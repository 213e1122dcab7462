"""Fetching a big result without holding up the other tasks: psycopg2 makes a million rows in one go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

import psycopg2
from psycopg2 import extensions
from psycopg2.extras import NamedTupleCursor

from ..hubs import hub
from .channel import LONGEST_RUN, SHORTEST_PAUSE

_cursor = extensions.cursor
_fetchmany: Any = _cursor.fetchmany
_description: Any = _cursor.description.__get__
_query: Any = _cursor.query.__get__

#: Results with fewer rows are fetched in one go.
BIG_ROWS = 1000
#: The clock is looked at after so many.
_CHUNK_ROWS = 500


def fetch_in_turns(cursor: Any) -> list[Any]:
    """What psycopg2's `fetchall()` gives. Suspends now and then.

    Raises ProgrammingError if another task gives the cursor another result meanwhile: the rest of its rows is gone.
    """
    rows: list[Any] = _Yielding() if isinstance(cursor, NamedTupleCursor) else []
    query, result = _query(cursor), _description(cursor)
    pause_at = time.monotonic() + LONGEST_RUN
    sleep = hub().sleep
    while chunk := _fetchmany(cursor, _CHUNK_ROWS):
        rows += chunk
        if time.monotonic() >= pause_at:
            sleep(SHORTEST_PAUSE)
            if _query(cursor) is not query or _description(cursor) is not result:
                raise psycopg2.ProgrammingError(
                    "another task has executed the cursor again during fetchall(): give each task a cursor of its own"
                )
            pause_at = time.monotonic() + LONGEST_RUN
    return rows


def iterate_in_turns(cursor: Any) -> Iterator[Any]:
    """The rows of an unnamed cursor, each by its own `__next__()`: whatever is done with the cursor meanwhile, the next
    row is psycopg2's. Suspends now and then."""
    return map(type(cursor).__next__, _in_turns(cursor))


def _in_turns(cursor: Any) -> Iterator[Any]:
    pause_at = time.monotonic() + LONGEST_RUN
    while True:
        yield from repeat(cursor, _CHUNK_ROWS)
        if time.monotonic() >= pause_at:
            hub().sleep(SHORTEST_PAUSE)
            pause_at = time.monotonic() + LONGEST_RUN


class _Yielding(list[Any]):
    """Rows of which psycopg2's `NamedTupleCursor.fetchall()` goes on to make other rows, which takes as long again."""

    def __iter__(self) -> Iterator[Any]:
        rows = super().__iter__()
        pause_at = time.monotonic() + LONGEST_RUN
        for _ in range(0, len(self), _CHUNK_ROWS):
            yield from islice(rows, _CHUNK_ROWS)
            if time.monotonic() >= pause_at:
                hub().sleep(SHORTEST_PAUSE)
                pause_at = time.monotonic() + LONGEST_RUN
