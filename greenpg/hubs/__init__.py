"""Floor 1: how a task waits. `base.py` is the contract; the rest of greenpg knows nothing else of event loops.

One hub is in use in a process (`hub()`): the one that `greenpg.patch()` chose, and native threads before that.
"""

from __future__ import annotations

import sys
import warnings

from .base import Event, FdWaiter, Hub, Mutex
from .threads import ThreadsHub

__all__ = ["Event", "FdWaiter", "Hub", "Mutex", "choose", "hub", "use"]

NAMES = ("gevent", "eventlet", "threads")


def hub() -> Hub:
    """The hub in use."""
    return _hub


def use(new_hub: Hub) -> Hub:
    """Put another hub to use. Returns the one that was."""
    global _hub
    old_hub, _hub = _hub, new_hub
    return old_hub


def choose(name: str | None) -> Hub:
    """A hub by its name, or the one for what is monkey-patched.

    Raises ValueError for an unknown name, ImportError when its library isn't installed. Warns (RuntimeWarning) when
    the program isn't monkey-patched for it, or is for another one.
    """
    if name is None:
        return _found_hub()
    if name not in NAMES:
        raise ValueError(f"unknown hub {name!r}: use one of {', '.join(map(repr, NAMES))}, or None to find it")
    new_hub = _make(name)
    if name == "threads":
        warn_of_blocking_threads()
    if not new_hub.is_monkey_patched():
        warnings.warn(
            f"greenpg.patch({name!r}): the program is not monkey-patched, so everything but the database still blocks; "
            f"{_ADVICE[name]} before anything else is imported",
            RuntimeWarning,
            stacklevel=3,
        )
    return new_hub


_ADVICE = {
    "gevent": "call gevent.monkey.patch_all()",
    "eventlet": "call eventlet.monkey_patch()",
}


def monkey_patched_hub() -> Hub | None:
    """The hub for what the program is monkey-patched with; None if it isn't."""
    for name, marker in (("gevent", "gevent.monkey"), ("eventlet", "eventlet.patcher")):
        if marker in sys.modules:
            found = _make(name)
            if found.is_monkey_patched():
                return found
    return None


def warn_of_blocking_threads() -> bool:
    """Warn (RuntimeWarning) if the program is monkey-patched, though it has asked for native threads."""
    found = monkey_patched_hub()
    if found is not None:
        warnings.warn(
            f'greenpg.patch("threads"): the program is monkey-patched for {found.name}, so each wait for the database '
            f'stops all of its tasks; call greenpg.unpatch(), then greenpg.patch("{found.name}")',
            RuntimeWarning,
            stacklevel=4,
        )
    return found is not None


def _found_hub() -> Hub:
    found = monkey_patched_hub()
    if found is not None:
        return found
    warnings.warn(
        "greenpg.patch(): nothing is monkey-patched, so native threads are assumed; "
        f"{_ADVICE['gevent']} (or {_ADVICE['eventlet'].removeprefix('call ')}) first, "
        'or say patch("threads") if threads are what you want',
        RuntimeWarning,
        stacklevel=4,
    )
    return ThreadsHub()


def _first_hub() -> Hub:
    """Native threads, also in a program that is monkey-patched before greenpg is imported."""
    found = monkey_patched_hub()
    return ThreadsHub() if found is None else found.natives()


def _make(name: str) -> Hub:
    if name == "gevent":
        from .gevent import GeventHub

        return GeventHub()
    if name == "eventlet":
        from .eventlet import EventletHub

        return EventletHub()
    return ThreadsHub()


_hub: Hub = _first_hub()
