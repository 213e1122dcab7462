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


def renew_connections(wrapper: Any = None) -> bool:
    """Give each task its own `connections` if they were made before the monkey-patching, as where a server's master
    imports Django: all tasks of a native thread would share them. Doesn't suspend.

    Returns whether the wrapper is one of those, which is the running task's alone now.
    """
    shared: Any = connections._connections
    storage = getattr(shared, "_storage", None)
    if storage is None or isinstance(storage, threading.local):
        return False
    connections._connections = Local(connections.thread_critical)
    alias = getattr(wrapper, "alias", "")
    if wrapper is None or getattr(shared, alias, None) is not wrapper:
        return False
    connections[alias] = wrapper
    return True


def _renew(**_: Any) -> None:
    renew_connections()


request_started.connect(_renew, dispatch_uid="greenpg.integrations.django")
