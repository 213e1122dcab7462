"""The process that this one works for: its requests, and whether anybody still waits for an answer.

One JSON request a line on stdin, one JSON reply a line on stdout. A request that comes in while another is at
work supersedes it: its sender has given up waiting. The parent's pid is watched, and not only the pipe, because
children that the parent has forked hold the pipe open as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

POLL_INTERVAL = 0.005


class Refusal(Exception):
    """A request that can't be fulfilled: the message for the user, and the lines of the log about it."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Interrupted(Exception):
    """Nobody waits any longer for the request at work."""


class Parent:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._received = b""

    def is_gone(self) -> bool:
        return os.getppid() != self._pid

    def requests(self, reap: Callable[[], object]) -> Iterator[dict[str, Any]]:
        """The requests until the parent quits or is gone. `reap` is called whenever a child may have ended."""
        child_ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        watched, interval = [0, child_ended], 0.2
        with contextlib.suppress(AttributeError, OSError):  # Linux 5.3
            watched, interval = [*watched, os.pidfd_open(self._pid)], 60.0
        while not self.is_gone():
            reap()
            line, separator, rest = self._received.partition(b"\n")
            if separator:
                self._received = rest
                request: dict[str, Any] = json.loads(line)
                if request["request"] == "quit":
                    return
                yield request
                continue
            ready = select.select(watched, [], [], interval)[0]
            if child_ended in ready:
                os.read(child_ended, 4096)
            if 0 in ready:
                received = os.read(0, 65536)
                if not received:
                    return
                self._received += received

    def reply(self, number: int, **content: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps({"number": number, **content}).encode() + b"\n")

    def wait_for(self, is_done: Callable[[], bool], timeout: float | None) -> bool:
        """Wait at most `timeout` seconds (None: for ever); False if it is not done then. Raises Interrupted."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_done():
            if self.is_gone() or b"\n" in self._received or select.select([0], [], [], 0)[0]:
                raise Interrupted
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL)
        return True
