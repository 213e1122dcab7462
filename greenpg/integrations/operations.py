"""What kind of statement a traced one is: few names, whatever the program sends."""

from __future__ import annotations

import re

from ..connection.tracing import TraceEvent

OTHER = "other"
_WORD = re.compile(r"\s*([A-Za-z]+)")
# fmt: off
_NAMES = frozenset(
    [
        "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "COPY", "CALL", "DO", "BEGIN",
        "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "SET", "SHOW", "LOCK", "DECLARE", "FETCH", "EXECUTE", "PREPARE",
        "EXPLAIN", "CREATE", "ALTER", "DROP", "TRUNCATE", "GRANT", "REVOKE", "COMMENT", "REFRESH", "VACUUM",
        "ANALYZE", "LISTEN", "UNLISTEN", "NOTIFY", "START", "RESET", "DISCARD",
    ]
)
# fmt: on


def operation_of(event: TraceEvent) -> str:
    """SELECT, INSERT, ... of a "query", "batch" or "copy" that has ended; "other" if that isn't plain to see."""
    if event.name == "copy":
        return "COPY"
    statement = event.statement
    if isinstance(statement, bytes):
        statement = statement[:40].decode(errors="replace")
    elif not isinstance(statement, str):  # psycopg2.sql
        statement = (event.cursor.statusmessage if event.error is None else None) or ""
    word = _WORD.match(statement)
    name = word[1].upper() if word else OTHER
    return name if name in _NAMES else OTHER
