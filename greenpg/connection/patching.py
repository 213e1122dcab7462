"""`patch()`: psycopg2 for the whole program, made green at startup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg2 as _psycopg2
from psycopg2 import extensions

from .. import hubs
from ..errors import PatchError
from .connect.connecting import connect_for_psycopg2
from .wait_callback import make_wait_callback


@dataclass(frozen=True)
class _Patch:
    """What there was before, to be put back."""

    hub: hubs.Hub
    old_hub: hubs.Hub
    old_wait_callback: Any
    old_connect: Any | None


_patch: _Patch | None = None
psycopg2: Any = _psycopg2  # its _connect is nothing that its type stubs know of


def patch(hub: str | None = None, *, connect: bool = True) -> None:
    """Make psycopg2 cooperate with the program's tasks. Call it once, at startup; doesn't suspend.

    `hub` is "gevent", "eventlet", "threads", or None to find it from what is monkey-patched. With `connect`
    (default true), `psycopg2.connect` gives `greenpg.Connection`s, whatever library calls it.

    The same call again changes nothing. Raises `errors.PatchError` when patched differently before, ValueError for
    an unknown hub, ImportError when the hub's library isn't installed. Warns (RuntimeWarning) when the program isn't
    monkey-patched.
    """
    global _patch
    if _patch is not None:
        _check_same(_patch, hub, connect)
        return
    new_hub = hubs.choose(hub)
    old = _Patch(
        hub=new_hub,
        old_hub=hubs.use(new_hub),
        old_wait_callback=extensions.get_wait_callback(),
        old_connect=psycopg2._connect if connect else None,
    )
    extensions.set_wait_callback(make_wait_callback(new_hub))
    if connect:
        psycopg2._connect = connect_for_psycopg2
    _patch = old


def _check_same(patched: _Patch, hub: str | None, connect: bool) -> None:
    if hub is not None and hub != patched.hub.name:
        if hub not in hubs.NAMES:
            raise ValueError(f"unknown hub {hub!r}: use one of {', '.join(map(repr, hubs.NAMES))}")
        raise PatchError(
            f"psycopg2 is patched for {patched.hub.name!r} already and can't serve {hub!r} as well: the wait callback "
            "is one for the whole process. Patch once, at startup, or call greenpg.unpatch() first"
        )
    if connect != (patched.old_connect is not None):
        raise PatchError(
            f"psycopg2 is patched already, with connect={not connect}. Call greenpg.unpatch() first to change that"
        )


def unpatch() -> None:
    """Put back what `patch()` found. Without a patch it does nothing. Connections that are open become blocking."""
    global _patch
    if _patch is None:
        return
    old, _patch = _patch, None
    extensions.set_wait_callback(old.old_wait_callback)
    if old.old_connect is not None:
        psycopg2._connect = old.old_connect
    hubs.use(old.old_hub)


def check_patched() -> None:
    """Raise PatchError in a program that is monkey-patched, but in which psycopg2 would block all of its tasks."""
    if _patch is None and extensions.get_wait_callback() is None:
        found = hubs.monkey_patched_hub()
        if found is not None:
            raise PatchError(
                f"the program is monkey-patched for {found.name}, but psycopg2 isn't: call greenpg.patch() at startup, "
                "after the monkey-patching and in the process that does the work (under gunicorn: in the worker)"
            )


def psycopg2_connects_green() -> bool:
    """Whether `psycopg2.connect` gives `Connection`s."""
    return psycopg2._connect is connect_for_psycopg2


def is_patched() -> bool:
    """Whether `patch()` is in force."""
    return _patch is not None
