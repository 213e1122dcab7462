"""`Subscription`: what a subscriber reads his notifications from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType

from psycopg2.extensions import Notify

from ..errors import ListenerClosed, is_interruption
from .mailbox import Gap, Mailbox
from .reader import Reader


class Subscription:
    """What `Listener.subscribe()` gives: the notifications of its channels, in the order in which the server sent them.

        with listener.subscribe("orders") as subscription:
            for note in subscription:
                if isinstance(note, greenpg.Gap):
                    ...  # some are missing: read the table again
                else:
                    print(note.channel, note.payload, note.pid)

    Any task may call its methods. Several that read from one subscription share its notifications out among them.
    """

    __slots__ = ("_mailbox", "_reader", "_root")

    def __init__(self, mailbox: Mailbox, reader: Reader, root: object) -> None:
        self._mailbox = mailbox
        self._reader = reader
        self._root = root  # keeps the Listener alive as long as somebody listens

    @property
    def channels(self) -> frozenset[str]:
        """What it listens to."""
        return self._mailbox.channels

    @property
    def pending(self) -> int:
        """How many notifications wait to be taken."""
        return len(self._mailbox)

    @property
    def closed(self) -> bool:
        """Whether nothing is delivered any more. What had been delivered before can still be taken."""
        return self._mailbox.is_closed

    def get(self, timeout: float | None = None) -> Notify | Gap | None:
        """The next notification (`psycopg2.extensions.Notify`: `channel`, `payload`, `pid`), or a `Gap`.

        Suspends until there is one, for at most `timeout` seconds (None: no limit; 0: doesn't wait), then returns
        None. Raises `errors.ListenerClosed` once the subscription or the listener is closed and all is taken.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._mailbox.take(deadline, self._reader.ensure_running)

    def __iter__(self) -> Iterator[Notify | Gap]:
        return self

    def __next__(self) -> Notify | Gap:
        try:
            item = self.get()
        except ListenerClosed as error:
            if is_interruption(error):
                raise
            raise StopIteration from None
        assert item is not None
        return item

    def close(self) -> None:
        """End the subscription; whoever waits in it gets its end. Doesn't suspend; again is harmless."""
        self._reader.remove(self._mailbox)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # No lock may be taken here: whoever runs while this is collected may hold it. The reader sweeps.
        self._mailbox.is_abandoned = True

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.pending} pending"
        return f"<{type(self).__module__}.{type(self).__qualname__} {sorted(self.channels)} {state}>"
