"""Session hygiene: takes back what one borrower of a connection could leave to the next."""

from __future__ import annotations

from typing import Any

#: What DISCARD ALL does, but for the plans of prepared statements; DISCARD ALL itself can't share a round trip. And the
#: setting that psycopg2 makes when it connects.
_SESSION_RESET = """\
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; \
SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; SET datestyle TO 'ISO'"""


def reset_session(conn: Any) -> None:
    """Take back what the session has changed at the server. Suspends for a round trip.

    What psycopg2 keeps has been put back before, the client encoding too: RESET ALL gives it the value that it had when
    the connection was made, and psycopg2 doesn't look.
    """
    was_autocommit = conn.autocommit
    if not was_autocommit:
        conn.autocommit = True
    try:
        with conn.cursor() as cur:
            cur.execute(_SESSION_RESET)
    finally:
        if not was_autocommit and not conn.closed:
            conn.autocommit = False
