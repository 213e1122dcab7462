"""Long work that never has to wait lets the other tasks run now and then."""

from __future__ import annotations

import time

from ...hubs import hub

#: Seconds of work without a pause.
LONGEST_RUN = 0.004
#: sleep(0) isn't enough: gevent runs up to 50 such callbacks before it looks at timers and sockets again.
SHORTEST_PAUSE = 1e-6


class Pacer:
    """The pauses of one piece of work."""

    __slots__ = ("_pause_at", "_sleep")

    def __init__(self) -> None:
        self._sleep = hub().sleep
        self.start()

    def start(self) -> None:
        """The others have just had their turn."""
        self._pause_at = time.monotonic() + LONGEST_RUN

    def is_due(self) -> bool:
        """Whether the work has gone on for too long."""
        return time.monotonic() >= self._pause_at

    def pause(self) -> bool:
        """Let the others run, if it is due. Suspends then, and gives True."""
        if time.monotonic() < self._pause_at:
            return False
        self._sleep(SHORTEST_PAUSE)
        self.start()
        return True
