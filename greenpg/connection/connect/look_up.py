"""Looks host names up.

libpq does it with a blocking getaddrinfo, for the second and later hosts in the midst of polling. So it is given the
addresses as `hostaddr`; `host` stays, for TLS and .pgpass.

A look-up can't be interrupted, but it can be left alone. So each runs in a native thread of its own, where an abandoned
one takes nothing from anybody: gevent's and eventlet's pools of threads are soon full of names that hang.
"""

from __future__ import annotations

import os

from ...hubs import Event, hub
from .route import Host, Route

#: Seconds after which who looks a name up doesn't join a look-up of it that is under way, and how many there may be.
_JOINED_FOR, _PER_NAME = 1.0, 4
#: Seconds that a name has if there is no `connect_timeout`, but there are other hosts.
_DEFAULT_SHARE = 5.0
#: Seconds that the other names have to become known once one of them is.
_GRACE = 0.1
#: These make libpq choose among the hosts: it is given all of them at once.
_CHOOSING = {"target_session_attrs": "prefer-standby", "load_balance_hosts": "random"}


class _LookUp:
    """One name's, under way or over."""

    def __init__(self, name: str) -> None:
        self.started = hub().now()
        self.addresses: list[str] = []
        self.error: Exception | None = None
        self.is_over = False
        self.name = name
        self._waiting: list[Event] = []
        self._natives = hub().natives()

    def start(self) -> None:
        try:
            self._natives.spawn(self._run)
        except BaseException as error:
            self._end(error if isinstance(error, Exception) else RuntimeError("interrupted"))
            raise

    def _run(self) -> None:
        try:
            found = self._natives.resolve(self.name, None)
            self.addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        except Exception as error:  # as OSError, and UnicodeError for names that can't be any
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        self.error, self.is_over = error, True
        _forget(self)
        while self._waiting:
            self._waiting.pop().set()

    def tell(self, event: Event) -> None:
        """Set the event when it is over."""
        self._waiting.append(event)
        if self.is_over:
            event.set()


_under_way: dict[str, list[_LookUp]] = {}
_mutex = hub().mutex()


def _begin_anew() -> None:
    """In a forked child, which has none of the parent's threads."""
    global _mutex
    _mutex = hub().mutex()
    _under_way.clear()


os.register_at_fork(after_in_child=_begin_anew)


def _look_up(name: str) -> _LookUp:
    with _mutex:
        under_way = _under_way.setdefault(name, [])
        if under_way:
            youngest = under_way[-1]
            if hub().now() - youngest.started < _JOINED_FOR or len(under_way) >= _PER_NAME:
                return youngest
        look_up = _LookUp(name)
        under_way.append(look_up)
    look_up.start()
    return look_up


def _forget(look_up: _LookUp) -> None:
    with _mutex:
        under_way = _under_way.get(look_up.name, [])
        if look_up in under_way:
            under_way.remove(look_up)
        if not under_way:
            _under_way.pop(look_up.name, None)


class Names:
    """The hosts of a route, their names looked up at the same time, each within its own share of the time."""

    def __init__(self, route: Route, deadline: float | None) -> None:
        now = hub().now()
        share = route.timeout
        if share is None and len(route.hosts) > 1:
            share = _DEFAULT_SHARE
        ends = [end for end in (deadline, None if share is None else now + share) if end is not None]
        self._share_ends = min(ends, default=None)
        #: libpq chooses among the hosts.
        self.gives_all = any(route.options.get(name) == value for name, value in _CHOOSING.items())
        self._left = [(host, _look_up(host.name) if host.needs_look_up else None) for host in route.hosts]
        self._late: list[tuple[Host, _LookUp]] = []
        #: What went wrong, as libpq says it.
        self.failures: list[str] = []

    def next_hosts(self, *, everything: bool = False) -> list[Host]:
        """The next hosts that are known, in their order, all addresses of each. None: there are no more. Suspends."""
        found: list[Host] = []
        until = self._share_ends
        everything = everything or self.gives_all
        while self._left:
            host, look_up = self._left[0]
            if look_up is not None and not look_up.is_over and not _wait(look_up, until):
                if found and not everything:
                    return found
                self._late.append((host, look_up))
            del self._left[0]
            found += self._known(host, look_up)
            if found and not everything:
                now_ends = hub().now() + _GRACE
                until = now_ends if until is None else min(until, now_ends)
        if not found:
            for host, look_up in self._late:
                if look_up.is_over:
                    found += self._known(host, look_up)
            self._late.clear()
        return found

    def _known(self, host: Host, look_up: _LookUp | None) -> list[Host]:
        if look_up is None:
            return [host]
        error = look_up.error
        if error is not None or not look_up.is_over:
            reason = "timeout expired" if error is None else getattr(error, "strerror", None) or error
            self.failures.append(f'could not translate host name "{host.name}" to address: {reason}')
        return [Host(host.name, address, host.port) for address in look_up.addresses]


def _wait(look_up: _LookUp, until: float | None) -> bool:
    event = hub().event()
    look_up.tell(event)
    event.wait(until)
    return look_up.is_over
