"""The engine: Django loads `DatabaseWrapper` from here."""

from __future__ import annotations

from .driver import choose_psycopg2

choose_psycopg2()

from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper  # noqa: E402

from .replica import ClusteredWrapper  # noqa: E402


class DatabaseWrapper(ClusteredWrapper, PostgreSQLWrapper):
    """Django's PostgreSQL backend, its connections lent by a pool of greenpg's."""
