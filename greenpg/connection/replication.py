"""Streaming replication in green mode.

psycopg2 refuses the methods that read the stream while any wait callback is set, though only one of them ever waits. So
the callback, which is one for the process, is taken away for the moment of psycopg2's check, and never across a task
switch:

- `read_message()` doesn't wait. Taking away, reading and putting back run as one C call, during which no other native
  thread runs.
- `start_replication_expert()` lets the callback be put back right after the check, by the statement that it is given:
  psycopg2 asks a `Composable` for its text. A native thread that gets its turn between two bytecodes there, and is
  itself about to wait, would find no callback; it would have to be hit within about a microsecond. Programs that use
  native threads without an event loop can rule it out by starting replication before those threads run statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from typing import Any

import psycopg2
from psycopg2 import _psycopg, extensions, sql

from .. import libpq
from ..errors import is_interruption
from ..errors.sqlstate import name_by_sqlstate
from ..hubs import hub
from ..libpq.copy_reader import CopyReader
from .bulk.pacing import SHORTEST_PAUSE
from .cursor import Cursor
from .feedback import Feedback
from .guarded_connection import GuardedConnection
from .interrupting import cut_off, end_deadline, end_deadline_after
from .server_errors import error_of, text_codec

_ReplicationCursor: Any = _psycopg.ReplicationCursor
_set_wait_callback: Any = extensions.set_wait_callback
_call = methodcaller("__call__")
_ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE

# So many messages at most without letting other tasks run.
_MESSAGES_PER_TURN = 100


def is_replication_cursor(factory: Any) -> bool:
    """Whether cursors of that class read a replication stream."""
    return isinstance(factory, type) and issubclass(factory, _ReplicationCursor)


class ReplicationCursor(_ReplicationCursor, Cursor):  # type: ignore[misc]
    """psycopg2's replication cursor, green; everything psycopg2 documents of it holds.

    `start_replication()`, `consume_stream()` and `replication_stream()` suspend the caller, `read_message()` and
    `send_feedback()` don't.
    """

    _status_interval = 10.0
    _is_consuming = False
    _was_consumed = False
    _has_unsent_feedback = False

    def start_replication_expert(self, command: Any, decode: bool = False, status_interval: float = 10) -> None:
        """Start replication with a statement of your own, as psycopg2's. Suspends until the stream has begun."""
        conn = self.connection
        gate = conn._gate
        outer_call = gate.enter("start_replication")
        try:
            self._start(command, decode, status_interval)
        finally:
            if gate.interruption is not None:
                try:
                    self._stop_quietly(gate.interruption)
                except BaseException as second:
                    gate.hold_back(second)
            gate.leave(outer_call)
        self._status_interval = float(status_interval)
        self._was_consumed = False

    def _start(self, command: Any, decode: bool, status_interval: float) -> None:
        conn = self.connection
        logical = _psycopg.REPLICATION_LOGICAL
        if conn._has_stopped_stream and conn.replication_type == logical:  # type: ignore[attr-defined]
            # PostgreSQL (to 18 at least) never resets the flags by which it ended the first stream.
            raise psycopg2.NotSupportedError(
                "the server ends a second logical stream on one connection at once: make a new connection for it"
            )
        if isinstance(command, sql.Composable):
            command = command.as_string(self)
        if isinstance(command, bytes):
            command = command.decode(text_codec(conn))
        if not isinstance(command, str):
            raise TypeError(f"argument 1 must be a string or unicode object: got {type(command).__name__} instead")
        statement = _PutsCallbackBack(command)
        try:
            statement.take_callback_away()
            _ReplicationCursor.start_replication_expert(self, statement, decode, status_interval)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error
        finally:
            statement.put_back()

    def read_message(self) -> Any:
        """The next message of the stream, or None if there is none at the moment. Doesn't suspend."""
        conn = self.connection
        gate = conn._gate
        if gate.owner is not None and gate.owner != hub().current():
            gate.make_way("read_message")
        return _without_callback(partial(_ReplicationCursor.read_message, self))

    def consume_stream(self, consume: Callable[[Any], object], keepalive_interval: float | None = None) -> None:
        """Call `consume(message)` for each message, for ever, as psycopg2's. Suspends between messages.

        Returns by an exception only: that of `consume` (`psycopg2.extras.StopReplication`), of the server, or one
        thrown into the task. The stream then still runs: close the connection, or call `stop_replication()`.
        """
        self._check_can_consume(keepalive_interval)
        self._was_consumed = self._is_consuming = True
        try:
            while True:
                interval = keepalive_interval or self._status_interval
                with Feedback(self, interval):
                    for message in self._messages(interval):
                        consume(message)
                self.read_message()  # the stream has ended: psycopg2's error
        finally:
            self._is_consuming = False

    def _check_can_consume(self, keepalive_interval: Any) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("cursor already closed")
        if self.connection.async_:
            raise psycopg2.ProgrammingError("consume_stream cannot be used in asynchronous mode")
        if keepalive_interval is not None:
            if not isinstance(keepalive_interval, int | float):
                raise psycopg2.ProgrammingError("keepalive_interval must be int or float")
            if keepalive_interval < 1.0:
                raise psycopg2.ProgrammingError("keepalive_interval must be >= 1 (sec)")
        if self._is_consuming:
            raise psycopg2.ProgrammingError("consume_stream cannot be used when already in the consume loop")
        if self._was_consumed or not self._is_streaming():
            raise psycopg2.ProgrammingError("consume_stream: not replicating, call start_replication first")

    def replication_stream(self, **options: Any) -> Iterator[Any]:
        """`for message in cur.replication_stream(slot_name=...)`: the messages, until the server ends the stream.

        The options are `start_replication()`'s; without any, replication must have been started. Suspends between
        messages. Feedback is sent every `status_interval` seconds (default 10; it should be less than half of the
        server's `wal_sender_timeout`), also while the program works on a message, as long as that lets other tasks run;
        `cur.send_feedback(flush_lsn=...)` says how far the program has come.

        When the loop is left, by `break`, an exception or a kill, the stream is stopped (within 5 s, or else the
        connection is closed), and the connection takes other statements. For another logical stream connect anew.
        """
        if options:
            self.start_replication(**options)
        elif not self._is_streaming():
            raise psycopg2.ProgrammingError("replication_stream: not replicating, give it start_replication's options")
        return self._stream()

    def _stream(self) -> Iterator[Any]:
        try:
            with Feedback(self, self._status_interval):
                yield from self._messages(self._status_interval)
        except BaseException as exception:
            self._stop_quietly(exception)
            raise
        self.stop_replication()

    def stop_replication(self) -> None:
        """Ask the server to end the stream, and wait for it; the connection takes other statements then. Suspends.

        Messages that come meanwhile are dropped; unless feedback has confirmed them, the slot sends them again. If
        there is no stream it does nothing. Raises `psycopg2.OperationalError` when the server doesn't end the stream
        within 5 s: then the connection is closed.
        """
        self._stop(end_deadline())

    def _stop(self, give_up_at: float) -> None:
        conn = self.connection
        if conn.closed or not self._is_streaming():
            return
        with conn._gate.occupied():
            try:
                self.send_last_feedback()
                _end_stream(conn, give_up_at)
                conn._note_stopped_stream()
            except BaseException:
                cut_off(conn)
                raise

    def _stop_quietly(self, exception: BaseException) -> None:
        """After an exception, which is of more interest than one of stopping."""
        try:
            self._stop(end_deadline_after(self.connection, exception))
        except psycopg2.Error as error:
            if is_interruption(error):
                raise

    def _is_streaming(self) -> bool:
        conn = self.connection
        if conn.closed or conn.get_transaction_status() != _ACTIVE:
            return False
        return libpq.copy_in_progress(conn.pgconn_ptr) == libpq.COPY_BOTH

    def _messages(self, interval: float) -> Iterator[Any]:
        """The messages, until the stream ends. Sends feedback after each `interval` seconds without any."""
        conn = self.connection
        since_wait = 0
        while True:
            message = self.read_message()
            if message is not None:
                yield message
                since_wait += 1
                if since_wait >= _MESSAGES_PER_TURN:
                    since_wait = 0
                    hub().sleep(SHORTEST_PAUSE)
                continue
            since_wait = 0
            with conn._gate.occupied():
                if not self._is_streaming():
                    _read_results(conn, end_deadline())
                    return
                self.send_last_feedback()  # now that there is nothing else to do
                until = time.monotonic() + self.seconds_to_feedback(interval)
                is_readable = conn._gate.waiter_of(conn).wait_read(until)
            if not is_readable and self.seconds_to_feedback(interval) <= 0.0:
                self.send_feedback(force=True)

    # -- feedback

    def send_feedback(
        self, write_lsn: int = 0, flush_lsn: int = 0, apply_lsn: int = 0, reply: bool = False, force: bool = False
    ) -> None:
        """Say how far the program has come, as psycopg2's: by the log's positions. Doesn't suspend.

        It is sent when the program waits for the next message, or is done with the stream, and while it works on a
        message after each `status_interval` seconds; with `reply` or `force` now.
        """
        _ReplicationCursor.send_feedback(self, write_lsn, flush_lsn, apply_lsn, reply, force)
        self._has_unsent_feedback = not (reply or force)

    def send_last_feedback(self) -> None:
        """What was given and hasn't been sent yet. Doesn't suspend."""
        if self._has_unsent_feedback and self._is_streaming():
            self.send_feedback(force=True)

    def answer(self) -> None:
        """Keep the server content while the program works on a message. Doesn't suspend."""
        gate = self.connection._gate
        if gate.owner is gate.free and self._is_streaming():
            self.send_feedback(force=True)

    def seconds_to_feedback(self, interval: float) -> float:
        """Until the server is to hear something. Doesn't suspend."""
        left = float(self.feedback_timestamp.timestamp() + interval - time.time())
        return min(max(left, 0.0), interval)


