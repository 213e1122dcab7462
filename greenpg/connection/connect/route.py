"""Where a connection string leads: hosts, addresses, ports.

Trying the hosts in turn, `target_session_attrs` and `load_balance_hosts` are left to libpq.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import psycopg2
from psycopg2 import extensions

from ... import libpq
from ...errors import LibpqUnavailable
from .dsn import UNCLEAR, leads_somewhere

#: For TCP, where the caller says nothing of it: a peer that is gone is noticed within about a minute.
#: Seconds, seconds, a count, milliseconds.
NETWORK_DEFAULTS = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


#: The same where there are several hosts, one of which may take over: about ten seconds.
SEVERAL_HOSTS_DEFAULTS = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
#: Seconds that each of several hosts has if there is no `connect_timeout`.
SEVERAL_HOSTS_TIMEOUT = 3.0


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
    #: Nobody has asked for that timeout.
    is_default_timeout: bool = False

    def dsn_to(self, hosts: list[Host], options: str | None = None) -> str:
        """The connection string for these hosts; with other `options` for the server, unless None."""
        changes: dict[str, str] = {} if options is None else {"options": options}
        if hosts != self.hosts or any(host.address for host in hosts):
            changes["host"] = ",".join(host.name for host in hosts)
            changes["hostaddr"] = ",".join(host.address for host in hosts)
            changes["port"] = ",".join(host.port for host in hosts)
        if any(not host.is_unix for host in hosts) and self.options.get("keepalives") != "0":
            defaults = SEVERAL_HOSTS_DEFAULTS if len(self.hosts) > 1 else NETWORK_DEFAULTS
            changes |= {name: value for name, value in defaults.items() if name not in self.options}
        return str(extensions.make_dsn(self.dsn, **changes)) if changes else self.dsn


def find_route(dsn: str) -> Route:
    """Read a connection string as libpq would. Doesn't suspend.

    Raises OperationalError for a `connect_timeout` that is no number, and for a host or port that can't be one (the
    text shows nothing of it, since it may be a part of the password); complaining of the rest is left to libpq.
    """
    try:
        options = libpq.connection_options(dsn)
    except LibpqUnavailable:
        options = extensions.parse_dsn(dsn)
    if not leads_somewhere(options):
        raise psycopg2.OperationalError(UNCLEAR)
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
    if len(hosts) > 1 and options.get("connect_timeout") is None:
        return Route(dsn, hosts, SEVERAL_HOSTS_TIMEOUT, options, is_default_timeout=True)
    return Route(dsn, hosts, _timeout(options.get("connect_timeout")), options)


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
