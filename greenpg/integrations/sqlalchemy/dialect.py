"""The dialect `postgresql+greenpg`: psycopg2's, on greenpg's connections and pool."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import psycopg2
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import Engine
from sqlalchemy.engine.url import URL

from ...connection.connect.connecting import connect
from ...connection.connection import Connection
from ...connection.patching import psycopg2_connects_green
from ...pool.health import close_quietly, is_alive
from ...pool.leased.connection import LeasedConnection
from .keeping import keep_connection
from .pool import GreenpgPool
from .record import Record


class PGDialect_greenpg(PGDialect_psycopg2):  # named as SQLAlchemy names its own
    """psycopg2's dialect, parameter for parameter. What is different is the driver's: see docs/sqlalchemy.md.

    SQLAlchemy calls its methods; those named `do_...` suspend.
    """

    driver = "greenpg"
    supports_statement_cache = True
    poolclass = GreenpgPool

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        """psycopg2: its errors and types are greenpg's."""
        return psycopg2

    @classmethod
    def get_pool_class(cls, url: URL) -> type[GreenpgPool]:
        """greenpg's pool."""
        return GreenpgPool

    @classmethod
    def load_provisioning(cls) -> None:
        """What SQLAlchemy's test suite needs to know of PostgreSQL."""
        from sqlalchemy.dialects.postgresql import provision  # noqa: F401

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """Let connections survive kills and timeouts."""
        super().engine_created(engine)
        event.listen(engine.dialect, "handle_error", keep_connection)

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """A `greenpg.Connection`. Suspends."""
        dbapi: Any = self.loaded_dbapi
        if dbapi is psycopg2 and not psycopg2_connects_green():
            return connect(*cargs, **cparams)
        return dbapi.connect(*cargs, **cparams)  # which a tracing library may have wrapped

    def do_ping(self, dbapi_connection: Any) -> bool:
        """A look at the socket: no round trip, doesn't suspend. What is wrapped in something else gets a real ping."""
        if isinstance(dbapi_connection, LeasedConnection):
            return True  # its pool looks when it leases one
        if not isinstance(dbapi_connection, Connection):
            return bool(super().do_ping(dbapi_connection))
        if not is_alive(dbapi_connection):
            raise psycopg2.OperationalError("the server has closed the connection")
        return True

    def do_close(self, dbapi_connection: Any) -> None:
        """Close it; its pool may ask when its server process has ended."""
        if isinstance(dbapi_connection, Connection):
            close_quietly(dbapi_connection)
        else:
            super().do_close(dbapi_connection)

    do_terminate = do_close

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll back, unless the connection has been garbage collected: then its pool does."""
        if not _is_abandoned(dbapi_connection):
            super().do_rollback(dbapi_connection)

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit, unless the connection has been garbage collected: then its pool does."""
        if not _is_abandoned(dbapi_connection) and not _has_ended(dbapi_connection):
            super().do_commit(dbapi_connection)


def _has_ended(fairy: Any) -> bool:
    """A ClusterSession has ended the transaction, which was a replica's, before."""
    return getattr(getattr(fairy, "_connection_record", None), "has_ended", False)


def _is_abandoned(fairy: Any) -> bool:
    """Garbage is collected wherever it happens to be: in the hub, too, where nothing can wait."""
    record = getattr(fairy, "_connection_record", None)
    return isinstance(record, Record) and record.is_abandoned
