"""`ClusteredWrapper`: an alias with `OPTIONS["replica_of"]` reads from replicas what the running task may read there.

Django's code names an alias explicitly where nobody has chosen it: `refresh_from_db()` of an object that came from a
replica does. So it isn't left to the router, but decided for each statement here: it goes over the connection to a
replica, or over the primary's.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS

from ...cluster.routing import NoReplica
from ...connection.cursor import TellingCursor
from .clusters import IS_MIRROR, find_cluster, replica_alias
from .pinning import is_pinned
from .wrapper import PooledWrapper

_OF_THE_PRIMARY = ("NAME", "USER", "PASSWORD", "HOST", "PORT")


class ClusteredWrapper(PooledWrapper):
    """Of an alias for replicas, of one for a primary, or of neither."""

    _only_replicas = False
    #: That has lent the present connection.
    _routing: Any = None

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(settings_dict, *args, **kwargs)
        self.primary_alias = settings_dict["OPTIONS"].get("replica_of") if self.alias != NO_DB_ALIAS else None
        if self.primary_alias is None:
            return
        if self.primary_alias not in connections.settings or self.primary_alias == self.alias:
            raise ImproperlyConfigured(
                f'OPTIONS["replica_of"] of {self.alias!r} must be the alias of its primary, not {self.primary_alias!r}'
            )
        of_primary = connections.settings[self.primary_alias]
        for name in _OF_THE_PRIMARY:
            settings_dict[name] = settings_dict[name] or of_primary[name]
        if settings_dict["TEST"]["MIRROR"] is None:
            settings_dict["TEST"]["MIRROR"] = self.primary_alias

    @property
    def _primary(self) -> Any:
        return connections[self.primary_alias]

    @property
    def _cluster(self) -> Any:
        return find_cluster(self.primary_alias or "")

    def get_connection_params(self) -> dict[str, Any]:
        """libpq's and psycopg2's parameters; for replicas the primary's."""
        if self.primary_alias is not None:
            return self._primary.get_connection_params()  # type: ignore[no-any-return]
        parameters = super().get_connection_params()
        is_without_name = self.alias == NO_DB_ALIAS and "," in str(parameters.get("host", ""))
        if is_without_name or (self.alias != NO_DB_ALIAS and replica_alias(self.alias) is not None):
            parameters.setdefault("target_session_attrs", "read-write")
        return parameters

    # -- the pool

    def _pool_for(self, parameters: dict[str, Any] | None) -> Any:
        return super()._pool_for(parameters) if self.primary_alias is None else self._cluster.replica

    def _borrow(self, pool: Any, parameters: dict[str, Any]) -> Any:
        if self.primary_alias is None:
            return super()._borrow(pool, parameters)
        self._routing = self._cluster._routing
        return self._routing.borrow(None, only_replicas=self._only_replicas)

    def close_pool(self) -> None:
        """Close it, with all of the cluster's. Suspends for what is just being connected."""
        if self.primary_alias is None:
            super().close_pool()
        else:
            self._primary.close_pool()

    @cached_property
    def pg_version(self) -> int:
        """The server's version, as a number. Suspends the first time."""
        version: int = super().pg_version if self.primary_alias is None else self._primary.pg_version
        return version

    # -- where a statement goes

    def cursor(self) -> Any:
        """A cursor on a replica, or else on the primary. Suspends for a connection."""
        primary = self._stand_in()
        return super().cursor() if primary is None else _for_reading(primary.cursor())

    def chunked_cursor(self) -> Any:
        """A server-side cursor on a replica, or else on the primary. Suspends for a connection."""
        primary = self._stand_in()
        return super().chunked_cursor() if primary is None else _for_reading(primary.chunked_cursor())

    @property
    def is_better_read_on_primary(self) -> bool:
        """Whether what is read now is to be the primary's, whatever the replicas have. Doesn't suspend."""
        primary = self._primary
        is_in_transaction = primary.in_atomic_block or (primary.connection is not None and not primary.autocommit)
        return is_in_transaction or is_pinned() or self.settings_dict["TEST"].get(IS_MIRROR, False)

    def _stand_in(self) -> Any:
        """The primary's wrapper if that is to be read from, whose connection the task may have already; or None."""
        if self.primary_alias is None or self.in_atomic_block or (self.connection is not None and not self.autocommit):
            return None
        if self.is_better_read_on_primary:
            return self._primary
        if self.connection is not None and not self._is_readable():
            if self._has_open_cursors():
                return self._primary
            self.close()
        if self.connection is None:
            self._only_replicas = True
            try:
                self.ensure_connection()
            except NoReplica:
                return self._primary
            finally:
                self._only_replicas = False
        return None

    def _is_readable(self) -> bool:
        slot = None if self._loan is None or self._loan.conn is None else self._loan.conn._lender
        core = None if slot is None else slot.lent_by
        return core is not None and bool(self._routing.lends_what_is_new_enough(core))

    def _has_open_cursors(self) -> bool:
        return self._loan is not None and any(not cursor.closed for cursor in self._loan.cursors)


def _for_reading(cursor: Any) -> Any:
    """Marks one of the primary's: on a replica it couldn't write."""
    if isinstance(cursor.cursor, TellingCursor):
        cursor.cursor.only_reads = True
    return cursor
