"""A subscriber's mailbox, and the `Gap` that stands where notifications are missing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from psycopg2.extensions import Notify

from ..errors import ListenerClosed
from ..hubs import Event, hub

#: What `Gap.reason` can be.
RECONNECTED, OVERFLOW = "reconnected", "overflow"


@dataclass(frozen=True)
class Gap:
    """Stands among the notifications where some are missing: what they would have told has to be read again.

    `reason`: "reconnected": the connection was lost, and nobody listened until now; the channels are listened to again
    when the Gap is delivered, so whoever reads the tables then misses nothing. "overflow": the subscriber was too
    slow, and the oldest of its waiting notifications were dropped. `missed`: how many; None where nobody knows.
    """

    reason: str
    missed: int | None = None


class Mailbox:
    """A subscriber's waiting notifications. The reader delivers, the subscriber takes; neither waits for the other."""

    __slots__ = (
        "_dropped",
        "_drops_are_counted",
        "_items",
        "_mutex",
        "_readers",
        "channels",
        "confirmation",
        "error",
        "is_abandoned",
        "is_closed",
        "is_confirmed",
        "max_pending",
    )

    def __init__(self, channels: frozenset[str], max_pending: int) -> None:
        self.channels = channels
        self.max_pending = max_pending
        #: The server has confirmed that it listens to all the channels.
        self.is_confirmed = False
        #: Set when `is_confirmed`, `error` or `is_closed` is; None while nobody waits for that.
        self.confirmation: Event | None = None
        #: Why the server refused to listen.
        self.error: BaseException | None = None
        self.is_closed = False
        #: Its Subscription was forgotten without being closed.
        self.is_abandoned = False
        self._mutex = hub().mutex()
        self._items: deque[Notify | Gap] = deque()
        self._dropped = 0
        self._drops_are_counted = True
        self._readers: list[Event] = []

    def __len__(self) -> int:
        return len(self._items) + (self._dropped > 0)

    def deliver(self, items: Iterable[Notify | Gap]) -> None:
        """Add the items, drop the oldest ones if there are too many, wake whoever waits. Doesn't suspend."""
        with self._mutex:
            self._items.extend(items)
            while len(self._items) > self.max_pending:
                oldest = self._items.popleft()
                if isinstance(oldest, Gap):
                    self._drops_are_counted = False
                self._dropped += 1
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.set()

    def close(self) -> None:
        """No more is going to be delivered; what is there can still be taken. Doesn't suspend."""
        self.is_closed = True
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look around. Doesn't suspend."""
        if self.confirmation is not None:
            self.confirmation.set()
        self.deliver(())

    def take(self, deadline: float | None, before_waiting: Callable[[], object]) -> Notify | Gap | None:
        """The oldest item, or None after the deadline. Suspends while there is none. Raises `ListenerClosed`."""
        is_in_time = True
        while True:
            with self._mutex:
                if self._dropped:
                    return self._overflow()
                if self._items:
                    return self._items.popleft()
            if self.is_closed:
                raise ListenerClosed("the subscription is closed")
            if not is_in_time:
                return None
            before_waiting()
            event = hub().event()
            with self._mutex:
                self._readers.append(event)
                if self._items or self.is_closed:  # delivered by another native thread meanwhile
                    event.set()
            try:
                is_in_time = event.wait(deadline)
            finally:
                with self._mutex:
                    if event in self._readers:
                        self._readers.remove(event)

    def _overflow(self) -> Gap:
        missed = self._dropped if self._drops_are_counted else None
        self._dropped, self._drops_are_counted = 0, True
        return Gap(OVERFLOW, missed)
