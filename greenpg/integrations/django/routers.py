"""`ClusterRouter`: reads go to the replicas' alias, writes to the primary's."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from .clusters import replica_alias


class ClusterRouter:
    """For DATABASE_ROUTERS: reads go to the alias with `OPTIONS["replica_of"]`, writes to the one that it names.

    Within a transaction on the primary, `use_primary()` and tests, reads are the primary's. What the running task has
    written it reads in any case: the replicas' alias sees to that by itself, for each statement. Models, and objects,
    of further databases are left to the other routers, which come before this one. `primary` ("default"): the alias of
    the primary; a subclass may name another one. Nothing is migrated on replicas. Its methods don't suspend.
    """

    primary = DEFAULT_DB_ALIAS

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """The alias to read from."""
        replica = replica_alias(self.primary)
        if not self._is_ours(hints.get("instance"), replica):
            return None
        return self.primary if replica is None or connections[replica].is_better_read_on_primary else replica

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        """The alias to write to."""
        return self.primary if self._is_ours(hints.get("instance"), replica_alias(self.primary)) else None

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        """True for objects of the cluster, wherever they were read."""
        replica = replica_alias(self.primary)
        return True if self._is_ours(obj1, replica) and self._is_ours(obj2, replica) else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """False on replicas."""
        return False if db == replica_alias(self.primary) else None

    def _is_ours(self, instance: Any, replica: str | None) -> bool:
        state = getattr(instance, "_state", None)
        return state is None or state.db in (None, self.primary, replica)
