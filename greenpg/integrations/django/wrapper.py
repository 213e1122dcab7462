"""`PooledWrapper`: what makes one of Django's PostgreSQL backends borrow its connections from a pool.

Django's life of a connection stays: one is taken at the first query, and `close()`, at the end of a request, gives it
back. What Django does for psycopg 3's pool is done here for all of its versions.
"""

from __future__ import annotations

import _thread
import functools
from typing import Any

import psycopg2.extras
import psycopg2.sql
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, ProgrammingError
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.db.utils import DatabaseErrorWrapper

from ...errors import PoolClosed, is_interruption
from ...hubs import hub
from ...pool.leased.connection import LeasedConnection
from ...pool.pool import ConnectionPool
from .checks import DatabaseValidation
from .clusters import cluster_settings, make_pool
from .creation import DatabaseCreation
from .green import ensure_green, renew_connections
from .loan import Loan, reclaim
from .pools import close_pools, find_pool, is_known, key_of, leases_by_transaction, pool_options

#: Entries of OPTIONS that are neither libpq's nor psycopg2's.
_NOT_PARAMETERS = ("pool", "server_side_binding", "replica_of", "cluster")


class ErrorWrapper(DatabaseErrorWrapper):
    """Django's, which leaves alone what was thrown into a wait, whatever its class is."""

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if exc_value is None or not is_interruption(exc_value):
            super().__exit__(exc_type, exc_value, traceback)


