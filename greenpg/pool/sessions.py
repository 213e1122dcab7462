"""Session hygiene: takes back what one borrower of a connection could leave to the next."""

from __future__ import annotations

from typing import Any

#: What DISCARD ALL does, but for the plans of prepared statements; DISCARD ALL itself can't share a round trip. And the
#: setting that psycopg2 makes when it connects.
SESSION_RESET = """\
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; \
SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; SET datestyle TO 'ISO'"""


def remember_session(conn: Any) -> None:
    """Note what psycopg2 keeps of a session, for `reset_session()`. Called on a new connection."""
    conn._initial_session = conn.autocommit, conn.encoding, conn.cursor_factory, conn.statement_deadline


def reset_session(conn: Any) -> None:
    """Take back what the session has changed, at the server and in psycopg2.

    Suspends, mostly for one round trip; not if the ride that ends here has reset the server's part.
    """
    autocommit, encoding, cursor_factory, deadline = conn._initial_session
    is_clean, conn._is_session_clean = conn._is_session_clean, False
    if not is_clean:  # psycopg2 allows neither other settings nor another encoding in a ride
        conn.autocommit = True
        with conn.cursor() as cur:
            cur.execute(SESSION_RESET)
        if conn.encoding != encoding:
            conn.set_client_encoding(encoding)
        conn.set_session(isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT", autocommit=autocommit)
        conn._has_session_settings = False
    conn.cursor_factory = cursor_factory
    if conn.statement_deadline != deadline:
        conn.statement_deadline = deadline
    conn.notices, conn.notifies = [], []
