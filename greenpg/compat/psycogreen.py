"""psycogreen on greenpg: `from greenpg.compat.psycogreen import patch_psycopg`, or `...psycogreen.gevent`, `.eventlet`.

What differs, and why:
- `patch_psycopg()` is `greenpg.patch()`: `psycopg2.connect` gives `greenpg.Connection`s, so a kill or a timeout cancels
  the statement instead of closing the connection and leaving the server at it, `connect_timeout` holds, and two tasks
  on one connection get an error instead of stopping the process.
- Without a module's name (`gevent`, `eventlet`) the hub is found from what is monkey-patched. Again is harmless;
  after a patch for another hub it raises `greenpg.errors.PatchError`.
- `gevent_wait_callback` and `eventlet_wait_callback` are gone: the wait callback is nothing that can be used alone.
"""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType
from typing import Any

from .. import patch

__all__ = ["eventlet", "gevent", "patch_psycopg"]


def patch_psycopg() -> None:
    """Make psycopg2 cooperate with what is monkey-patched. Call it once, at startup; doesn't suspend."""
    patch()


def _module(hub: str) -> Any:
    module = ModuleType(f"{__name__}.{hub}", f"`patch_psycopg()` for {hub}.")
    module.__dict__["patch_psycopg"] = partial(patch, hub)
    # So that `from greenpg.compat.psycogreen.gevent import patch_psycopg` works, as it did with psycogreen.
    sys.modules[module.__name__] = module
    return module


gevent = _module("gevent")
eventlet = _module("eventlet")
