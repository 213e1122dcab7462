"""Forks: a child leaves the connections of its parent alone.

Its copies of their sockets lead to nobody, so it can neither read the parent's answers nor say anything to the
parent's servers, and the connections refuse to be used in it. A task that waited in one is in the child, too, under a
green hub: there it goes on waiting, see hubs/base.py.
"""

from __future__ import annotations

import _socket  # the module `socket` may be monkey-patched
import os
import weakref
from typing import Any, Protocol

from psycopg2 import extensions

from ..hubs import hub

_CONNECTED = frozenset({extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED})


class Open(Protocol):
    """What has a socket. It can be referred to weakly."""

    def fileno(self) -> int: ...


_open: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: weakref.WeakSet[Any] = weakref.WeakSet()
#: Where the copies lead: the other end says nothing. The second one takes nothing, either.
_silence: list[_socket.socket] = []
_full_silence: list[_socket.socket] = []


def keep_from_children(opened: Open) -> None:
    """This process alone is to use its socket: a connection, also one that is still being made, or what is left of one.
    Doesn't suspend."""
    _open.add(opened)


def all_open() -> list[Any]:
    """What `keep_from_children()` was called with in this process, as far as it is still there."""
    while True:
        try:
            return list(_open)
        except RuntimeError:  # another native thread has just connected
            continue


def is_inherited(opened: object) -> bool:
    """Whether it is that of the process from which this one was forked. Doesn't suspend."""
    return bool(_inherited) and opened in _inherited


def _after_fork_in_child() -> None:
    inherited = list(_open)
    _open.clear()
    if inherited and not _silence:
        _make_silence()
    for opened in inherited:
        _inherited.add(opened)
        leads_to = _full_silence if _is_waited_for(opened) else _silence
        try:
            os.dup2(leads_to[0].fileno(), opened.fileno(), inheritable=False)
        except Exception:  # it has no socket any more, or not yet
            pass
    hub().after_fork()


def _make_silence() -> None:
    _silence.extend(_socket.socketpair())
    _silence[0].setblocking(False)
    _full_silence.extend(_socket.socketpair())
    _full_silence[0].setblocking(False)
    try:
        while True:
            _full_silence[0].send(bytes(4096))
    except BlockingIOError:
        pass


def _is_waited_for(opened: Any) -> bool:
    """Some task may be waiting for the socket; it mustn't be woken, not even to write."""
    gate = getattr(opened, "_gate", None)
    return gate is None or gate.disown() or opened.status not in _CONNECTED


os.register_at_fork(after_in_child=_after_fork_in_child)
