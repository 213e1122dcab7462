"""Turns: one task at a time, strictly in the order of asking, greenlets and native threads alike."""

from __future__ import annotations

import time
from collections import OrderedDict

from ..errors import WaitTimeout
from ..hubs import Event, hub


class Turns:
    """The turn is handed from task to task, so that nobody can overtake who waits for it."""

    def __init__(self) -> None:
        self._mutex = hub().mutex()
        self._holder: object | None = None
        #: Event, set when it is the task's turn, and task.
        self._line: OrderedDict[Event, object] = OrderedDict()

    @property
    def waiting_count(self) -> int:
        return len(self._line)

    def take(self, timeout: float | None) -> None:
        """Suspend until it is the caller's turn, for at most `timeout` seconds (None: no limit; 0: doesn't wait).

        Raises `errors.WaitTimeout`, and RuntimeError if the caller has the turn already.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        task = hub().current()
        event = hub().event()
        with self._mutex:
            holder = self._holder
            if holder is None:
                self._holder = task
                return
            if holder == task:
                raise RuntimeError("this task has the turn already: it would wait for itself for ever")
            if timeout != 0:
                self._line[event] = task
        if timeout == 0:
            raise WaitTimeout(f"{hub().describe(holder)} has the turn")
        try:
            event.wait(deadline)
        except BaseException:
            if self._leave(event):  # it was handed over at the same moment
                self.give_back()
            raise
        if not self._leave(event):
            raise WaitTimeout(f"it was not this task's turn within {timeout:g} s: {self._describe()}")

    def give_back(self) -> None:
        """Hand the turn to the head of the line. Doesn't suspend."""
        with self._mutex:
            if not self._line:
                self._holder = None
                return
            event, self._holder = self._line.popitem(last=False)
            event.set()

    def _leave(self, event: Event) -> bool:
        """Whether it is the task's turn; if not, it has left the line."""
        with self._mutex:
            self._line.pop(event, None)
            return event.value is not None

    def _describe(self) -> str:
        holder = self._holder
        has_it = "nobody has it" if holder is None else f"{hub().describe(holder)} has it"
        return f"{has_it}, {self.waiting_count} others are waiting"
