"""`patch()`: psycopg2 for the whole program, made green at startup."""

from __future__ import annotations

from typing import Any

import psycopg2 as _psycopg2
from psycopg2 import extensions

from .. import hubs
from ..errors import PatchError
from . import installing
from .connect.connecting import connect_for_psycopg2
from .psycopg3 import stop_watching, watch_for_django

_NOTHING: Any = object()

#: What `psycopg2._connect` was before; `_NOTHING` if it was left alone.
_old_connect: Any = _NOTHING
psycopg2: Any = _psycopg2  # its _connect is nothing that its type stubs know of


def patch(hub: str | None = None, *, connect: bool = True) -> None:
    """Make psycopg2 cooperate with the program's tasks. Call it once, at startup; doesn't suspend.

    `hub` is "gevent", "eventlet", "threads", or None to find it from what is monkey-patched: if nothing is, native
    threads are assumed, and when the monkey-patching comes later (in gunicorn's post_fork it does), that is found when
    the next connection is made. With `connect` (default true), `psycopg2.connect` gives `greenpg.Connection`s, whatever
    library calls it.

    The same call again changes nothing. As long as it is in force, the wait callback is greenpg's: if another library
    sets one, or takes it away, greenpg's stays, and the logger `greenpg.connection` says so.

    Raises `errors.PatchError` when patched differently before, ValueError for an unknown hub, ImportError when the
    hub's library isn't installed. Warns (RuntimeWarning) when the program isn't monkey-patched, or is though `hub` is
    "threads", and when Django takes psycopg 3.
    """
    global _old_connect
    patched = installing.installed()
    if patched is not None:
        _check_same(patched, hub, connect)
        return
    new_hub = hubs.choose(hub)
    installing.install(new_hub, is_assumed=hub is None and hubs.monkey_patched_hub() is None)
    if connect:
        _old_connect, psycopg2._connect = psycopg2._connect, connect_for_psycopg2
    watch_for_django()


def _check_same(patched: installing.Installed, hub: str | None, connect: bool) -> None:
    patched.settle()
    if hub is not None and hub != patched.hub.name:
        if hub not in hubs.NAMES:
            raise ValueError(f"unknown hub {hub!r}: use one of {', '.join(map(repr, hubs.NAMES))}")
        if not patched.is_assumed:
            raise PatchError(
                f"psycopg2 is patched for {patched.hub.name!r} already and can't serve {hub!r} as well: the wait "
                "callback is one for the whole process. Patch once, at startup, or call greenpg.unpatch() first"
            )
        patched.move_to(hubs.choose(hub))
    if connect != (_old_connect is not _NOTHING):
        raise PatchError(
            f"psycopg2 is patched already, with connect={not connect}. Call greenpg.unpatch() first to change that"
        )


def unpatch() -> None:
    """Put back what `patch()` found. Without a patch it does nothing. Connections that are open become blocking.

    Doesn't suspend.
    """
    global _old_connect
    installing.uninstall()
    stop_watching()
    if _old_connect is not _NOTHING:
        psycopg2._connect, _old_connect = _old_connect, _NOTHING


def check_patched() -> None:
    """Put right what others have done to the patch. Doesn't suspend.

    Raises PatchError in a program that is monkey-patched, but in which psycopg2 would block all of its tasks.
    """
    if installing.installed() is not None:
        installing.settle()
    elif extensions.get_wait_callback() is None:
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
    """Whether `patch()` is in force. Doesn't suspend."""
    return installing.installed() is not None
