"""A COMMIT that also tells where the server's log is afterwards, in the same round trip: whoever reads somewhere else
can tell then whether the transaction is there."""

from __future__ import annotations

from typing import Any

from psycopg2 import extensions

_LSN = b"SELECT pg_catalog.pg_current_wal_insert_lsn()::text"
_COMMIT = b"COMMIT;\n" + _LSN
_READY = extensions.STATUS_READY
_execute: Any = extensions.cursor.execute
_fetchone: Any = extensions.cursor.fetchone
_connection: Any = extensions.connection
_commit = _connection.commit
_set_autocommit = _connection.autocommit.__set__


def commit_and_tell(conn: Any) -> str | None:
    """`psycopg2.extensions.connection.commit()`, inside the gate; returns the log's position. Suspends.

    None: there is no transaction, or it is one of two phases.
    """
    if conn._driver_status != extensions.STATUS_BEGIN:
        _commit(conn)
        return None
    cur = _connection.cursor(conn, cursor_factory=extensions.cursor)
    word = conn._status_word
    if word is None:
        _commit(conn)
        _set_autocommit(conn, True)  # else psycopg2 begins a transaction
        try:
            _execute(cur, _LSN)
        finally:
            if not conn.closed:
                _set_autocommit(conn, False)
    else:
        try:
            _execute(cur, _COMMIT)
        finally:
            if not conn.closed:
                word.value = _READY  # which psycopg2 sets whatever the outcome is
    return str(_fetchone(cur)[0])
