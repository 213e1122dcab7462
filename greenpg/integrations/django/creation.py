"""Test databases: no pool may hold a connection to a database that is to be copied or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.backends.postgresql.creation import DatabaseCreation as PostgreSQLCreation
from psycopg2.extensions import parse_dsn

from ...pool.pool import ConnectionPool
from .clusters import IS_MIRROR
from .pools import close_pools


class DatabaseCreation(PostgreSQLCreation):
    """Django's, behind closed pools."""

    def set_as_test_mirror(self, primary_settings_dict: Any) -> None:
        """Tests have one server: this alias reads on the primary's connection, also within its transaction."""
        super().set_as_test_mirror(primary_settings_dict)
        self.connection.settings_dict["TEST"][IS_MIRROR] = True

    def _clone_test_db(self, suffix: Any, verbosity: Any, keepdb: Any = False) -> None:
        self.connection.close()
        _close_pools_to(self.connection.settings_dict["NAME"])
        super()._clone_test_db(suffix, verbosity, keepdb)

    def _destroy_test_db(self, test_database_name: Any, verbosity: Any) -> None:
        _close_pools_to(test_database_name)
        super()._destroy_test_db(test_database_name, verbosity)


def _close_pools_to(database: str) -> None:
    close_pools(lambda _, pool: _leads_to(pool, database))


def _leads_to(pool: ConnectionPool, database: str) -> bool:
    if isinstance(pool.kwargs, Mapping) and pool.kwargs.get("dbname") == database:
        return True
    return isinstance(pool.conninfo, str) and parse_dsn(pool.conninfo).get("dbname") == database  # a cluster's
