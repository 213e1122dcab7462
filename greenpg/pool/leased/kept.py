"""What stays on this side when a leased connection goes back: messages, and rows that were not read yet."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from ...connection.connection import Connection

#: psycopg2 keeps so many notices.
_MOST_NOTICES = 50


class KeepsRows(Protocol):
    """A cursor."""

    def _keep_rows(self) -> None:
        """Take what the cursor below has."""


class Kept:
    """Of one `LeasedConnection`."""

    __slots__ = ("_cursors", "notices", "notifies")

    def __init__(self) -> None:
        self.notices: Any = []
        self.notifies: Any = []
        #: Those that have been executed under the present lease.
        self._cursors: weakref.WeakSet[KeepsRows] = weakref.WeakSet()

    def note(self, cursor: KeepsRows) -> None:
        """It has something that's to be kept when the lease ends."""
        self._cursors.add(cursor)

    def keep_messages(self, conn: Connection) -> None:
        """Take the connection's. Doesn't suspend."""
        for kept, found in ((self.notices, conn.notices), (self.notifies, conn.notifies)):
            for message in found:
                kept.append(message)  # whatever the program has put in their place has that
            del found[:]
        if isinstance(self.notices, list):
            del self.notices[:-_MOST_NOTICES]

    def keep_rows(self) -> None:
        """Of all cursors. Suspends now and then if there are many rows."""
        cursors = list(self._cursors)
        self._cursors.clear()
        for cursor in cursors:
            cursor._keep_rows()

    def forget_rows(self) -> None:
        """Nobody will read them."""
        self._cursors.clear()