class _PutsCallbackBack(sql.Composable):
    """A statement that puts the wait callback back as soon as psycopg2 asks for its text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text
        self._callback: Any = None

    def as_string(self, context: Any) -> str:
        self.put_back()
        return self._text

    def take_callback_away(self) -> None:
        self._callback = extensions.get_wait_callback()
        if self._callback is not None:
            _set_wait_callback(None)

    def put_back(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            _set_wait_callback(callback)


def _without_callback(function: Callable[[], Any]) -> Any:
    """Call a C function that never waits, and runs no Python code, with the wait callback taken away."""
    callback = extensions.get_wait_callback()
    if callback is None:
        return function()
    steps = (partial(_set_wait_callback, None), function, partial(_set_wait_callback, callback))
    try:
        # All of it in C: the interpreter switches threads between bytecodes only.
        return list(map(_call, steps))[1]
    except BaseException:
        _set_wait_callback(callback)
        raise


def _end_stream(conn: GuardedConnection, deadline: float) -> None:
    pgconn = conn.pgconn_ptr
    waiter = conn._gate.waiter_of(conn)
    if libpq.function("PQputCopyEnd")(pgconn, None) != 1:
        raise psycopg2.OperationalError("the connection was lost")
    while libpq.function("PQflush")(pgconn) == 1:
        if not waiter.wait_write(deadline):
            raise psycopg2.OperationalError("the server doesn't take the end of the stream")
    reader = CopyReader(pgconn)
    state = libpq.MORE
    while state != libpq.END:
        _, state = reader.read_block()
        if state == libpq.LOST:
            conn.poll()  # raises psycopg2's error
            raise psycopg2.OperationalError("the connection was lost")
        if state == libpq.WAIT:
            if not waiter.wait_read(deadline):
                raise psycopg2.OperationalError("the server has not ended the stream in time")
        elif time.monotonic() >= deadline:
            raise psycopg2.OperationalError("the server has not ended the stream in time")
    _read_results(conn, deadline)


def _read_results(conn: GuardedConnection, deadline: float) -> None:
    """What the server says when the stream has ended."""
    if conn.closed:
        return
    pgconn = conn.pgconn_ptr
    while True:
        while libpq.function("PQisBusy")(pgconn):
            if not conn._gate.waiter_of(conn).wait_read(deadline):
                raise psycopg2.OperationalError("the server has not ended the stream in time")
            if not libpq.function("PQconsumeInput")(pgconn):
                conn.poll()  # raises psycopg2's error
        result = libpq.next_result(pgconn)
        if result is None:
            return
        if result.status == libpq.FATAL_ERROR:
            raise error_of(result, conn)
