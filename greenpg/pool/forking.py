"""Forks: a child begins with pools that have no connections, and the parent's are not touched."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import BasePool
    from .ledger import Slot

pools_to_survive_forks: weakref.WeakSet[BasePool] = weakref.WeakSet()


def forget_connections(slots: Iterable[Slot]) -> None:
    """Point the child's copies of the sockets to nowhere.

    When psycopg2 closes its copy of a connection it says goodbye to the server, on the socket that is the parent's too.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for slot in slots:
            conn = slot.conn
            if conn is not None and not conn.closed:
                os.dup2(nowhere, conn.fileno())
                conn._pool = None
    finally:
        os.close(nowhere)


def _after_fork_in_child() -> None:
    for pool in list(pools_to_survive_forks):
        pool._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
