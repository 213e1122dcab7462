"""What a query has given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg2


class Results:
    """The rows of a query, to be looked at as often as one likes, and the facts about it.

    Its methods don't suspend: the rows are there.
    """

    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor
        self._rows: list[Any] | None = cursor.fetchall() if cursor.description else []
        self._row_count: int = cursor.rowcount
        self._rownumber = 0
        self._query, self._status = cursor.query, cursor.statusmessage

    def items(self) -> list[Any]:
        """All rows."""
        if self._rows is None:
            raise psycopg2.InterfaceError("the results have been freed")
        return list(self._rows)

    def __getitem__(self, item: int) -> Any:
        rows = self.items()
        if not 0 <= item < len(rows):
            raise IndexError("No such row")
        self._rownumber = item + 1
        return rows[item]

    def __iter__(self) -> Iterator[Any]:
        for number, row in enumerate(self.items(), 1):
            self._rownumber = number
            yield row

    def __len__(self) -> int:
        return max(self._row_count, 0)

    def __bool__(self) -> bool:
        return self._row_count != 0

    def __repr__(self) -> str:
        return f"<queries.{type(self).__name__} rows={len(self)}>"

    def as_dict(self) -> dict[str, Any]:
        """The only row as a dict, {} if there is none. ValueError if there are more."""
        rows = self.items()
        if len(rows) > 1:
            raise ValueError("More than one row")
        return dict(rows[0]) if rows else {}

    def count(self) -> int:
        """How many rows were returned or affected; -1 for a statement that does neither."""
        return self._row_count

    def free(self) -> None:
        """Nothing: it is for the results of a TornadoSession."""

    @property
    def rownumber(self) -> int:
        """The index of the row after the last that was looked at."""
        return self._rownumber

    @property
    def query(self) -> Any:
        """The query as the server got it, in bytes."""
        return self._query

    @property
    def status(self) -> Any:
        """The server's status message."""
        return self._status
