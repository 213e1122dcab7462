"""Fetching a big result without holding up the other tasks: psycopg2 makes a million rows in one go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice, repeat
from typing import Any

from psycopg2 import extensions
from psycopg2.extras import NamedTupleCursor

from ..hubs import hub
from .channel import LONGEST_RUN, SHORTEST_PAUSE

_cursor = extensions.cursor
_fetchone: Any = _cursor.fetchone
_fetchmany: Any = _cursor.fetchmany
_next: Any = _cursor.__next__
_rownumber: Any = _cursor.rownumber.__get__

# Its cursors' __iter__() does for all rows what their __next__() does for one.
_EXTRAS = NamedTupleCursor.__module__

#: Results with fewer rows are fetched in one go.
BIG_ROWS = 1000
#: The clock is looked at after so many.
_CHUNK_ROWS = 500


def fetch_in_turns(cursor: Any) -> list[Any]:
    """What psycopg2's `fetchall()` gives. Suspends now and then."""
    rows: list[Any] = _Yielding() if isinstance(cursor, NamedTupleCursor) else []
    pause_at = time.monotonic() + LONGEST_RUN
    sleep = hub().sleep
    while chunk := _fetchmany(cursor, _CHUNK_ROWS):
        rows += chunk
        if time.monotonic() >= pause_at:
            sleep(SHORTEST_PAUSE)
            pause_at = time.monotonic() + LONGEST_RUN
    return rows


def iterate_in_turns(cursor: Any, rowcount: int) -> Iterator[Any]:
    """The rows of an unnamed cursor. Suspends now and then. Takes no row beforehand: `fetchone()` may come between."""
    next_row = type(cursor).__next__
    if next_row is _next or getattr(next_row, "__module__", None) == _EXTRAS:
        rows: Iterator[Any] = iter(partial(_fetchone, cursor), None)
    else:  # a class of the user's, which makes something of each row
        rows = map(next_row, repeat(cursor))
    pause_at = time.monotonic() + LONGEST_RUN
    while _rownumber(cursor) < rowcount:
        yield from islice(rows, _CHUNK_ROWS)
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
