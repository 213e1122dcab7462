"""Rows as dicts, asked for at the fetch: `fetchone()` and its kin stay what the cursor's class makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import psycopg2

from .guarded_cursor import GuardedCursor


class RowDict(dict[str, Any]):
    """A row as a dict in the order of its columns; a column is an attribute, too: `row["now"]` is `row.now`.

    What dict itself has (`items`, `keys`, ...) is to be had by `row["items"]` only.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the row has no column {name!r}, but {', '.join(self) or 'none'}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"the row has no column {name!r}") from None


class DictFetches(GuardedCursor):
    """What `Cursor` has beyond psycopg2's fetches."""

    def fetchone_dict(self) -> RowDict | None:
        """The next row as a `RowDict`, None after the last. Of columns of the same name the last counts.

        Suspends and raises as `fetchone()` does.
        """
        row = self.fetchone()
        return None if row is None else as_dicts([row], self.description)[0]

    def fetchall_dict(self) -> list[RowDict]:
        """The remaining rows as `RowDict`s. Suspends and raises as `fetchall()` does."""
        rows = self.fetchall()
        return as_dicts(rows, self.description)


def as_dicts(rows: Iterable[Any], description: Any) -> list[RowDict]:
    """The rows of a cursor with that `description`."""
    names = [column[0] for column in description or ()]
    return [RowDict(zip(names, _values(row), strict=True)) for row in rows]


def _values(row: Any) -> Iterable[Any]:
    """RealDictCursor's rows are mappings; they can't have two columns of the same name."""
    return row.values() if isinstance(row, Mapping) else row


def scrolled(value: int, mode: Literal["relative", "absolute"], position: int, rows: range) -> int:
    """The row that psycopg2's `scroll(value, mode)` goes to from the one at `position`; `rows` are those there are.

    Raises ProgrammingError as that does.
    """
    if mode not in ("relative", "absolute"):
        raise psycopg2.ProgrammingError("scroll mode must be 'relative' or 'absolute'")
    wanted = value + position if mode == "relative" else value
    if wanted not in rows:
        raise psycopg2.ProgrammingError("scroll destination out of bounds")
    return wanted
