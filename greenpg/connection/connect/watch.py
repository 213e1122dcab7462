"""The clock on libpq's loop over the hosts."""

from __future__ import annotations

import re
import time

import psycopg2

from ... import libpq
from ...errors import LibpqUnavailable
from .route import Host
from .silent import SHORT_TIMEOUT, is_silent, is_suspect

#: While connecting there is no result that would tell the SQLSTATE; verbose messages contain it.
_DEFAULT_VERBOSITY, _VERBOSE = 1, 2


class ConnectWatch:
    """Keeps an eye on the time while libpq connects: it goes from host to host by itself, but never gives one up."""

    def __init__(self, timeout: float | None, total_deadline: float | None, spares_silent: bool = False) -> None:
        self._timeout = timeout
        #: Hosts that said nothing the last time get less.
        self._spares_silent = spares_silent
        self._total_deadline = total_deadline
        self._host_deadline: float | None = None
        #: The host that is being tried, and the one that was tried first.
        self.current: Host | None = None
        #: The current one has little time, without having had all of it before.
        self.is_suspect = False
        self.first: Host | None = None
        self._tells_sqlstates = False

    def deadline(self, pgconn: int | None) -> float | None:
        """Until when the host that is being tried may take."""
        try:
            if not self._tells_sqlstates:
                libpq.function("PQsetErrorVerbosity")(pgconn, _VERBOSE)
                self._tells_sqlstates = True
            current = Host(*libpq.current_host(pgconn))
        except LibpqUnavailable:
            current = Host("", "", "")
        self.first = self.first or current
        if current != self.current:
            self.current = current
            if self._timeout is not None:
                is_short = self._spares_silent and is_silent(current)
                self.is_suspect = is_short and is_suspect(current)
                self._host_deadline = time.monotonic() + (SHORT_TIMEOUT if is_short else self._timeout)
        deadlines = [deadline for deadline in (self._host_deadline, self._total_deadline) if deadline is not None]
        return min(deadlines, default=None)

    def connected(self, pgconn: int | None) -> None:
        """libpq has come to its end."""
        if self._tells_sqlstates:
            libpq.function("PQsetErrorVerbosity")(pgconn, _DEFAULT_VERBOSITY)

    def current_of(self, hosts: list[Host]) -> Host:
        """Which of the hosts it is that is being tried."""
        for host in hosts:
            address = host.address or (host.name if not host.is_unix else "")
            if self.current == Host(host.name, address, host.port):
                return host
        return hosts[0]

    def complete(self, message: str) -> str:
        """libpq's message, with the beginning that gets lost when psycopg2 makes the new connection non-blocking."""
        if self.first is None or not self.first.address or message.startswith(("connection to ", "could not ")):
            return message
        return f"connection to {self.first} failed: {message}"


#: What a verbose message has in front of its text, and in a line at its end.
_SQLSTATE = re.compile(r"(?<=:  )([0-9A-Z]{5}): ")
_LOCATION = re.compile(r"\n[^\n:]+:  (?:\w+, )?[\w./-]+:\d+(?=\n|$)")


def without_sqlstate(message: str) -> tuple[str, str | None]:
    """libpq's usual message, made of the verbose one, and the last SQLSTATE in it."""
    found = _SQLSTATE.findall(message)
    if not found:
        return message, None
    return _LOCATION.sub("", _SQLSTATE.sub("", message)), found[-1]


class HostTimedOut(psycopg2.OperationalError):
    """Raised in the wait callback when the host that is being tried has had its time."""


#: What each task that is connecting has to obey: the wait callback is given nothing but the connection.
_watches: dict[object, ConnectWatch] = {}


def watch_of(task: object) -> ConnectWatch | None:
    """What the task has to obey; None if it isn't connecting."""
    return _watches.get(task)


class watching:
    """`with watching(task, watch):` the task has to obey the watch in the block. What it had to obey before (a
    connection factory may connect) it has to obey again afterwards."""

    def __init__(self, task: object, watch: ConnectWatch) -> None:
        self._task = task
        self._watch = watch

    def __enter__(self) -> None:
        self._outer = _watches.get(self._task)
        _watches[self._task] = self._watch

    def __exit__(self, *exc_info: object) -> None:
        if self._outer is None:
            _watches.pop(self._task, None)  # by the wrong hub, tasks of one native thread are the same
        else:
            _watches[self._task] = self._outer
