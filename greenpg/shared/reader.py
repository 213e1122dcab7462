"""The reader: the task that owns a Listener's connection.

The connection is an asynchronous one of psycopg2's: a command is sent without waiting (by whatever task wants it, under
the mutex), and its answer wakes the reader, which waits for the socket anyway. So nothing else is needed to wake it,
on any hub, and nobody waits for the server while holding the mutex.

The reader holds no reference to the Listener, whose end is the reader's end.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..connection.cancel import shut_down
from ..connection.connect.connecting import connect_asynchronous
from ..connection.connection import Connection
from ..connection.cursor import Cursor
from ..errors import ListenerClosed, is_interruption
from ..hubs import Event, FdWaiter, hub
from .channels import Channels
from .commands import Heartbeat, ListenCommand, NotifyCommand
from .mailbox import Mailbox

logger = logging.getLogger("greenpg.listener")

#: Seconds that the server may take to answer a command; it is looked at when the heart beats.
ANSWER_TIMEOUT = 10.0

#: Seconds between attempts to connect: the first one, the longest one, and the longest one while somebody waits.
_FIRST_DELAY, _LONGEST_DELAY, _LONGEST_DELAY_WITH_SUBSCRIBERS = 0.1, 10.0, 0.25

_OK, _READ, _WRITE = extensions.POLL_OK, extensions.POLL_READ, extensions.POLL_WRITE

#: Calls the function with the connection string; again with another one if the login was refused, and that helps.
ConnectWith = Callable[[Callable[[str], Any]], Any]


class Reader:
    """The state that the reader and the subscribers share. Methods marked [mutex] are called with the mutex held."""

    def __init__(self, connect_with: ConnectWith, name: str, heartbeat: float) -> None:
        self._connect_with = connect_with
        self.name = name
        self._heartbeat = heartbeat
        self.mutex = hub().mutex()
        self.channels = Channels()
        self.pid = os.getpid()
        self.is_stopping = False
        #: The text of the last failure, None while connected.
        self.last_error: str | None = None
        self._is_running = False
        #: To be waited for, and shut down, by whoever holds the mutex; connecting or connected.
        self._conn: Connection | None = None
        #: psycopg2 holds the cursor of an asynchronous query by a weak reference only.
        self._cursor: Cursor | None = None
        self._is_connected = False
        self._in_flight: ListenCommand | NotifyCommand | Heartbeat | None = None
        self._sent_at = 0.0
        self._notify_commands: deque[NotifyCommand] = deque()
        self._rest: Event | None = None
        self._on_end: list[Event] = []

    # -- for the other tasks; none of it suspends

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def backend_pid(self) -> int | None:
        with self.mutex:
            return self._conn.info.backend_pid if self._conn is not None and self._is_connected else None

    def add(self, mailbox: Mailbox) -> None:
        with self.mutex:
            self._check_open()
            self.channels.add(mailbox)
            self._send_next()
            self._hurry()

    def remove(self, mailbox: Mailbox) -> None:
        mailbox.close()
        with self.mutex:
            self.channels.remove(mailbox)
            self._send_next()

    def send(self, command: NotifyCommand) -> None:
        with self.mutex:
            self._check_open()
            self._notify_commands.append(command)
            self._send_next()
            self._hurry()

    def withdraw(self, command: NotifyCommand) -> bool:
        """Its sender doesn't wait any more. False: it has been sent already."""
        with self.mutex:
            if command not in self._notify_commands:
                return False
            self._notify_commands.remove(command)
            return True

    def ensure_running(self) -> None:
        """Start the reader if it doesn't run: it hasn't been needed yet, or somebody has killed it."""
        if os.getpid() != self.pid:
            raise ListenerClosed(f"the subscription to the listener {self.name!r} belongs to the parent process")
        if self._is_running:
            return
        with self.mutex:
            if self._is_running or self.is_stopping:
                return
            self._is_running = True
        try:
            hub().spawn(_run, self)
        except BaseException:
            with self.mutex:
                self._is_running = False
            raise

    def stop(self, ended: Event) -> None:
        """Let the reader end, and set `ended` when it has. Everybody who waits is sent away."""
        with self.mutex:
            self.is_stopping = True
            mailboxes = self.channels.mailboxes()
            if self._is_running:
                self._on_end.append(ended)
            else:
                ended.set()
            if self._rest is not None:
                self._rest.set()
            commands = self._take_commands()
        self.shut_down()
        for mailbox in mailboxes:
            self.remove(mailbox)
        for command in commands:
            command.finish(ListenerClosed(f"the listener {self.name!r} was closed"))

    def shut_down(self) -> None:
        """Cut the connection, which wakes the reader. Again if need be: libpq may be going from host to host."""
        with self.mutex:
            if self._conn is not None:
                shut_down(self._conn)

    def _check_open(self) -> None:
        if self.is_stopping:
            raise ListenerClosed(f"the listener {self.name!r} is closed")

    def _hurry(self) -> None:
        """[mutex] Somebody waits: don't rest."""
        if self._rest is not None:
            self._rest.set()

    def _take_commands(self) -> list[NotifyCommand]:
        """[mutex] The notifications that are not confirmed."""
        commands = list(self._notify_commands)
        self._notify_commands.clear()
        if isinstance(self._in_flight, NotifyCommand):
            commands.append(self._in_flight)
        self._in_flight = None
        return commands

    # -- sending, by any task

    def _send_next(self) -> None:
        """[mutex] Send the next command, if there is one and the connection is free. Doesn't suspend."""
        if not self._is_connected or self._in_flight is not None or os.getpid() != self.pid:
            return
        command: ListenCommand | NotifyCommand | None = self.channels.next_command()
        if command is None and self._notify_commands:
            command = self._notify_commands.popleft()
        if command is not None:
            self._send(command)

    def _send(self, command: ListenCommand | NotifyCommand | Heartbeat) -> None:
        """[mutex] There is a connection."""
        assert self._conn is not None and self._cursor is not None
        self._in_flight = command
        self._sent_at = time.monotonic()
        try:
            command.execute(self._cursor)
        except UnicodeEncodeError as error:  # nothing has been sent
            self._finish(error)
            self._send_next()
        except psycopg2.Error:
            shut_down(self._conn)  # wakes the reader, which finds out what is the matter

    # -- receiving, by the reader

    def _receive(self) -> int:
        """Take in what has come, and send what is to be sent next. Returns what to wait for. Doesn't suspend."""
        with self.mutex:
            conn = self._conn
            assert conn is not None
            try:
                state: int = conn.poll()
            except psycopg2.Error as error:
                if conn.closed or self._in_flight is None:
                    raise
                self._finish(error)
            else:
                if state == _OK and self._in_flight is not None:
                    self._finish(None)
                elif state == _WRITE:
                    return state
            if conn.notifies:
                notifications, conn.notifies = conn.notifies, []
                self.channels.dispatch(notifications)
            self._beat()
            self._send_next()
            return _READ

    def _finish(self, error: Exception | None) -> None:
        """[mutex] The command in flight has been answered."""
        command, self._in_flight = self._in_flight, None
        if isinstance(command, NotifyCommand):
            command.finish(error)
        elif isinstance(command, ListenCommand):
            if error is None:
                self.channels.done(command)
            elif not self.channels.refused(command, error):
                raise error  # to the reader: another connection may do better
        elif error is not None:
            raise error

    def _beat(self) -> None:
        """[mutex] Notice a server that doesn't answer."""
        silent_for = time.monotonic() - self._sent_at
        if self._in_flight is not None:
            if silent_for >= ANSWER_TIMEOUT:
                raise psycopg2.OperationalError(f"the server has not answered for {silent_for:.0f} s")
        elif silent_for >= self._heartbeat:
            self.channels.sweep()
            self._send(Heartbeat())

    def _next_look(self) -> float:
        """[mutex not needed] Until when the reader may sleep."""
        return time.monotonic() + (self._heartbeat if self._in_flight is None else min(self._heartbeat, ANSWER_TIMEOUT))

    def _connect(self) -> Connection:
        """Suspends."""

        def begun(conn: Connection | None) -> None:
            with self.mutex:
                self._conn = conn
            if conn is not None and self.is_stopping:
                raise ListenerClosed(f"the listener {self.name!r} is closed")

        conn: Connection = self._connect_with(lambda dsn: connect_asynchronous(dsn, begun))
        with self.mutex:
            conn.notifies = []
            self._cursor = conn.cursor()
            self._is_connected = True
            self.last_error = None
            self._sent_at = time.monotonic()
            self._send_next()
        return conn

    def _serve(self, conn: Connection) -> None:
        """Until the connection is lost, which raises, or the listener is closed. Suspends."""
        waiter: FdWaiter = hub().fd_waiter(conn.fileno())
        try:
            while not self.is_stopping:
                if os.getpid() != self.pid:
                    return
                wait = waiter.wait_write if self._receive() == _WRITE else waiter.wait_read
                wait(self._next_look())
        finally:
            waiter.close()

    def _disconnect(self) -> None:
        """Doesn't suspend."""
        with self.mutex:
            conn, self._conn, self._cursor = self._conn, None, None
            self._is_connected = False
            self.channels.start_over()
            in_flight, self._in_flight = self._in_flight, None
        if conn is not None and os.getpid() == self.pid:
            conn.close()
        if isinstance(in_flight, NotifyCommand):
            in_flight.finish(
                psycopg2.OperationalError("the connection was lost: the notification may have been sent, or not")
            )

    def _rest_after(self, failures: int) -> None:
        """Suspend before the next attempt to connect; jittered, lest all clients of a server come back at once."""
        started = time.monotonic()
        delay = min(_FIRST_DELAY * 2.0 ** min(failures - 1, 10), _LONGEST_DELAY) * random.uniform(0.5, 1.0)
        hub().sleep(min(delay, _LONGEST_DELAY_WITH_SUBSCRIBERS))
        event = hub().event()
        with self.mutex:
            if self.is_stopping or self.channels.someone_waits or self._notify_commands:
                return
            self._rest = event
        try:
            event.wait(started + delay)
        finally:
            with self.mutex:
                self._rest = None


