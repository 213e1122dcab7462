"""What the reader tells the server: one command at a time, sent without waiting for its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..connection.cursor import Cursor
from ..hubs import Event


@dataclass
class ListenCommand:
    """Brings the server to listen to what is wanted. One message, so its answer comes in one piece."""

    listen: list[str] = field(default_factory=list)
    unlisten: list[str] = field(default_factory=list)

    def execute(self, cursor: Cursor) -> None:
        cursor.execute(
            "; ".join(
                [f"LISTEN {_quoted(channel)}" for channel in self.listen]
                + [f"UNLISTEN {_quoted(channel)}" for channel in self.unlisten]
            )
        )


class NotifyCommand:
    """A notification to be sent on the reader's connection, for a task that waits until it is."""

    def __init__(self, channel: str, payload: str, event: Event) -> None:
        self.channel = channel
        self.payload = payload
        #: Set when `is_done` is, and when the waiting task has to see to it that there is a reader.
        self.event = event
        self.is_done = False
        self.error: Exception | None = None

    def execute(self, cursor: Cursor) -> None:
        cursor.execute("SELECT pg_notify(%s, %s)", (self.channel, self.payload))

    def finish(self, error: Exception | None) -> None:
        self.is_done, self.error = True, error
        self.event.set()


class Heartbeat:
    """A command whose only use is its answer."""

    def execute(self, cursor: Cursor) -> None:
        cursor.execute("SELECT 1")


def _quoted(name: str) -> str:
    # psycopg2's quote_ident() encodes in UTF-8 and decodes in the connection's encoding: another name, if they differ.
    return '"' + name.replace('"', '""') + '"'
