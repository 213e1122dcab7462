"""`doctor()`: all the checks, on the running program."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import psycopg2

from ..connection.connect.dsn import checked_dsn, masked_dsn
from ..pool.lifecycle import living_pools
from ..pool.opening import dsn_of
from ..pool.pool import ConnectionPool
from .findings import ERROR, Finding, Report
from .installation import check_installation
from .loop import check_loop
from .network import check_names, check_secrecy
from .patches import check_patches, has_two_loops
from .server import check_server


def doctor(
    dsn: str | None = None,
    *,
    pools: Iterable[ConnectionPool] | None = None,
    workers: int | None = None,
    seconds: float = 0.5,
) -> Report:
    """Look whether the running program is set up right, and say what isn't, why it matters, and what to do.

    - `dsn`: the server to look at. None: those of the pools; without any, no server is looked at.
    - `pools` (None: all that there are in the process).
    - `workers`: how many processes like this one run (None: the environment's WEB_CONCURRENCY, else 1).
    - `seconds` (0.5): how long to watch the event loop for tasks that block it; 0: not at all.

    Suspends, and takes as long as that and some round trips. Opens up to two connections for a moment and sends only
    SELECTs; changes nothing. Raises `psycopg2.ProgrammingError` for a malformed `dsn`.
    """
    report = Report()
    all_pools = _all_pools() if pools is None else list(pools)
    count = workers or int(os.environ.get("WEB_CONCURRENCY") or 1)
    report.findings += check_installation(report.facts)
    report.findings += check_patches(report.facts)
    report.facts["pools"] = [f"{pool.name} ({pool.min_size} to {pool.max_size})" for pool in all_pools]
    report.facts["workers"] = count
    if has_two_loops():
        report.facts["servers"] = "not looked at"
        report.sort()
        return report
    report.findings += check_loop(report.facts, seconds)
    if dsn is not None:
        _look_at_server(checked_dsn(dsn), all_pools, count, report)
    else:
        by_dsn: dict[str, list[ConnectionPool]] = {}
        for pool in all_pools:
            by_dsn.setdefault(dsn_of(pool._core), []).append(pool)
        for pool_dsn, sharing in by_dsn.items():
            _look_at_server(pool_dsn, sharing, count, report)
    report.sort()
    return report


def _look_at_server(dsn: str, pools: list[ConnectionPool], workers: int, report: Report) -> None:
    facts: dict[str, Any] = {}
    report.facts[f"server {masked_dsn(dsn)}"] = facts
    found: list[Finding] = []
    try:
        way = check_names(dsn, facts, found)
    except psycopg2.Error as error:
        found.append(
            Finding(
                "bad_dsn",
                ERROR,
                f"the connection string can't be used: {str(error).strip()}",
                "Nothing can connect.",
                "Correct it.",
            )
        )
    else:
        found += check_secrecy(way)
        if not way.leads_nowhere:
            sizes = [pool.max_size for pool in pools]
            found += check_server(
                dsn,
                facts,
                needed=workers * sum(sizes),
                max_idle=max((pool.max_idle for pool in pools), default=None),
                how=f"{workers} {'worker' if workers == 1 else 'workers'} with {' + '.join(map(str, sizes))}",
            )
    report.findings += found


def _all_pools() -> list[ConnectionPool]:
    pools = [pool for pool in living_pools() if isinstance(pool, ConnectionPool)]
    return sorted(pools, key=lambda pool: pool.name)
