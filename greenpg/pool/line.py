"""The line of tasks that wait for a connection: first come, first served, and leaving costs the same anywhere in it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ..hubs import Event

if TYPE_CHECKING:
    from .ledger import Slot


class Waiter:
    """A place in the line. At most one of `slot` and `error` gets set, once, by whoever takes it out of the line."""

    __slots__ = ("error", "event", "slot")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.slot: Slot | None = None
        self.error: Exception | None = None


class Line:
    """First in, first out; O(1) to join, to serve the head, and to leave from the middle."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        # Not a dict: taking the first key again and again gets slow there.
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiters)

    def join(self, waiter: Waiter) -> None:
        self._waiters[waiter] = None

    def pop_head(self) -> Waiter:
        return self._waiters.popitem(last=False)[0]

    def leave(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)
