"""`client_connection_check_interval`: the server notices that its client is gone, and ends the statement.

Asked for in the startup packet, which costs no round trip. A server before PostgreSQL 14 refuses the connection then,
and so does many a pooler: it is made once more without, and not asked again of that server.
"""

from __future__ import annotations

import re

from .route import Route

#: For the server: how often it looks whether the client is still there, while a statement runs.
SETTING, INTERVAL = "client_connection_check_interval", "3s"

#: How servers and poolers say that they don't take it.
_REFUSAL = re.compile(
    rf"{SETTING}|startup parameter|unrecognized configuration parameter|command-line option|unsupported.*option",
    re.IGNORECASE,
)

#: Servers that are known not to take it, and those that are known to.
_refusing: set[object] = set()
_taking: set[object] = set()


def options_with_check(route: Route, *, only_if_known: bool = False) -> str | None:
    """libpq's `options` with the setting added. None: they say something of it already, or the server refuses it, or
    (`only_if_known`) may do so."""
    options = route.options.get("options", "")
    server = _server_of(route)
    if SETTING in options or server in _refusing or (only_if_known and server not in _taking):
        return None
    return f"{options} -c {SETTING}={INTERVAL}".strip()


def note_taken(route: Route) -> None:
    """The server takes it."""
    _taking.add(_server_of(route))


def is_refusal(route: Route, message: str) -> bool:
    """Whether the message says that the server doesn't take it, which is noted then."""
    if not _REFUSAL.search(message):
        return False
    _refusing.add(_server_of(route))
    return True


def _server_of(route: Route) -> object:
    return tuple((host.name, host.address, host.port) for host in route.hosts), route.options.get("dbname")
