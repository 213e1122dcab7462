"""The server: is it there, has it room, and do its settings suit a pool."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..connection.connect.connecting import connect as greenpg_connect
from ..connection.patching import is_patched
from .findings import ADVICE, ERROR, WARNING, Finding
from .pooler import check_pooler

_FAR = 0.02
_OLDEST_SUPPORTED = 140000
_SETTINGS = (
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "client_connection_check_interval",
    "log_min_duration_statement",
)
_ASK = f"""\
SELECT {", ".join(f"(SELECT setting FROM pg_settings WHERE name = '{name}')" for name in _SETTINGS)},
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user AND NOT rolsuper),
    (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
    (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())"""


def connect(dsn: str) -> Any:
    """A connection to look with. Suspends, for 5 s at most if the DSN doesn't say how long."""
    limit: dict[str, Any] = {} if "connect_timeout" in extensions.parse_dsn(dsn) else {"connect_timeout": 5}
    conn = greenpg_connect(dsn, application_name="greenpg doctor", **limit)
    conn.autocommit = True
    return conn


def check_server(
    dsn: str, facts: dict[str, Any], *, needed: int, max_idle: float | None, how: str
) -> Iterator[Finding]:
    """Suspends. `needed`: how many connections the program may open (0: unknown), and `how` that comes about;
    `max_idle`: how long its pools keep them, in seconds."""
    try:
        conn = connect(dsn)
    except psycopg2.Error as error:
        yield _no_connection(str(error).strip())
        return
    try:
        settings = _ask(conn, facts)
        yield from _check_distance(conn, facts)
        pooler = list(check_pooler(conn, lambda: connect(dsn), facts))
        yield from pooler
        if not pooler:
            yield from _check_room(settings, facts, needed, how)
        yield from _check_settings(settings, max_idle)
    except psycopg2.Error as error:
        yield Finding(
            "server_fails",
            ERROR,
            f"the server can be reached, but looking at it failed: {str(error).strip()}",
            "What was not looked at may be wrong as well.",
            "See what the server's log says.",
        )
    finally:
        conn.close()


def _no_connection(text: str) -> Finding:
    if "FATAL:" in text:
        return Finding(
            "server_refuses",
            ERROR,
            f"the server answers, and refuses: {text}",
            "Nothing can connect.",
            "Look at user, password and database of the connection string, at the server's pg_hba.conf, and whether "
            "all its connections are taken.",
        )
    return Finding(
        "server_unreachable",
        ERROR,
        f"the server can't be reached: {text}",
        "Nothing can connect.",
        "Look whether it runs, at its listen_addresses and port, and at firewalls on the way.",
    )


def _ask(conn: Any, facts: dict[str, Any]) -> dict[str, Any]:
    with conn.cursor() as cur:
        cur.execute(_ASK)
        row = cur.fetchone()
    settings = dict(zip((*_SETTINGS, "role_limit", "database_limit", "is_tls"), row, strict=True))
    facts["server_version"] = conn.get_parameter_status("server_version")
    facts["tls"] = bool(settings["is_tls"])
    return settings


def _check_distance(conn: Any, facts: dict[str, Any]) -> Iterator[Finding]:
    if conn.server_version < _OLDEST_SUPPORTED:
        yield Finding(
            "old_server",
            ADVICE,
            f"PostgreSQL {facts['server_version']} gets no corrections any more",
            "Faults that are found, in its security too, stay.",
            "Go to a newer release.",
        )
    times = []
    with conn.cursor() as cur:
        for _ in range(5):
            started = time.perf_counter()
            cur.execute("SELECT 1")
            times.append(time.perf_counter() - started)
    seconds = statistics.median(times)
    facts["round_trip_ms"] = round(seconds * 1000, 2)
    if seconds > _FAR:
        yield Finding(
            "far_server",
            ADVICE,
            f"a round trip takes {seconds * 1000:.0f} ms",
            "Each statement of a transaction takes one, and holds the connection meanwhile.",
            "Bring program and server nearer to each other; pool.fetchone() and its kin take one round trip, "
            "executemany() few.",
        )


def _check_room(settings: dict[str, Any], facts: dict[str, Any], needed: int, how: str) -> Iterator[Finding]:
    reserved = int(settings["superuser_reserved_connections"]) + int(settings["reserved_connections"] or 0)
    room = int(settings["max_connections"]) - reserved
    limits = {"max_connections": room}
    for name in ("role_limit", "database_limit"):
        if settings[name] is not None and settings[name] >= 0:
            limits[name] = settings[name]
    name, room = min(limits.items(), key=lambda limit: limit[1])
    facts["connections"] = {"room": room, "needed": needed or None}
    if needed > room:
        what = {
            "max_connections": f"max_connections is {settings['max_connections']}, of which {reserved} are reserved",
            "role_limit": f"the role may have {room} (CONNECTION LIMIT)",
            "database_limit": f"the database may have {room} (CONNECTION LIMIT)",
        }[name]
        yield Finding(
            "too_many_connections",
            ERROR,
            f"the program may open {needed} connections ({how}), but the server has room for {room}: {what}",
            'Under load, connecting fails with "too many clients", for this program and for everybody else.',
            f"Lower max_size or the number of workers, to {room} in all and less if others use the server; or put a "
            "pooler in front, or raise the limit.",
        )


def _check_settings(settings: dict[str, Any], max_idle: float | None) -> Iterator[Finding]:
    if settings["idle_in_transaction_session_timeout"] == "0":
        yield Finding(
            "idle_in_transaction",
            ADVICE,
            "idle_in_transaction_session_timeout is 0",
            "A program that hangs in a transaction keeps its locks, and VACUUM from cleaning up, for ever.",
            "ALTER ROLE ... SET idle_in_transaction_session_timeout = '60s', or more than your longest pause within a "
            "transaction.",
        )
    if settings["client_connection_check_interval"] == "0" and is_patched():
        yield Finding(
            "connection_check",
            ADVICE,
            "client_connection_check_interval is 0, though greenpg sets it where it can",
            "When a program dies in the middle of a statement, the server finds out only when it has finished it.",
            "Remove it from the connection string's options, or PGOPTIONS; on an older server than PostgreSQL 14 it is "
            "not to be had.",
        )
    if settings["log_min_duration_statement"] == "-1":
        yield Finding(
            "slow_statements",
            ADVICE,
            "log_min_duration_statement is -1: slow statements leave no trace in the server's log",
            "When a pool is exhausted, the statement that holds its connections is what one wants to know.",
            "ALTER SYSTEM SET log_min_duration_statement = '1s', or configure=greenpg.SqlLog(slower_than=1) on the "
            "pool.",
        )
    idle_session = int(settings["idle_session_timeout"] or 0) / 1000
    if max_idle is not None and 0 < idle_session < max_idle:
        yield Finding(
            "idle_session_timeout",
            WARNING,
            f"the server closes connections that are idle for {idle_session:g} s (idle_session_timeout), the pool "
            f"keeps them for {max_idle:g} s (max_idle) or longer",
            "Each quiet moment ends with connections found dead and made anew.",
            "idle_session_timeout = 0 for the role, or well above max_idle; the pool ends what it doesn't need itself.",
        )
