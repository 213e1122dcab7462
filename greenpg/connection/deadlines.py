"""Client-side deadlines of statements: they hold when the server can't be reached, too."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from ..errors import DeadlineExceeded, is_interruption


class Deadlines:
    """The limits in force on one connection. Times in seconds."""

    __slots__ = ("_blocks", "_exceeded", "given_out", "per_statement")

    def __init__(self) -> None:
        #: For each statement, from when it is sent; None: no limit.
        self.per_statement: float | None = None
        self._blocks: list[DeadlineBlock] = []
        self._exceeded = ""
        #: What `next_deadline()` gave last.
        self.given_out: float | None = None

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
        self.given_out = deadline
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

    def limit_nothing(self) -> bool:
        return self.per_statement is None and not self._blocks


class Limited(Protocol):
    """Has deadlines while there are any: a connection's gate."""

    def made_deadlines(self) -> Deadlines:
        """Them, made if there are none yet."""

    def forget_deadlines(self) -> None:
        """There are none any more."""


class DeadlineBlock:
    """`with conn.deadline(seconds):` all statements of the block, together, have that long."""

    __slots__ = ("_gate", "ends_at", "seconds")

    def __init__(self, gate: Limited, seconds: float) -> None:
        self._gate = gate
        self.seconds = checked_seconds(seconds)
        self.ends_at = 0.0

    def __enter__(self) -> None:
        self.ends_at = time.monotonic() + self.seconds
        self._gate.made_deadlines().enter(self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        deadlines = self._gate.made_deadlines()
        deadlines.leave(self)
        if deadlines.limit_nothing():
            self._gate.forget_deadlines()


#: Seconds that the ROLLBACK of a block that has raised an error may hold that back.
ROLLBACK_TIMEOUT = 2.0


def rollback_deadline(gate: Limited, exception: BaseException) -> DeadlineBlock:
    """The limit for the ROLLBACK at the end of a block that has raised the exception: a kill or a timeout isn't held
    back for longer than any other call does, the connection's `interruption_grace`."""
    is_hasty = is_interruption(exception) or not isinstance(exception, Exception | GeneratorExit)
    return DeadlineBlock(gate, _AT_ONCE if is_hasty else ROLLBACK_TIMEOUT)


#: What is left then is the grace.
_AT_ONCE = 1e-6


def checked_seconds(seconds: float) -> float:
    """ValueError if it can't be a length of time."""
    if not seconds > 0:
        raise ValueError(f"a deadline must be a positive number of seconds, not {seconds!r}")
    return seconds
