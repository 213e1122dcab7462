"""`Listener`: one connection that listens for any number of subscribers."""

from __future__ import annotations

import itertools
import logging
import os
import time
from types import TracebackType

from ..connection.connect.credentials import ConnectKwargs, Conninfo, Credentials
from ..connection.connect.dsn import checked_dsn, masked_dsn
from ..connection.patching import check_patched
from ..errors import ListenerClosed, WaitTimeout
from ..hubs import hub
from .channels import checked_channel, checked_payload
from .commands import NotifyCommand
from .mailbox import Mailbox
from .reader import ConnectWith, Reader
from .subscription import Subscription

logger = logging.getLogger("greenpg.listener")

#: Seconds.
_SHUT_DOWN_AGAIN = 0.1

_listener_numbers = itertools.count(1)


class Listener:
    """One connection that listens for any number of subscribers, in any number of tasks.

        listener = greenpg.Listener("postgresql://app@db/app")
        with listener.subscribe("orders", "payments") as subscription:
            for note in subscription: ...

    It connects when it is first needed, LISTENs to a channel while somebody subscribes to it, and when the connection
    is lost it connects again (with jittered backoff, for as long as it takes), listens again, and delivers a `Gap` to
    each subscriber. A subscriber that is slow loses the oldest of its waiting notifications, and gets a `Gap` that
    counts them; it never holds up the others.

    - `conninfo`, `kwargs`: how to connect: a libpq connection string, and more of its keywords. Each may be a callable,
      as a pool's.
    - `max_pending` (10,000): how many notifications may wait for one subscriber.
    - `timeout` (30): seconds that `subscribe()` and `notify()` wait by default.
    - `heartbeat` (30): seconds after which a silent server is asked for a sign of life.
    - `name` (None: "listener-N"): for messages. Logger: `greenpg.listener`.

    Raises ValueError for values that make no sense, `psycopg2.ProgrammingError` for a malformed conninfo. All its
    methods may be called from any task of any native thread; the task that reads the connection lives in the native
    thread that first used the listener. After a fork the child has a listener without subscribers.
    """

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        kwargs: ConnectKwargs | None = None,
        max_pending: int = 10_000,
        timeout: float = 30.0,
        heartbeat: float = 30.0,
        name: str | None = None,
    ) -> None:
        if not heartbeat > 0:
            raise ValueError(f"heartbeat must be a positive number of seconds, not {heartbeat!r}")
        if not timeout >= 0:
            raise ValueError(f"timeout can't be negative: {timeout!r}")
        self.name = name or f"listener-{next(_listener_numbers)}"
        self.max_pending = _checked_max_pending(max_pending)
        self.timeout = timeout
        self._heartbeat = heartbeat

        credentials = Credentials(conninfo, kwargs)
        self._connect_with: ConnectWith = lambda connect: credentials.connect(
            lambda found, more: connect(checked_dsn(found, **more))
        )
        is_known = not (callable(conninfo) or callable(kwargs))
        self._shown_dsn = masked_dsn(self._connect_with(str)) if is_known else ""
        self._reader = self._new_reader()
        self._closed = False

    def subscribe(self, *channels: str, timeout: float | None = None, max_pending: int | None = None) -> Subscription:
        """Listen to the channels. When it returns, the server does: nothing that is notified from then on is missed.

        Suspends until the server has confirmed it, for at most `timeout` seconds (None: the listener's). If the
        server can't be reached, it is tried again for that long. `max_pending` (None: the listener's): how many
        notifications may wait for this subscriber before the oldest are dropped.

        Names are taken literally (`subscribe("Chat")` hears `NOTIFY "Chat"`, not `NOTIFY Chat`). Raises
        `errors.WaitTimeout`, which names the last error of connecting; `errors.ListenerClosed`; ValueError for a name
        that can't be a channel; the server's error if it refuses to listen (a standby does).
        """
        if not channels:
            raise ValueError("name at least one channel to listen to")
        mailbox = Mailbox(
            frozenset(map(checked_channel, channels)),
            self.max_pending if max_pending is None else _checked_max_pending(max_pending),
        )
        check_patched()
        reader = self._reader_here()
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        try:
            reader.add(mailbox)
            is_in_time = True
            while is_in_time and not (mailbox.is_confirmed or mailbox.error or mailbox.is_closed):
                event = mailbox.confirmation = hub().event()
                reader.ensure_running()
                if not (mailbox.is_confirmed or mailbox.error or mailbox.is_closed):
                    is_in_time = event.wait(deadline)
            if mailbox.is_confirmed and not mailbox.is_closed:
                mailbox.confirmation = None
                return Subscription(mailbox, reader, self)
        except BaseException:
            reader.remove(mailbox)
            raise
        reader.remove(mailbox)
        if mailbox.error is not None:
            raise mailbox.error
        if reader.is_stopping:
            raise ListenerClosed(f"the listener {self.name!r} was closed while the subscriber was waiting")
        raise self._timeout_error("the server has not confirmed LISTEN", reader)

    def notify(self, channel: str, payload: str = "", *, timeout: float | None = None) -> None:
        """Send a notification on the listener's connection; its own subscribers get it, too.

        Suspends until the server has taken it, for at most `timeout` seconds (None: the listener's). Raises ValueError
        for a payload of 8000 bytes or more, `errors.WaitTimeout`, and `psycopg2.OperationalError` if the connection is
        lost meanwhile: nobody knows then whether it was sent.
        """
        command = NotifyCommand(checked_channel(channel), checked_payload(payload), hub().event())
        check_patched()
        reader = self._reader_here()
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        try:
            reader.send(command)
            is_in_time = True
            while is_in_time and not command.is_done:
                command.event = event = hub().event()
                reader.ensure_running()
                if not command.is_done:
                    is_in_time = event.wait(deadline)
        except BaseException:
            reader.withdraw(command)
            raise
        if command.error is not None:
            raise command.error
        if not command.is_done:
            outcome = "was not sent" if reader.withdraw(command) else "may have been sent, or not"
            raise self._timeout_error(f"the notification {outcome}", reader)

    def close(self, timeout: float = 5.0) -> None:
        """Close the connection and end all subscriptions: what they have can still be taken, then they are over.

        Suspends until the reading task has ended, for at most `timeout` seconds. Harmless on a closed listener.
        """
        self._closed = True
        reader = self._reader_here()
        deadline = time.monotonic() + timeout
        ended = hub().event()
        reader.stop(ended)
        while not ended.wait(min(deadline, time.monotonic() + _SHUT_DOWN_AGAIN)):
            if time.monotonic() >= deadline:
                logger.warning("listener %r: still connecting %s s after close()", self.name, timeout)
                return
            reader.shut_down()

    @property
    def closed(self) -> bool:
        """Whether `close()` was called. Doesn't suspend."""
        return self._closed

    @property
    def connected(self) -> bool:
        """Whether there is a connection at the moment, as far as is known."""
        return self._reader.is_connected

    @property
    def backend_pid(self) -> int | None:
        """The process that serves the connection at the server; None without a connection."""
        return self._reader.backend_pid

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Without the mutex: whoever runs while this is collected may hold it. The reader sees it at its next beat.
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.is_stopping = True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.connected else "not connected"
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r} {self._shown_dsn!r} {state}>"

    def _take_credentials(self, connect_with: ConnectWith) -> None:
        """Before its first use: connect by those of somebody else, a pool."""
        self._connect_with = connect_with
        self._reader = self._new_reader()

    def _new_reader(self) -> Reader:
        return Reader(self._connect_with, self.name, self._heartbeat)

    def _reader_here(self) -> Reader:
        if self._reader.pid != os.getpid():
            self._reader = self._new_reader()
        return self._reader

    def _timeout_error(self, what: str, reader: Reader) -> WaitTimeout:
        reason = f"; last connection error: {reader.last_error}" if reader.last_error else ""
        return WaitTimeout(f"listener {self.name!r}: {what} in time{reason}")


def _checked_max_pending(max_pending: int) -> int:
    if max_pending < 1:
        raise ValueError(f"max_pending must be at least 1, not {max_pending}")
    return max_pending
