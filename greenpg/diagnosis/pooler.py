"""Whether a pooler stands in front of the server, and which kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .findings import WARNING, Finding


def check_pooler(conn: Any, connect: Callable[[], Any], facts: dict[str, Any]) -> Iterator[Finding]:
    """`conn`: an autocommit connection; `connect()` makes another one. Suspends.

    A pooler has process numbers of its own. If two client connections, both open, are given the same server process, it
    lends that for a transaction (or a statement) only.
    """
    first = _server_process(conn)
    if conn.info.backend_pid == first:
        facts["pooler"] = "none"
        return
    mode = "session"
    with contextlib.closing(connect()) as other:
        for _ in range(3):
            if _server_process(other) == _server_process(conn):
                mode = "transaction"
                break
    facts["pooler"] = f"yes, lending for each {mode}"
    if mode == "session":
        return
    yield Finding(
        "pooler_transactions",
        WARNING,
        "a pooler such as PgBouncer is in front of the server, and lends its connections for a transaction at a time",
        "What a session keeps is lost or another client's: SET, LISTEN (pool.listen()), advisory locks, temporary "
        "tables, "
        'PREPARE, reset="session". psycopg2 and greenpg prepare nothing by themselves.',
        "Use only what lives within a transaction (SET LOCAL, pg_advisory_xact_lock), connect to the server itself for "
        "LISTEN, or set the pooler's pool_mode to session.",
    )


def _server_process(conn: Any) -> int:
    with conn.cursor() as cur:
        cur.execute("SELECT pg_backend_pid()")
        return int(cur.fetchone()[0])
