"""`ReplicaPool`: SQLAlchemy's pool interface to the replicas of a `greenpg.Cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection as SQLAlchemyConnection
from sqlalchemy import exc

from ...cluster.cluster import Cluster
from ...pool.core import PoolCore
from ...pool.slot import Slot
from .pool import GreenpgPool

_only_replicas: ContextVar[bool] = ContextVar("greenpg_only_replicas", default=False)


@contextmanager
def only_replicas() -> Iterator[None]:
    """Within the block the running task checks out no connection to the primary, but gets `NoReplica`."""
    before = _only_replicas.set(True)
    try:
        yield
    finally:
        _only_replicas.reset(before)


class ReplicaPool(GreenpgPool):
    """For the engine of a cluster's replicas: each checkout goes where `cluster.replica` would go.

    `create_cluster_engines()` makes engines with it. Sizes and timeouts are the cluster's own.
    Its methods don't suspend, but for `connect()` and what gives connections back.
    """

    def __init__(self, creator: Any = None, cluster: Cluster | None = None, **kw: Any) -> None:
        if cluster is None:
            raise exc.ArgumentError("ReplicaPool needs a greenpg.Cluster, as cluster=...")
        super().__init__(creator, connection_pool=cluster.primary, **kw)
        self._cluster = cluster
        self._options = {"cluster": cluster}

    def _take(self) -> Slot:
        conn: Any = self._cluster._routing.borrow(None, only_replicas=_only_replicas.get())
        slot: Slot = conn._lender
        return slot

    def is_new_enough(self, connection: SQLAlchemyConnection) -> bool:
        """Whether what it leads to has replayed what the running task has written, as far as is known. Doesn't suspend.

        The connection is one of the engine's. False also if its server isn't to be read from any more.
        """
        record: Any = getattr(connection.connection, "_connection_record", None)
        return record is not None and self._cluster._routing.lends_what_is_new_enough(record.core)

    # -- all of them together

    @property
    def _cores(self) -> list[PoolCore]:
        return [node.pool._core for node in self._cluster._topology.nodes]

    def dispose(self) -> None:
        """Close the idle connections to replicas now, those that are checked out when they come back."""
        for core in self._cores:
            with core.mutex:
                idle = core.drain()
            for slot in idle:
                core.close_connection(slot, slot.conn)

    def size(self) -> int:
        """How many connections to replicas there may be."""
        return sum(core.ledger.max_size for core in self._cores)

    def checkedin(self) -> int:
        """How many connections to replicas are idle."""
        return sum(len(core.ledger.idle) for core in self._cores)

    def checkedout(self) -> int:
        """How many connections to replicas are lent, or being reset."""
        return sum(core.ledger.lent_count + len(core.ledger.resetting) for core in self._cores)

    def overflow(self) -> int:
        """How many connections to replicas there are above `size()`: a negative number."""
        return sum(core.ledger.size for core in self._cores) - self.size()

    def stats(self) -> dict[str, int]:
        """`ConnectionPool.get_stats()`, the sums of all replicas."""
        return self._cluster.replica.get_stats()
