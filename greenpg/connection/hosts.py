"""Where a connection string leads: hosts, addresses, ports.

libpq looks names up with a blocking getaddrinfo, for the second and later hosts in the midst of polling. So names are
looked up here, through the hub, and given to libpq as `hostaddr`; `host` stays, for TLS and .pgpass. Trying them in
turn, `target_session_attrs` and `load_balance_hosts` are left to libpq.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

import psycopg2
from psycopg2 import extensions

from .. import libpq
from ..errors import LibpqUnavailable, is_interruption
from ..hubs import hub

#: For TCP, where the caller says nothing of it: a peer that is gone is noticed within about a minute.
#: Seconds, seconds, a count, milliseconds.
NETWORK_DEFAULTS = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


@dataclass(frozen=True)
class Host:
    """One place to connect to: elements of libpq's `host`, `hostaddr` and `port` lists."""

    name: str
    address: str
    port: str

    @property
    def is_unix(self) -> bool:
        return not self.address and (not self.name or self.name[0] in "/@")

    @property
    def needs_look_up(self) -> bool:
        return not (self.is_unix or self.address or _is_numeric(self.name))

    def __str__(self) -> str:
        if self.is_unix:
            return f'socket "{self.name or "default"}", port {self.port or "default"}'
        address = f" ({self.address})" if self.address and self.address != self.name else ""
        return f'server at "{self.name or self.address}"{address}, port {self.port or "default"}'


@dataclass(frozen=True)
class Route:
    """What a connection string says about the way to the server, everything libpq would add included."""

    dsn: str
    hosts: list[Host]
    #: Seconds for each host; None: no limit.
    timeout: float | None
    options: dict[str, str]

    def dsn_to(self, hosts: list[Host]) -> str:
        """The connection string for these hosts."""
        changes: dict[str, str] = {}
        if hosts != self.hosts or any(host.address for host in hosts):
            changes["host"] = ",".join(host.name for host in hosts)
            changes["hostaddr"] = ",".join(host.address for host in hosts)
            changes["port"] = ",".join(host.port for host in hosts)
        if any(not host.is_unix for host in hosts) and self.options.get("keepalives") != "0":
            changes |= {name: value for name, value in NETWORK_DEFAULTS.items() if name not in self.options}
        return str(extensions.make_dsn(self.dsn, **changes)) if changes else self.dsn


def find_route(dsn: str) -> Route:
    """Read a connection string as libpq would. Doesn't suspend.

    Raises OperationalError for a `connect_timeout` that is no number; complaining of the rest is left to libpq.
    """
    try:
        options = libpq.connection_options(dsn)
    except LibpqUnavailable:
        options = extensions.parse_dsn(dsn)
    names, addresses, ports = (options.get(key, "").split(",") for key in ("host", "hostaddr", "port"))
    count = max(len(names), len(addresses))
    if len(ports) == 1:
        ports *= count
    if names == [""]:
        names *= count
    if addresses == [""]:
        addresses *= count
    hosts = []
    if len(names) == len(addresses) == len(ports):
        hosts = [Host(*host) for host in zip(names, addresses, ports, strict=True)]
    return Route(dsn, hosts, _timeout(options.get("connect_timeout")), options)


def look_up(hosts: list[Host], deadline: float | None) -> tuple[list[Host], list[str]]:
    """The hosts with their addresses, all of them for each name, and what went wrong. Suspends."""
    found, failures = [], []
    for host in hosts:
        if not host.needs_look_up:
            found.append(host)
            continue
        try:
            found += [Host(host.name, address, host.port) for address in _addresses(host.name, deadline)]
        except OSError as error:
            if is_interruption(error):  # TimeoutError is an OSError
                raise
            failures.append(f'could not translate host name "{host.name}" to address: {error.strerror or error}')
    return found, failures


def _addresses(name: str, deadline: float | None) -> list[str]:
    return list(dict.fromkeys(str(info[4][0]) for info in _resolve(name, deadline)))


def _resolve(name: str, deadline: float | None) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    """Look up in a task of its own: a look-up can't be interrupted everywhere, but it can be left alone.

    And its errors, OSErrors, can't be taken for what is thrown into this task, such as a TimeoutError.
    """
    done = hub().event()
    outcome: list[object] = []

    def resolve_name() -> None:
        try:
            outcome.append(hub().resolve(name, None))
        except Exception as error:
            outcome.append(error)
        finally:
            done.set()

    hub().spawn(resolve_name)
    if not done.wait(deadline):
        raise TimeoutError("timeout expired")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def _is_numeric(name: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, name.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def _timeout(text: str | None) -> float | None:
    try:
        seconds = int(text or 0)
    except ValueError:
        # in libpq's words: it doesn't look at this option unless it waits itself
        message = f'invalid integer value "{text}" for connection option "connect_timeout"'
        raise psycopg2.OperationalError(message) from None
    return float(seconds) if seconds > 0 else None


class ConnectWatch:
    """Keeps an eye on the time while libpq connects: it goes from host to host by itself, but never gives one up."""

    def __init__(self, timeout: float | None, total_deadline: float | None) -> None:
        self._timeout = timeout
        self._total_deadline = total_deadline
        self._host_deadline: float | None = None
        #: The host that is being tried, and the one that was tried first.
        self.current: Host | None = None
        self.first: Host | None = None

    def deadline(self, pgconn: int) -> float | None:
        """Until when the host that is being tried may take."""
        try:
            current = Host(*libpq.current_host(pgconn))
        except LibpqUnavailable:
            current = Host("", "", "")
        self.first = self.first or current
        if current != self.current:
            self.current = current
            if self._timeout is not None:
                self._host_deadline = time.monotonic() + self._timeout
        deadlines = [deadline for deadline in (self._host_deadline, self._total_deadline) if deadline is not None]
        return min(deadlines, default=None)

    def timed_out(self, hosts: list[Host]) -> Host:
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


class HostTimedOut(psycopg2.OperationalError):
    """Raised in the wait callback when the host that is being tried has had its time."""


#: What each task that is connecting has to obey.
watches: dict[object, ConnectWatch] = {}
