"""The wait callback in its place: put there by `patch()`, and kept there.

It is one for the process, and others set theirs, or take it away: psycogreen, RelStorage, `eventlet.monkey_patch()`
(gunicorn's eventlet worker calls it after post_fork). So while patched, `psycopg2.extensions.set_wait_callback` is
greenpg's, which keeps greenpg's callback and says so; whoever gets past it is found at the next connect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from psycopg2 import _psycopg, extensions

from .. import hubs
from .wait_callback import make_wait_callback

logger = logging.getLogger("greenpg.connection")

_set_wait_callback: Any = _psycopg.set_wait_callback
_get_wait_callback: Any = _psycopg.get_wait_callback
_extensions: Any = extensions

_ADVICE = "call greenpg.unpatch() first if greenpg's is not to be used"


class Installed:
    """The callback of one `patch()`."""

    def __init__(self, hub: hubs.Hub, *, is_assumed: bool) -> None:
        self.hub = hub
        #: Nothing was monkey-patched, and nobody has named a hub: both may still come.
        self.is_assumed = is_assumed
        self._old_hub = hubs.use(hub)
        self._old_callback = _get_wait_callback()
        self._old_setter = _extensions.set_wait_callback
        self._callback = make_wait_callback(hub)
        self._refused: list[Any] = []
        self._has_warned = hubs.monkey_patched_hub() is not None  # or there was no reason to
        _set_wait_callback(self._callback)
        _extensions.set_wait_callback = self._refuse

    def remove(self) -> None:
        """Put back what was there before."""
        if _extensions.set_wait_callback == self._refuse:
            _extensions.set_wait_callback = self._old_setter
        _set_wait_callback(self._old_callback)
        hubs.use(self._old_hub)

    def move_to(self, hub: hubs.Hub) -> None:
        """Wait by another hub from now on."""
        self.hub, self.is_assumed = hub, False
        hubs.use(hub)
        self._callback = make_wait_callback(hub)
        _set_wait_callback(self._callback)

    def settle(self) -> None:
        """Put right what has come in between. Doesn't suspend."""
        if self.is_assumed:
            found = hubs.monkey_patched_hub()
            if found is not None:
                logger.info("the program was monkey-patched for %s after greenpg.patch(): waiting by it", found.name)
                self.move_to(found)
        elif self.hub.name == "threads" and not self._has_warned:
            self._has_warned = hubs.warn_of_blocking_threads()
        callback = _get_wait_callback()
        if callback is not self._callback:
            _set_wait_callback(self._callback)
            self._say_kept(callback)

    def _refuse(self, callback: Callable[[Any], object] | None) -> None:
        """Stands in for `psycopg2.extensions.set_wait_callback`: greenpg's callback stays until `unpatch()`."""
        self.settle()
        if callback is not self._callback:
            self._say_kept(callback)

    def _say_kept(self, callback: Any) -> None:
        if callback in self._refused:
            return
        self._refused.append(callback)
        if callback is None:
            text = f"psycopg2's wait callback was to be taken away; greenpg.patch() keeps its own: {_ADVICE}"
        else:
            name = f"{getattr(callback, '__module__', '')}.{getattr(callback, '__qualname__', callback)}"
            text = f"{name} was set as psycopg2's wait callback; greenpg.patch() keeps its own instead: {_ADVICE}"
        # eventlet.monkey_patch() and gunicorn's eventlet worker do it in every program: nothing to worry about.
        is_expected = getattr(callback, "__module__", None) == "eventlet.support.psycopg2_patcher"
        logger.log(logging.INFO if is_expected else logging.WARNING, "%s", text)


_installed: Installed | None = None


def installed() -> Installed | None:
    """The callback in force; None if psycopg2 isn't patched."""
    return _installed


def install(hub: hubs.Hub, *, is_assumed: bool) -> None:
    """Make psycopg2 wait by the hub."""
    global _installed
    _installed = Installed(hub, is_assumed=is_assumed)


def uninstall() -> None:
    """Put back what was there before."""
    global _installed
    if _installed is not None:
        before, _installed = _installed, None
        before.remove()


def settle() -> None:
    """Before a connection is made or waited for: put right what others have done to the patch. Doesn't suspend.

    Warns (RuntimeWarning) if native threads were asked for in a program that is monkey-patched.
    """
    if _installed is not None:
        _installed.settle()
