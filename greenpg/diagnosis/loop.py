"""Whether something keeps the event loop from turning, measured; and where it is."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

from .. import hubs
from .findings import ERROR, Finding

_SAMPLE = 0.02
_LONG = 0.1
#: The loop waits in these files when it has nothing to do.
_AT_REST = ("gevent/hub.py", "gevent/_waiter.py", "eventlet/hubs/", "gevent/_hub_primitives.py")
_OWN = "greenpg/diagnosis/"


class _Watch:
    """A task that ticks, and a native thread that looks whether it does.

    A block counts only if the thread, which ran on time itself, has found the loop at the same kind of work again and
    again, or if the process has computed all the while: on a busy machine everything is late.
    """

    def __init__(self, hub: hubs.Hub) -> None:
        self._hub = hub
        self._ticked_at = time.monotonic()
        self._cpu_at = time.process_time()
        self._is_over = False
        #: Seconds, and where.
        self.longest = 0.0
        self.places: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Suspends for so long."""
        self._thread = _own_thread()
        self._pause: Any = self._hub.mutex()
        self._pause.acquire()
        over = self._hub.event()
        self._hub.spawn(self._look_in_thread, over)
        self._hub.spawn(self._tick)
        try:
            self._hub.sleep(seconds)
        finally:
            self._is_over = True
            over.wait(time.monotonic() + 5)

    def _tick(self) -> None:
        while not self._is_over:
            self._hub.sleep(_SAMPLE / 2)
            now, cpu = time.monotonic(), time.process_time()
            gap, computed = now - self._ticked_at, cpu - self._cpu_at
            if gap > 2 * _LONG and computed > 0.8 * gap:
                self.longest = max(self.longest, gap)
            self._ticked_at, self._cpu_at = now, cpu

    def _look_in_thread(self, over: hubs.Event) -> None:
        try:
            self._hub.run_in_thread(self._look)
        finally:
            over.set()

    def _look(self) -> None:
        samples = 0
        while not self._is_over:
            self._pause.acquire(True, _SAMPLE)  # a native wait, whatever is patched
            late = time.monotonic() - self._ticked_at
            place = _place(sys._current_frames().get(self._thread)) if late > _LONG else None
            samples = samples + 1 if place else 0
            if place and samples >= 3:
                self.longest = max(self.longest, late)
                self.places[place] += 1


def _own_thread() -> int:
    """The native id of the running thread: threading.get_ident() is patched."""
    own = sys._getframe()
    return next((thread for thread, frame in sys._current_frames().items() if frame is own), 0)


def _place(frame: FrameType | None) -> str | None:
    """Where the program is, None if the loop is at rest."""
    if frame is None or any(part in frame.f_code.co_filename for part in _AT_REST):
        return None
    return f"{frame.f_code.co_filename}, line {frame.f_lineno} ({frame.f_code.co_name})"


def check_loop(facts: dict[str, Any], seconds: float) -> Iterator[Finding]:
    """Watch the loop while the program's own tasks run. Suspends for so long."""
    hub = hubs.monkey_patched_hub() or hubs.hub()
    if hub.name == "threads" or not seconds:
        return
    watch = _Watch(hub)
    watch.run(seconds)
    facts["loop_watched_seconds"] = seconds
    facts["loop_blocked_seconds"] = round(watch.longest, 3)
    if watch.longest:
        places = [place for place, _ in watch.places.most_common(3) if _OWN not in place]
        yield Finding(
            "loop_blocked",
            ERROR,
            f"the loop was blocked for {watch.longest * 1000:.0f} ms while it was watched for {seconds:g} s"
            + (f", in {'; '.join(places)}" if places else ""),
            "Nothing else runs meanwhile: no request is served, no answer of the server is read, no timeout fires.",
            "Compute in a thread (gevent.get_hub().threadpool, eventlet.tpool) or a process, or call sleep(0) now and "
            "then; replace calls that block with green ones.",
        )
