"""Client-side deadlines of statements: they hold when the server can't be reached, too."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from ..errors import DeadlineExceeded


class Deadlines:
    """The limits in force on one connection. Times in seconds."""

    __slots__ = ("_blocks", "_exceeded", "per_statement")

    def __init__(self) -> None:
        #: For each statement, from when it is sent; None: no limit.
        self.per_statement: float | None = None
        self._blocks: list[DeadlineBlock] = []
        self._exceeded = ""

    def next_deadline(self) -> float | None:
        """When the statement that begins now has to be over, by `time.monotonic()`; None: any time."""
        deadline = None
        if self.per_statement is not None:
            deadline = time.monotonic() + self.per_statement
            self._exceeded = f"the statement took longer than its deadline of {self.per_statement:g} s"
        for block in self._blocks:
            if deadline is None or block.ends_at < deadline:
                deadline = block.ends_at
                self._exceeded = f"the block took longer than its deadline of {block.seconds:g} s"
        return deadline

    def set_per_statement(self, seconds: float | None) -> None:
        self.per_statement = seconds

    def exceeded(self) -> DeadlineExceeded:
        """The error for the deadline that was last given out."""
        return DeadlineExceeded(self._exceeded)

    def enter(self, block: DeadlineBlock) -> None:
        self._blocks.append(block)

    def leave(self, block: DeadlineBlock) -> None:
        if block in self._blocks:  # else a pool has ended it, when the connection came back
            self._blocks.remove(block)


class DeadlineBlock:
    """`with conn.deadline(seconds):` all statements of the block, together, have that long."""

    __slots__ = ("_deadlines", "ends_at", "seconds")

    def __init__(self, deadlines: Callable[[], Deadlines], seconds: float) -> None:
        self._deadlines = deadlines
        self.seconds = checked_seconds(seconds)
        self.ends_at = 0.0

    def __enter__(self) -> None:
        self.ends_at = time.monotonic() + self.seconds
        self._deadlines().enter(self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines().leave(self)


def checked_seconds(seconds: float) -> float:
    """ValueError if it can't be a length of time."""
    if not seconds > 0:
        raise ValueError(f"a deadline must be a positive number of seconds, not {seconds!r}")
    return seconds
