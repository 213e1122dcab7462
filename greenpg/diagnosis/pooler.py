"""Whether a pooler stands in front of the server, and which kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..pool.pooler import NONE, TRANSACTION, mode_seen
from .findings import WARNING, Finding


def check_pooler(conn: Any, connect: Callable[[], Any], facts: dict[str, Any]) -> Iterator[Finding]:
    """`conn`: an autocommit connection; `connect()` makes another one. Suspends."""
    mode = mode_seen(conn, connect)
    facts["pooler"] = mode if mode == NONE else f"yes, lending for each {mode}"
    if mode != TRANSACTION:
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