class PooledWrapper(BaseDatabaseWrapper):
    """Goes before Django's `DatabaseWrapper` among the bases."""

    creation_class = DatabaseCreation
    validation_class = DatabaseValidation

    settings_dict: dict[str, Any]
    #: The alias of the primary, of an alias for replicas.
    primary_alias: str | None = None
    _loan: Loan | None = None
    isolation_level: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        renew_connections()
        super().__init__(*args, **kwargs)

    # -- the pool

    @property
    def pool(self) -> ConnectionPool | None:
        """The pool that the settings lead to, made if need be; None without one. Doesn't suspend."""
        return self._pool_for(None)

    def close_pool(self) -> None:
        """Close it: the next query makes another one. Suspends for what is just being connected."""
        pool = self.pool
        if pool is not None:
            close_pools(lambda _, other: other is pool)

    def _pool_for(self, parameters: dict[str, Any] | None) -> ConnectionPool | None:
        settings = self.settings_dict
        options = None if self.alias == NO_DB_ALIAS else pool_options(settings)
        if options is None:
            return None
        ensure_green()
        reclaim()
        if parameters is None:
            parameters = self.get_connection_params()
        role, level = settings["OPTIONS"].get("assume_role"), self._isolation_level()
        own = role, level, settings["CONN_HEALTH_CHECKS"], cluster_settings(self.alias)
        return find_pool(key_of(self.alias, parameters, options, own), lambda: self._make_pool(parameters, options))

    def _make_pool(self, parameters: dict[str, Any], options: dict[str, Any]) -> ConnectionPool:
        if self.settings_dict["CONN_HEALTH_CHECKS"]:
            options.setdefault("check", ConnectionPool.check_connection)
        options.setdefault("name", f"django {self.alias}")
        configure = functools.partial(
            _configure,
            time_zone=self.timezone_name,
            role=self.settings_dict["OPTIONS"].get("assume_role"),
            isolation_level=self._isolation_level(),
            further=options.pop("configure", None),
        )
        try:
            return make_pool(self.alias, {**parameters, "autocommit": True}, {**options, "configure": configure})
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f'OPTIONS["pool"]: {error}') from error

    def _isolation_level(self) -> Any:
        """That of the options; None if they have none."""
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        if level is None:
            return None
        try:
            return IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} specified. Use one of the psycopg2.extensions."
                "ISOLATION_LEVEL constants."
            ) from None

    # -- connections

    def get_connection_params(self) -> dict[str, Any]:
        """libpq's and psycopg2's parameters, without what is greenpg's."""
        settings = self.settings_dict
        options = dict(settings["OPTIONS"])
        if options.get("server_side_binding"):
            raise ImproperlyConfigured(
                "OPTIONS['server_side_binding'] is psycopg 3's: greenpg's engine runs on psycopg2, which fills the "
                "parameters in on the client. Leave it out"
            )
        for name in _NOT_PARAMETERS:
            options.pop(name, None)
        self.settings_dict = {**settings, "OPTIONS": options}  # which all tasks share
        try:
            parameters: dict[str, Any] = super().get_connection_params()
        finally:
            self.settings_dict = settings
        return parameters

    def ensure_connection(self) -> None:
        """Borrow one if there's none; not within a block whose connection is gone (Django before 5.1 would)."""
        if self.connection is None and self.in_atomic_block and self.closed_in_transaction:
            raise ProgrammingError("Cannot open a new connection in an atomic block.")
        loan = self._loan
        if loan is not None and loan.holds_nothing and not is_known(loan.pool) and not self.in_atomic_block:
            self.close()  # its pool has been closed: there is another one to be had
        if self.connection is None and renew_connections(self):
            self._thread_ident = _thread.get_ident()
        super().ensure_connection()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow one from the pool; without a pool, connect as Django does. Suspends."""
        pool = self._pool_for(conn_params)
        if pool is None:
            return super().get_new_connection(conn_params)
        self._let_go()
        level = self._isolation_level()
        self.isolation_level = IsolationLevel.READ_COMMITTED if level is None else level
        leases = leases_by_transaction(self.settings_dict)
        loan = Loan(pool, LeasedConnection(pool) if leases else self._borrow(pool, conn_params), self)
        self._loan = loan
        try:
            if leases:
                loan.conn.autocommit = True  # as all of the pool's
            _set_time_zone(loan.conn, self.timezone_name)
        except BaseException:
            self._let_go()
            raise
        return loan.conn

    def _borrow(self, pool: ConnectionPool, parameters: dict[str, Any]) -> Any:
        try:
            return pool.getconn(take_back=False)
        except PoolClosed:
            if is_known(pool):
                raise
            # Somebody has closed it since we looked: there is another one to be had.
            other = self._pool_for(parameters)
            assert other is not None
            return other.getconn(take_back=False)

    def init_connection_state(self) -> None:
        """The pool has configured the connection; without a pool, Django does."""
        if self._loan is None:
            super().init_connection_state()
        else:
            BaseDatabaseWrapper.init_connection_state(self)

    def ensure_timezone(self) -> bool:
        """Set the connection's time zone to what the settings say. Suspends if it isn't that."""
        return self.connection is not None and _set_time_zone(self.connection, self.timezone_name)

    def create_cursor(self, name: str | None = None) -> Any:
        """A cursor of psycopg2's; it is closed when the connection goes back."""
        cursor = super().create_cursor(name)
        if self._loan is not None:
            self._loan.cursors.add(cursor)
        return cursor

    def close_if_health_check_failed(self) -> None:
        """Without a pool only: a pool lends none that doesn't work."""
        if self._loan is None:
            super().close_if_health_check_failed()

    # -- their end

    def _close(self) -> None:
        if self._loan is None:
            super()._close()
            return
        self.connection = None  # first of all: giving it back may be interrupted
        with self.wrap_database_errors:
            self._let_go()

    def _let_go(self) -> None:
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.end()

    def lost_its_task(self, loan: Loan) -> bool:
        """The task that has borrowed the connection has ended, without `close()`. True: it may go back. In the hub."""
        if self.allow_thread_sharing:
            return False  # LiveServerTestCase's: other tasks go on with it
        self.lost_its_connection(loan)
        return True

    def lost_its_connection(self, loan: Loan) -> None:
        """Forget the connection, which is somebody else's business now."""
        if loan is not self._loan:
            return
        self.connection = self._loan = None
        if self.in_atomic_block:
            self.closed_in_transaction = self.needs_rollback = True

    def __del__(self) -> None:
        if self._loan is not None and self._loan.belongs_to(self):
            self._loan.end_soon()

    # -- tasks and errors

    @functools.cached_property
    def wrap_database_errors(self) -> ErrorWrapper:
        """Makes Django's errors of psycopg2's."""
        return ErrorWrapper(self)

    def validate_thread_sharing(self) -> None:
        """Raise unless the wrapper is the running task's own, or has been shared."""
        try:
            super().validate_thread_sharing()
        except DatabaseError:
            if hub().name == "threads":
                raise
            raise DatabaseError(
                f"DatabaseWrapper objects created in a {hub().name} task can only be used in that same task: the one "
                f"with alias {self.alias!r} isn't {hub().describe(hub().current())}'s. Ask django.db.connections for a "
                "connection in each task, instead of handing one over"
            ) from None


def _configure(conn: Any, *, time_zone: str | None, role: str | None, isolation_level: Any, further: Any) -> None:
    """A new connection of a pool. Suspends."""
    # As Django's: what JSONField decodes needn't be decoded before.
    psycopg2.extras.register_default_jsonb(conn_or_curs=conn, loads=lambda value: value)
    _set_time_zone(conn, time_zone)
    with conn.cursor() as cursor:
        if role:
            cursor.execute(psycopg2.sql.SQL("SET ROLE {}").format(psycopg2.sql.Identifier(role)))
        if isolation_level is not None:
            # Not psycopg2's attribute: that takes another round trip whenever autocommit is turned off.
            name = isolation_level.name.replace("_", " ")
            cursor.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {name}")
    if further is not None:
        further(conn)


def _set_time_zone(conn: Any, name: str | None) -> bool:
    """Returns whether there was something to do. The server tells each change, so that asking costs nothing."""
    if not name or conn.info.parameter_status("TimeZone") == name:
        return False
    with conn.cursor() as cursor:
        cursor.execute("SELECT set_config('TimeZone', %s, false)", [name])
    return True
