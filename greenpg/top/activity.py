"""The server's own view: who does what, who waits for whose lock."""

from __future__ import annotations

from typing import Any

import psycopg2

from ..connection.connect.connecting import connect
from ..connection.connect.dsn import masked_dsn
from ..pool.opening import dsn_of
from ..pool.pool import ConnectionPool

#: Seconds that the server may take; a page that shows how things are stuck must not get stuck itself.
_PATIENCE = 2.0
_MOST_SESSIONS = 200
_LONGEST_STATEMENT = 300

# The BEGIN that rides in front of a statement (connection/lazy_begin.py) is not shown.
_ASK = rf"""
SELECT a.pid, a.application_name, a.state, a.wait_event_type, a.wait_event,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
    extract(epoch FROM clock_timestamp() - a.state_change)::float8,
    pg_catalog.pg_blocking_pids(a.pid),
    CASE WHEN %s THEN left(regexp_replace(a.query, '^BEGIN[^;\n]*;\n', ''), {_LONGEST_STATEMENT}) END
FROM pg_catalog.pg_stat_activity a
WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start NULLS LAST, a.pid
LIMIT {_MOST_SESSIONS}"""
_NAMES = ("pid", "application", "state", "wait_type", "wait", "transaction_seconds", "state_seconds", "blocked_by")


def activity_of(pools: list[ConnectionPool], statements: bool) -> list[dict[str, Any]]:
    """For each server of the pools its sessions, in the pool's database. Suspends, for some seconds at most."""
    servers: dict[str, dict[str, Any]] = {}
    for pool in pools:
        dsn = dsn_of(pool._core)
        if dsn in servers:
            servers[dsn]["pools"].append(pool.name)
        else:
            servers[dsn] = {"dsn": masked_dsn(dsn), "pools": [pool.name]} | _ask(dsn, statements)
    return list(servers.values())


def _ask(dsn: str, statements: bool) -> dict[str, Any]:
    try:
        conn = connect(dsn, application_name="greenpg top", total_connect_timeout=_PATIENCE)
        try:
            conn.autocommit = True
            conn.statement_deadline = _PATIENCE
            cur = conn.cursor()
            cur.execute(_ASK, (statements,))
            rows = cur.fetchall()
        finally:
            conn.close()
    except psycopg2.Error as error:
        return {"error": str(error).strip(), "sessions": []}
    return {"error": None, "sessions": _sorted([_session(row) for row in rows])}


def _sorted(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who blocks others and isn't blocked first, then those who wait for locks, the first ones first."""
    blocking = {pid for session in sessions for pid in session["blocked_by"]}

    def rank(session: dict[str, Any]) -> tuple[bool, int]:
        is_involved = session["blocked_by"] or session["pid"] in blocking
        return not is_involved, len(session["blocked_by"])

    return sorted(sessions, key=rank)


def _session(row: tuple[Any, ...]) -> dict[str, Any]:
    session = dict(zip((*_NAMES, "statement"), row, strict=True))
    for name in ("transaction_seconds", "state_seconds"):
        session[name] = None if session[name] is None else round(session[name], 3)
    return session
