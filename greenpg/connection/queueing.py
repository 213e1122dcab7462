"""`QueueingGate`: the gate of a connection in a pipeline. A class of its own, so that other gates need not ask."""

from __future__ import annotations

from typing import Any

from .gate import BusyGate
from .occupants import Occupant, Queue

_owner: Any = BusyGate.__dict__["owner"]


class QueueingGate(BusyGate):
    """Has the pipeline asked first, by whoever finds nobody inside."""

    __slots__ = ()

    @staticmethod
    def open(gate: BusyGate, queue: Queue) -> None:
        """Make the gate one, until `close_queue()`."""
        gate.queue = queue
        gate.__class__ = QueueingGate

    def _is_free(self) -> bool:
        return _owner.__get__(self) in (None, self.free)

    @property
    def owner(self) -> object | None:
        """Who waits inside; or the queue, which makes way for all other calls."""
        return self.queue if self._is_free() else _owner.__get__(self)

    @owner.setter
    def owner(self, owner: object | None) -> None:
        _owner.__set__(self, owner)

    def refuse(self, operation: str) -> None:
        self._refuse(operation, _owner.__get__(self))

    def takes_over(self, cursor: Any, query: Any, vars: Any) -> bool:
        if self.queue is None or not self._is_free():
            return super().takes_over(cursor, query, vars)
        with self.turn("execute"):
            if self.queue.queue(cursor, query, vars):
                return True
            if self.free is not None:
                self.turnstile.take("execute")
            return False

    def occupy(self, occupant: Occupant) -> None:
        if self._is_free():
            self.owner = occupant

    def vacate(self, occupant: Occupant | None = None) -> None:
        if occupant is None or _owner.__get__(self) is occupant:
            self.owner = self.free

    def close_queue(self) -> None:
        self.queue = None
        self.__class__ = BusyGate  # type: ignore[assignment]