def _run(reader: Reader) -> None:
    """The reader's task."""
    failures = 0
    try:
        while not reader.is_stopping and os.getpid() == reader.pid:
            started = time.monotonic()
            try:
                reader._serve(reader._connect())
            except Exception as error:
                if is_interruption(error):
                    raise  # the task is killed
                if reader.is_stopping:
                    break
                # A server that accepts connections only to end them at once is as good as none.
                failures = failures + 1 if time.monotonic() - started < _LONGEST_DELAY else 1
                reader.last_error = f"{type(error).__name__}: {str(error).strip()}"
                logger.warning("listener %r: %s", reader.name, reader.last_error)
            finally:
                reader._disconnect()
            if failures and not reader.is_stopping:
                reader._rest_after(failures)
    finally:
        _end(reader)


def _end(reader: Reader) -> None:
    """The reader ends: the listener is closed, or somebody has killed its task. Doesn't suspend."""
    with reader.mutex:
        reader._is_running = False
        ended, reader._on_end = reader._on_end, []
        mailboxes = reader.channels.mailboxes()
        events = [command.event for command in reader._notify_commands]
    for event in ended:
        event.set()
    # Whoever waits has to see to it that there is a reader again.
    for mailbox in mailboxes:
        mailbox.wake()
    for event in events:
        event.set()
