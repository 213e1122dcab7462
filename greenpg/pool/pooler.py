"""A pooler such as PgBouncer in front of the server: what its mode takes away, refused with the reason instead of
being lost, or left to the next client.

In transaction mode each transaction may run on another server connection, and so does what a session keeps; in
statement mode each statement.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import sql

from ..connection.connect.connecting import connect_as_instrumented
from ..connection.connection import Connection
from ..connection.cursor import Cursor
from ..connection.lazy_begin import execute_alone
from ..hubs import hub
from .core import PoolCore
from .options import dsn_from

logger = logging.getLogger("greenpg.pool")

NONE, SESSION, TRANSACTION, STATEMENT = "none", "session", "transaction", "statement"

#: Linux gives no greater process numbers. A pooler makes them up, of 32 bits.
_GREATEST_PID = 2**22
_TRIES, _PAUSE = 10, 0.02

#: What would be kept by the server's session, which is somebody else's a moment later.
_KEEPS = re.compile(
    r"\s*(?:(?P<listen>LISTEN|UNLISTEN)\b"
    r"|(?P<prepare>PREPARE|DEALLOCATE)\s+(?!TRANSACTION\b)"
    r"|(?P<set>SET)\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)"
    r"|(?P<temporary>CREATE\s+(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\s+(?!.*\bON\s+COMMIT\s+DROP\b))"
    r"|(?P<hold>DECLARE\s+.*\bWITH\s+HOLD\b)"
    r"|(?P<load>LOAD\b))"
    r"|(?P<lock>.*\bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\()",
    re.IGNORECASE | re.DOTALL,
)
_REASONS = {
    "listen": "LISTEN is of a session: use pool.listen() with direct_conninfo=, which leads to the server itself",
    "prepare": "what is prepared is kept by one of the server's sessions",
    "set": "SET is of a session, which another client gets next: use SET LOCAL, or ALTER ROLE ... SET",
    "temporary": "a temporary table is of a session: make it ON COMMIT DROP",
    "hold": "a cursor WITH HOLD is of a session",
    "load": "LOAD is of a session",
    "lock": "this lock is of a session, and would be left to another client: use pg_advisory_xact_lock()",
}


def refused(mode: str, reason: str) -> psycopg2.NotSupportedError:
    """The error of what can't be had behind a pooler."""
    return psycopg2.NotSupportedError(f"not behind a pooler in {mode} mode: {reason}")


class PooledCursor(Cursor):
    """On top of the cursors of a pool that is behind a pooler in transaction or statement mode."""

    def execute(self, query: Any, vars: Any = None, *, prepare: bool | None = None) -> None:
        """Refuses what would be kept by the session."""
        self._check(query)
        return super().execute(query, vars, prepare=prepare)

    def executemany(self, query: Any, vars_list: Any, *, returning: bool = False) -> None:
        """Refuses what would be kept by the session."""
        self._check(query)
        return super().executemany(query, vars_list, returning=returning)

    def _check(self, query: Any) -> None:
        if self.name is not None and self.withhold:
            raise refused(TRANSACTION, _REASONS["hold"])
        text = query.as_string(self) if isinstance(query, sql.Composable) else query
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        found = _KEEPS.match(text) if isinstance(text, str) else None
        if found is not None and found.lastgroup is not None:
            raise refused(TRANSACTION, _REASONS[found.lastgroup])


def lends_sessions(mode: str | None) -> bool:
    """Whether a client has a session of the server's for itself."""
    return mode in (None, NONE, SESSION)


def set_up(core: PoolCore, conn: Connection) -> None:
    """A new connection: its cursors keep the rules of the mode. Doesn't suspend."""
    mode = core.options.pooler
    if lends_sessions(mode):
        return
    conn._attach_rules(PooledCursor)
    conn._prepared.is_off = True
    if mode == STATEMENT:
        conn.autocommit = True


def forbid_transactions(core: PoolCore) -> None:
    """NotSupportedError where each statement may run somewhere else."""
    if core.options.pooler == STATEMENT:
        raise refused(
            STATEMENT, "there are no transactions; use pool.execute(), fetchone() ..., or set pool_mode = transaction"
        )


def find_mode(core: PoolCore, conn: Connection | None) -> str:
    """The pooler's mode, as the options say, or else as it is found; `conn` is one of the pool's, in no transaction.
    Suspends if nothing is known yet."""
    if core.options.pooler is not None:
        return core.options.pooler
    if core.pooler is None:
        core.note_pooler(_look_for_pooler(core, conn))
    return core.pooler or NONE


def can_be_servers(pid: int) -> bool:
    """Whether a process number can be a server's."""
    return 0 < pid <= _GREATEST_PID


def _look_for_pooler(core: PoolCore, conn: Connection | None) -> str:
    first = conn if conn is not None else _connect(core)
    try:
        mode = mode_seen(first, lambda: _connect(core))
    finally:
        if first is not conn:
            first.close()
    if mode == TRANSACTION:
        logger.info("pool %r is behind a pooler in transaction mode", core.options.name)
    return mode


def mode_seen(first: Connection, connect: Callable[[], Connection]) -> str:
    """What is between this connection, in no transaction, and the server; `connect()` makes another one. Suspends.

    A pooler has process numbers of its own. (One in a thousand could be a server's: the server is asked.) One that
    lends for a transaction, or a statement, gives the next to somebody else, or this one another process.
    """
    process = _server_process(first)
    if first.info.backend_pid == process:
        return NONE
    with contextlib.closing(connect()) as second:
        for _ in range(_TRIES):
            if _server_process(second) == process or _server_process(first) != process:
                return TRANSACTION
            hub().sleep(_PAUSE)  # it may be late in taking back what a transaction has used
    return SESSION


def _connect(core: PoolCore) -> Connection:
    def connect(conninfo: str, kwargs: dict[str, Any]) -> Connection:
        made: Connection = connect_as_instrumented(dsn_from(conninfo, kwargs), Connection, None)
        return made

    return core.credentials().connect(connect)


def _server_process(conn: Connection) -> int:
    with conn.cursor(cursor_factory=Cursor) as cur:
        execute_alone(conn, cur, "SELECT pg_catalog.pg_backend_pid()", None)
        row: Any = cur.fetchone()
        return int(row[0])
