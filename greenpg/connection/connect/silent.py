"""Hosts that said nothing the last time: they are tried last for a while, and don't get all of the time.

So a primary whose host is gone, the first in the connection string, costs its seconds once, and not each connection.
"""

from __future__ import annotations

import time

from .route import Host

#: Seconds for which it's remembered, and that such a host gets where nobody has set a `connect_timeout`.
_REMEMBERED, SHORT_TIMEOUT = 30.0, 1.0

_silent_until: dict[tuple[str, str], float] = {}
#: Those that may be only far away.
_suspects: set[tuple[str, str]] = set()
#: Since when somebody waits for them.
_waited_for: dict[tuple[str, str], float] = {}


def note_silent(host: Host) -> None:
    """It has had its time. Not counted anew for one that had little: after a while it gets all of it again."""
    if not is_silent(host):
        _suspects.discard(_key(host))
        _silent_until[_key(host)] = time.monotonic() + _REMEMBERED


def suspect(host: Host) -> None:
    """It doesn't answer as fast as most do: as if silent, for as long as it takes to make sure."""
    if not is_silent(host):
        _suspects.add(_key(host))
        _silent_until[_key(host)] = time.monotonic() + SHORT_TIMEOUT


def note_answer(host: Host | None) -> None:
    """A connection to it was made."""
    if host is not None and _silent_until:
        _silent_until.pop(_key(host), None)


def is_silent(host: Host) -> bool:
    """Whether it said nothing a short while ago."""
    return bool(_silent_until) and _silent_until.get(_key(host), 0.0) > time.monotonic()


def is_suspect(host: Host) -> bool:
    """Whether it is only suspected of that."""
    return is_silent(host) and _key(host) in _suspects


def silent_last(hosts: list[Host]) -> list[Host]:
    """The hosts in their order, but those last."""
    return sorted(hosts, key=is_silent) if _silent_until else hosts


def may_wait_for(host: Host) -> bool:
    """Whether the caller may wait for such a host, until `has_waited_for()`: one at a time, lest nobody ask the others,
    of which one may become the primary."""
    now = time.monotonic()
    if now - _waited_for.get(_key(host), -_REMEMBERED) < 2 * SHORT_TIMEOUT:  # longer: in a parent of this process
        return False
    _waited_for[_key(host)] = now
    return True


def has_waited_for(host: Host) -> None:
    """Another one may."""
    _waited_for.pop(_key(host), None)


def _key(host: Host) -> tuple[str, str]:
    return host.address or host.name, host.port
