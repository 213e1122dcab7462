"""`Turnstile`: native threads on one connection take turns, as psycopg2 lets them (its threadsafety is 2)."""

from __future__ import annotations

from ..errors import ConnectionInUse
from ..hubs import hub


class Turnstile:
    """Lets one task in at a time: the others wait, if they are native threads without an event loop, or are refused."""

    __slots__ = ("_depth", "_holder", "_mutex")

    def __init__(self) -> None:
        self._mutex = hub().natives().mutex()
        self._holder: object = None
        self._depth = 0

    def take(self, operation: str) -> None:
        """Get the turn; who has it already may call again. Blocks the native thread. Raises ConnectionInUse."""
        task = hub().current()
        if self._holder != task:
            if not self._mutex.acquire(hub().may_block()):
                raise ConnectionInUse(operation, hub().describe(self._holder))
            self._holder = task
        self._depth += 1

    def leave(self) -> None:
        """Give the turn back, when this has been called as often as `take()`. Harmless for who hasn't got it."""
        if self._holder != hub().current():
            return
        self._depth -= 1
        if not self._depth:
            self._holder = None
            self._mutex.release()
