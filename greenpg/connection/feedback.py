"""Feedback on a replication stream while nobody reads it, because the program works on a message.

A server that hears nothing for `wal_sender_timeout` ends the stream, and a slot sends again whatever no feedback has
confirmed. So while the stream is read, a task of greenpg's answers for the reader whenever he is away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import psycopg2

from ..hubs import Event, hub


class Stream(Protocol):
    """What is asked of the cursor. None of it suspends."""

    def seconds_to_feedback(self, interval: float) -> float: ...

    def answer(self) -> None:
        """Send feedback, unless the reader is there to do it."""

    def send_last_feedback(self) -> None:
        """Send what the program has given and the server hasn't got."""


class Feedback:
    """`with Feedback(stream, interval):` the stream is answered for while its reader is away."""

    def __init__(self, stream: Stream, interval: float) -> None:
        self._stream = stream
        self._interval = interval
        self._over: Event | None = None
        self._is_over = False
        self._forget: Callable[[], object] | None = None

    def __enter__(self) -> Feedback:
        # A reader that ends without leaving (its exception keeps the generator alive) isn't answered for any more.
        self._forget = hub().on_end(hub().current(), self._end)
        hub().spawn(self._run)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._forget is not None:
            self._forget()
        self._end()

    def _end(self) -> None:
        """Doesn't suspend."""
        if self._is_over:
            return
        self._is_over = True
        if self._over is not None:
            self._over.set()
        try:
            self._stream.send_last_feedback()
        except psycopg2.Error:  # the reader will find out what is the matter
            pass

    def _run(self) -> None:
        over = self._over = hub().event()
        while not self._is_over:
            if over.wait(hub().now() + self._stream.seconds_to_feedback(self._interval)) or self._is_over:
                return
            try:
                self._stream.answer()
            except psycopg2.Error:
                return
            if self._stream.seconds_to_feedback(self._interval) <= 0.0:  # the reader is there, and will
                over.wait(hub().now() + self._interval / 4)
