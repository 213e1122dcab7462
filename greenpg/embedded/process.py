"""Our end of the supervisor, the process that owns a server.

Works the same in a program that is monkey-patched and in one that isn't, from any thread: the supervisor is
started with the real `posix_spawn`, its pipes are raw files, and a wait is a row of short `time.sleep`s, which
let the other tasks run once gevent or eventlet have patched `time`. (gevent can start and watch processes from its
main thread only.)
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import posix  # os's own functions, out of the reach of monkey-patching
import signal
import sys
import time
from typing import Any

from .errors import EmbeddedServerError

# `supervisor` is imported as a package of its own: importing greenpg would import the hubs.
_PROGRAM = "import sys; sys.path[:0] = sys.argv[1:2]; from supervisor.main import main; main(int(sys.argv[2]))"
_SHORTEST_SLEEP, _LONGEST_SLEEP = 0.0005, 0.01
_CLOSE_TIMEOUT = 60.0


class SupervisorProcess:
    """A running supervisor; ends when it is closed, and also when this process ends in whatever way."""

    def __init__(self) -> None:
        if not sys.executable:
            raise EmbeddedServerError("sys.executable is not set: no Python to run the server's supervisor with")
        self.owner_pid = os.getpid()
        self._is_over = False
        self._number = 0
        self._received = b""
        with contextlib.ExitStack() as theirs:
            requests, request_end = _pipe()
            theirs.callback(os.close, requests)
            self._requests = io.FileIO(request_end, "w")
            reply_end, replies = _pipe()
            theirs.callback(os.close, replies)
            self._replies = io.FileIO(reply_end, "r")
            os.set_blocking(reply_end, False)
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM, os.path.dirname(__file__), str(self.owner_pid)]
            try:
                self.pid = posix.posix_spawn(
                    sys.executable,
                    command,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, requests, 0),
                        (os.POSIX_SPAWN_DUP2, replies, 1),
                        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGCHLD],
                )
            except BaseException:
                self.close_files()
                raise

    def request(self, name: str, **arguments: object) -> dict[str, Any]:
        """Send a request and wait for the reply. Raises EmbeddedServerError if that says no."""
        self._number += 1
        self._send({"number": self._number, "request": name, "arguments": arguments})
        reply = self._next_reply()
        while reply["number"] != self._number:  # to a request whose sender was interrupted
            reply = self._next_reply()
        if "error" in reply:
            raise EmbeddedServerError(reply["error"], reply["log"])
        result: dict[str, Any] = reply["result"]
        return result

    def close(self) -> None:
        """Have the server ended and the temporary files deleted, and wait for that."""
        with contextlib.suppress(EmbeddedServerError, ValueError):
            self._send({"number": 0, "request": "quit"})
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        sleep = _SHORTEST_SLEEP
        while not self._reap():
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"the supervisor (pid {self.pid}) has not ended within {_CLOSE_TIMEOUT:g} s")
            sleep = _pause(sleep)
        self.close_files()

    def close_files(self) -> None:
        """Close our ends of the pipes: all that there is to do in a child that this process has forked."""
        self._requests.close()
        self._replies.close()

    def _send(self, message: dict[str, object]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[self._requests.write(data) or 0 :]
        except BrokenPipeError:
            raise self._gone() from None

    def _next_reply(self) -> dict[str, Any]:
        sleep = _SHORTEST_SLEEP
        while b"\n" not in self._received:
            data = self._replies.read(65536)
            if data:
                self._received += data
            elif data == b"":
                raise self._gone()
            else:
                sleep = _pause(sleep)
        line, _, self._received = self._received.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _gone(self) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"the server's supervisor (pid {self.pid}, run by {sys.executable}) has ended; close() cleans up after it"
        )

    def _reap(self) -> bool:
        """Whether the supervisor has ended. Somebody else may have reaped it: gevent's loop, gunicorn."""
        if not self._is_over:
            try:
                self._is_over = posix.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:
                self._is_over = True
        return self._is_over


def _pause(seconds: float) -> float:
    time.sleep(seconds)
    return min(seconds * 2, _LONGEST_SLEEP)


def _pipe() -> tuple[int, int]:
    """A pipe with descriptors above 2, so that they can be put onto 0 and 1 even if those are closed here."""
    ends = os.pipe()
    if min(ends) > 2:
        return ends
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
