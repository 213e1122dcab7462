"""Asking which transaction this is, in the message of its first statement: for `settle=True`, see errors/settling.py.

psycopg2 shows the result of a message's last statement only. But the server reports `application_name` whenever it
changes, so the answer comes that way: it is set for the transaction, and reverts with its end.
"""

from __future__ import annotations

import re

import psycopg2
from psycopg2 import extensions

from ..errors.settling import TransactionIdentity
from .guarded_connection import GuardedConnection

#: pg_logical_emit_message() writes a record of the transaction's own, and says where it ends.
ASK = (
    b"SELECT pg_catalog.set_config('application_name', pg_catalog.concat_ws(' ', 'greenpg',"
    b" pg_catalog.pg_current_xact_id(), pg_catalog.pg_logical_emit_message(true, 'greenpg', ''),"
    b" pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8),"
    b" pg_catalog.pg_last_wal_replay_lsn()), true)"
)
_ANSWER = re.compile(r"greenpg (\d+) ([0-9A-F]+/[0-9A-F]+) ([0-9A-F]{8}) ?([0-9A-F/]*)")
_FIRST_VERSION = 130000
_IN_TRANSACTION = extensions.TRANSACTION_STATUS_INTRANS


def check_can_settle(conn: GuardedConnection) -> None:
    """NotSupportedError if the server can't say what has become of a transaction. Doesn't suspend."""
    if conn.server_version < _FIRST_VERSION:
        raise psycopg2.NotSupportedError("settle=True needs PostgreSQL 13 or later")


def identity_of(conn: GuardedConnection) -> TransactionIdentity | None:
    """The answer, if it has come. Doesn't suspend."""
    found = _ANSWER.fullmatch(conn.get_parameter_status("application_name") or "")
    return TransactionIdentity(*found.groups()) if found else None


def ask_identity(conn: GuardedConnection) -> TransactionIdentity | None:
    """The transaction that the connection is in, asked for if it's not known yet, which suspends for a round trip."""
    if conn.get_transaction_status() != _IN_TRANSACTION:
        return None
    identity = identity_of(conn)
    if identity is None:
        with conn.cursor(cursor_factory=extensions.cursor) as cur:
            cur.execute(ASK)
            if conn._gate.queue is not None:
                conn._gate.queue.settle()
        identity = identity_of(conn)
    return identity
