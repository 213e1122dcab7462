"""What is known of a pool's own tasks: those that connect (opening.py), and the one of upkeep.py. No I/O.

They outlive the pool's core by a moment, so they have it, beside a weak reference to the core.
"""

from __future__ import annotations

from ..hubs import Event

#: An attempt to connect that has taken so many seconds keeps nobody else from trying.
HANGING = 1.0
#: While clients wait, nobody rests longer than that between two attempts to connect.
_LONGEST_REST_WITH_CLIENTS = 0.25
#: Seconds for which a failure is news.
_SHORTEST_REFUSAL = 1.0


class Workers:
    """The tasks that connect, at most `num_workers`. Methods are called with the pool's mutex held, except `wake()`."""

    __slots__ = ("_begun", "_failed_at", "_failing_since", "_when_ended", "count", "last_error", "resting")

    def __init__(self) -> None:
        self.count = 0
        #: Those that wait before they try again.
        self.resting: set[Event] = set()
        #: What the last attempt failed by, without its traceback; None after a successful one.
        self.last_error: Exception | None = None
        self._failed_at = 0.0
        #: When the first of the attempts was begun that have all failed; None if the last one has succeeded.
        self._failing_since: float | None = None
        #: When the attempts that are under way were begun.
        self._begun: dict[object, float] = {}
        self._when_ended: list[Event] = []

    def begin(self) -> None:
        self.count += 1

    def end(self) -> None:
        self.count -= 1
        while not self.count and self._when_ended:
            self._when_ended.pop().set()

    def may_begin(self, now: float, num_workers: int) -> bool:
        """One more may start: those that hang don't count."""
        return self.count < num_workers or self.count - self.hanging(now) < num_workers

    def trying(self, attempt: object, now: float) -> None:
        """An attempt to connect begins."""
        self._begun[attempt] = now

    def tried(self, attempt: object) -> None:
        """It has come to its end, whatever that is."""
        self._begun.pop(attempt, None)

    def hanging(self, now: float) -> int:
        """How many attempts have taken so long that others shouldn't wait for them."""
        return sum(now - begun_at >= HANGING for begun_at in self._begun.values())

    def failed(self, error: Exception, begun_at: float, now: float) -> None:
        """An attempt to connect has failed. The error is kept, but not the frames that it came through."""
        self._failed_at = now
        if self._failing_since is None:
            self._failing_since = begun_at
        inner: BaseException | None = error
        seen = set()
        while inner is not None and inner not in seen:
            seen.add(inner)
            inner.__traceback__ = None
            inner = inner.__cause__ or inner.__context__
        self.last_error = error

    def succeeded(self) -> None:
        self.last_error = self._failing_since = None

    def fails_for(self, seconds: float, now: float) -> bool:
        """Every attempt has failed for so long, the last one not longer ago."""
        since = self._failing_since
        return since is not None and now - since >= seconds and now - self._failed_at < max(seconds, _SHORTEST_REFUSAL)

    def rest_until(self, event: Event, now: float, delay: float, clients_wait: bool) -> float:
        """The worker is going to wait for the event, until the deadline that is returned."""
        self.resting.add(event)
        return now + (min(delay, _LONGEST_REST_WITH_CLIENTS) if clients_wait else delay)

    def rest_is_over(self, event: Event) -> None:
        self.resting.discard(event)

    def hurry(self, now: float) -> None:
        """A client waits: let those that rest try now, unless they have only just failed."""
        if now - self._failed_at >= _LONGEST_REST_WITH_CLIENTS:
            self.wake()

    def wake(self) -> None:
        while self.resting:
            self.resting.pop().set()

    def stop(self, when_ended: Event) -> None:
        """Wake them, and set the event when the last one has ended."""
        self.wake()
        if self.count:
            self._when_ended.append(when_ended)
        else:
            when_ended.set()


class Keeper:
    """The task of upkeep.py, which runs only while there is something to do."""

    __slots__ = ("_wake", "is_running", "is_stopped", "shrink_at")

    def __init__(self) -> None:
        self.is_running = False
        self.is_stopped = False
        #: When it will look next whether a connection isn't needed.
        self.shrink_at = 0.0
        self._wake: Event | None = None

    def begin(self, shrink_at: float) -> None:
        self.is_running = True
        self.shrink_at = shrink_at

    def rest(self, event: Event, deadline: float) -> None:
        """Suspend until the deadline, or `stop()`."""
        self._wake = event
        if not self.is_stopped:
            event.wait(deadline)

    def shrink_again_at(self, shrink_at: float) -> None:
        self.shrink_at = shrink_at

    def end(self) -> None:
        self.is_running = False

    def stop(self) -> None:
        """End the task soon. Doesn't suspend."""
        self.is_stopped = True
        wake = self._wake
        if wake is not None:
            wake.set()
