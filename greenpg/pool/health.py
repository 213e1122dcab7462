"""Looks at connections: whether one is alive, and where it stands. Knows nothing of pools."""

from __future__ import annotations

import logging

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from ..connection.connection import Connection
from ..connection.cursor import Cursor
from ..connection.interrupting import cut_off
from ..connection.lazy_begin import execute_alone
from ..connection.remains import Remains, say_goodbye
from ..hubs import hub

logger = logging.getLogger("greenpg.pool")

IDLE_STATUS = extensions.TRANSACTION_STATUS_IDLE
READY = extensions.STATUS_READY
#: psycopg2's `closed` after a failure; after `close()` it's 1.
LOST = 2
_STATUS_NAMES = {
    extensions.TRANSACTION_STATUS_IDLE: "IDLE",
    extensions.TRANSACTION_STATUS_ACTIVE: "ACTIVE",
    extensions.TRANSACTION_STATUS_INTRANS: "INTRANS",
    extensions.TRANSACTION_STATUS_INERROR: "INERROR",
    extensions.TRANSACTION_STATUS_UNKNOWN: "UNKNOWN",
}

#: Seconds for the answer to a ping.
PING_TIMEOUT = 5.0

#: How often a socket may have had something to read (notices, notifications) before it's taken to be at its end.
_MOST_READS = 10


def status_name(status: int) -> str:
    """libpq's name of a transaction status."""
    return _STATUS_NAMES.get(status, str(status))


def is_alive(conn: Connection) -> bool:
    """Whether the socket says nothing to the contrary. Doesn't suspend, and costs no round trip."""
    if conn.closed:
        return False
    try:
        fd = conn.fileno()
        for _ in range(_MOST_READS):
            if not hub().is_readable(fd):
                return True
            conn.poll()  # a notice or notification, or the end
    except psycopg2.Error:
        pass
    return False


def ping(conn: Connection) -> None:
    """Raise if the connection doesn't work, or doesn't say so within `PING_TIMEOUT`. Suspends for a round trip; leaves
    no transaction behind."""
    with conn.cursor() as cur, conn.deadline(PING_TIMEOUT):
        execute_alone(conn, cur, "SELECT 1", None)


_IS_READ_ONLY = """\
SELECT pg_catalog.pg_is_in_recovery() OR (setting = 'on' AND source NOT IN ('client', 'session'))
FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'"""


def check_writable(conn: Connection) -> None:
    """Raise `psycopg2.errors.ReadOnlySqlTransaction` if the server takes no writes, unless it is this session that
    wants it so. Suspends as `ping()` does."""
    with conn.cursor(cursor_factory=Cursor) as cur, conn.deadline(PING_TIMEOUT):
        execute_alone(conn, cur, _IS_READ_ONLY, None)
        if cur.fetchone() == (True,):
            raise psycopg2.errors.ReadOnlySqlTransaction("the server takes no writes any more")


def close_quietly(conn: Connection) -> Remains | None:
    """Close it, whatever state it is in. Doesn't suspend, unless a task waits in it. What tells when its server process
    has ended, None if it has."""
    gate = conn._gate
    gate.wake()
    try:
        if gate.owner is not gate.free or conn.closed:
            conn._close()  # the owner is thrown out
        elif conn.get_transaction_status() == extensions.TRANSACTION_STATUS_ACTIVE:
            cut_off(conn)
        return say_goodbye(conn)
    except Exception as error:
        logger.warning("closing %s failed: %s", conn, error)
        return None
