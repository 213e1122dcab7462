"""What has to be true of the program before its first query, wherever it was imported, monkey-patched and forked."""

from __future__ import annotations

import threading
from typing import Any

from asgiref.local import Local
from django.core.signals import request_started
from django.db import connections

from ...connection.patching import check_patched, is_patched, patch
from ...hubs import monkey_patched_hub


def ensure_green() -> None:
    """Patch psycopg2 if the program is monkey-patched; put an earlier patch right. Doesn't suspend."""
    if is_patched():
        check_patched()
    elif (found := monkey_patched_hub()) is not None:
        patch(found.name)


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
