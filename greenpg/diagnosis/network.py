"""The way to the server: names, and what a listener on the network would get."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg2 import extensions

from .. import hubs
from ..connection.connect.route import Host, Route, find_route
from .findings import ADVICE, ERROR, WARNING, Finding

_SLOW_LOOK_UP = 1.0
_UNPROTECTED = ("disable", "allow", "prefer")
_REQUIRE_AUTH_SINCE = 160000


@dataclass
class Way:
    """Where a connection string leads."""

    route: Route
    #: Whether any of its hosts is another machine, or may be.
    is_network: bool = False
    unknown: list[str] = field(default_factory=list)

    @property
    def leads_nowhere(self) -> bool:
        return bool(self.route.hosts) and len(self.unknown) == len(self.route.hosts)


def check_names(dsn: str, facts: dict[str, Any], found: list[Finding]) -> Way:
    """Look up the hosts. Suspends. What is wrong is added to `found`."""
    way = Way(find_route(dsn))
    hub = hubs.hub()
    look_up = hub.natives().resolve
    for host in way.route.hosts:
        if host.is_unix:
            continue
        addresses = [host.address or host.name]
        if host.needs_look_up:
            started = time.monotonic()
            try:
                addresses = [str(info[4][0]) for info in hub.run_in_thread(look_up, host.name, None)]
            except OSError as error:
                way.unknown.append(host.name)
                found.append(_not_found(host, error))
            seconds = time.monotonic() - started
            facts.setdefault("look_up_ms", {})[host.name] = round(seconds * 1000, 1)
            if seconds > _SLOW_LOOK_UP:
                found.append(
                    Finding(
                        "slow_look_up",
                        WARNING,
                        f"looking up {host.name!r} took {seconds:.1f} s",
                        "Each new connection waits as long before it even begins.",
                        "Look at /etc/resolv.conf: a name server that doesn't answer is asked first; or name the "
                        "server's address as hostaddr.",
                    )
                )
        way.is_network = way.is_network or not all(map(_is_loopback, addresses))
    return way


def _not_found(host: Host, error: OSError) -> Finding:
    return Finding(
        "name_not_found",
        ERROR,
        f"the host name {host.name!r} can't be looked up: {error.strerror or error}",
        "Nothing can connect.",
        "Correct the name, or the name servers in /etc/resolv.conf; in a container, look whether it is in the same "
        "network.",
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def check_secrecy(way: Way) -> Iterator[Finding]:
    """Whether the password and the data are safe on the way. Doesn't suspend."""
    options = way.route.options
    mode = options.get("sslmode", "prefer")
    if not way.is_network:
        return
    if mode in _UNPROTECTED:
        with_password = " with a password" if options.get("password") else ""
        yield Finding(
            "sslmode",
            ERROR if with_password else WARNING,
            f"sslmode={mode}{with_password}, over the network",
            "Whoever can answer in the server's place, or on the way, gets the password or the data without TLS: with "
            "prefer, TLS is used only if the other side likes it.",
            "sslmode=verify-full with sslrootcert=system, or the file of your own CA.",
        )
    has_password = options.get("password") and mode != "verify-full"
    if has_password and not options.get("require_auth") and extensions.libpq_version() >= _REQUIRE_AUTH_SINCE:
        yield Finding(
            "require_auth",
            ADVICE,
            f"with sslmode={mode} the server isn't known by name, and it may ask for the password in any way",
            "A false server may ask for the password itself, and libpq tells it.",
            "require_auth=scram-sha-256 in the connection string.",
        )
