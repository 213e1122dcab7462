"""What has to be true of the program before its first query, wherever it was imported, monkey-patched and forked."""

from __future__ import annotations

import threading
from typing import Any

from asgiref.local import Local
from django.core.signals import request_started
from django.db import connections

from ...connection.patching import is_patched, patch
from ...errors import PatchError
from ...hubs import hub, monkey_patched_hub


def ensure_green() -> None:
    """Patch psycopg2 if the program is monkey-patched; PatchError if it's patched for another hub. Doesn't suspend."""
    if is_patched() and hub().name != "threads":
        return  # asked for at each request
    found = monkey_patched_hub()
    if found is None:
        return
    if not is_patched():
        patch(found.name)
    elif hub().name != found.name:
        raise PatchError(
            f"greenpg.patch() took the hub {hub().name!r}, but the program is monkey-patched for {found.name} now: "
            "call it after the monkey-patching, or leave it to the engine, which does so by itself"
        )


def renew_connections() -> bool:
    """Give each task its own `connections` if they were made before the monkey-patching, as where a server's master
    imports Django: all tasks of a native thread would share them. Returns whether that was so. Doesn't suspend."""
    storage = getattr(connections._connections, "_storage", None)
    if storage is None or isinstance(storage, threading.local):
        return False
    connections._connections = Local(connections.thread_critical)
    return True


def _renew(**_: Any) -> None:
    renew_connections()


request_started.connect(_renew, dispatch_uid="greenpg.integrations.django")
