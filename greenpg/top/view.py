"""All that there is to see, as data for JSON."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any

import greenpg

from ..hubs import hub
from ..pool.pool import ConnectionPool
from .activity import activity_of
from .history import History

_MOST_HOLDERS = 20


class View:
    """What one program shows. `statements`: whether the text of what runs at the server may be shown."""

    def __init__(self, pools: tuple[ConnectionPool, ...] = (), statements: bool = False) -> None:
        self._history = History(pools)
        self._statements = statements

    def start(self) -> None:
        """Sample from now on until `stop()`, also while nobody looks. Doesn't suspend."""
        self._history.look(math.inf)

    def stop(self) -> None:
        self._history.stop()

    def look(self, stacks: bool = False, server: bool = True) -> dict[str, Any]:
        """How things are. `stacks`: also where the holders are; `server`: also the server's own view. Suspends."""
        self._history.look()
        pools = self._history.pools()
        return {
            "program": {
                "pid": os.getpid(),
                "name": os.path.basename(sys.argv[0]) or "python",
                "hub": hub().name,
                "greenpg": greenpg.__version__,
                "time": round(time.time(), 3),
                "shows_statements": self._statements,
            },
            "pools": [self._pool(pool, stacks) for pool in pools],
            "servers": activity_of(pools, self._statements) if server else [],
        }

    def _pool(self, pool: ConnectionPool, stacks: bool) -> dict[str, Any]:
        stats = pool.get_stats()
        loans = pool.get_loans(stacks=stacks)[:_MOST_HOLDERS]
        return {
            "name": pool.name,
            "min_size": stats["pool_min"],
            "max_size": stats["pool_max"],
            "size": stats["pool_size"],
            "used": stats["pool_lent"],
            "idle": stats["pool_available"],
            "waiting": stats["requests_waiting"],
            "counters": {
                "requests": stats["requests_num"],
                "timeouts": stats["requests_timeouts"],
                "connects": stats["connections_num"],
                "connect errors": stats["connections_errors"],
                "lost": stats["connections_lost"],
                "evicted": stats["connections_evicted"],
                "leaked": stats["connections_leaked"],
                "deadlocks": stats["deadlocks"],
            },
            "holders": [
                {
                    "task": loan.holder,
                    "seconds": round(loan.seconds, 3),
                    "pid": loan.backend_pid,
                    "stack": None if loan.stack is None else "".join(loan.stack),
                }
                for loan in loans
            ],
            "history": self._history.of(pool),
        }
