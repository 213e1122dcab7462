"""`Cluster`: a primary and its replicas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..connection.connect.credentials import ConnectKwargs, Conninfo
from ..connection.connection import Connection
from ..connection.cursor import Cursor
from ..connection.guarded_cursor import Params, Query
from ..connection.transaction import TransactionOptions
from ..hubs import hub
from ..pool.failover import doubt_all
from ..pool.options import ConnectionCallback
from ..pool.pool import ConnectionPool
from .nodes import LOOK_TIMEOUT, Node, conninfo_for, hosts_of, parameters_of
from .replicas import Replicas
from .routing import Routing, Strategy
from .tokens import Tokens, token_of
from .topology import Topology

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Unpack

T = TypeVar("T")

#: Connections to each replica, where no size is named.
_DEFAULT_SIZE = 4

_cluster_numbers = itertools.count(1)


class Cluster:
    """A primary and its replicas: `cluster.primary` is a pool, `cluster.replica` the pools of all replicas as one.

        cluster = greenpg.Cluster("host=pg1,pg2,pg3 dbname=app", max_size=10)
        with cluster.transaction() as conn: ...                  # on the primary
        with cluster.transaction(readonly=True) as conn: ...     # on a replica

    The servers are asked what they are, again and again; who is to be primary isn't decided here. What a task has
    written it reads from a replica only if that has replayed it, else from the primary: see `token`.

    - `conninfo`: a connection string with all hosts, or a function that returns it, as a pool's (also called when the
      cluster is made: for the hosts); `kwargs`: more of it.
    - `max_lag` (10): a replica that is more seconds behind isn't read from; None: any is.
    - `strategy` ("round-robin"): which of several replicas is taken; "least-busy": the one with the fewest connections
      in use.
    - `fallback` (True): where no replica can be read from, the primary is; False: a reader waits for one then, and gets
      a `PoolTimeout`.
    - `interval` (1): seconds between two looks at each server, for which it has a connection of its own.
    - `replica_options` (None): pool options that are others for the replicas.
    - `name` (None: "cluster-N"): for messages. Logger: `greenpg.cluster`.
    - `pool_options`: `ConnectionPool`'s, for the primary's pool and that of each replica; `min_size` is 0 for the
      latter, and `fail_fast` True, unless `replica_options` say otherwise.

    It opens at its first use. Raises ValueError for values that make no sense, `psycopg2.ProgrammingError` for a
    malformed conninfo. All methods may be called from any task of any native thread.
    """

    def __init__(
        self,
        conninfo: Conninfo,
        *,
        kwargs: ConnectKwargs | None = None,
        max_lag: float | None = 10.0,
        strategy: Strategy = "round-robin",
        fallback: bool = True,
        interval: float = 1.0,
        replica_options: Mapping[str, Any] | None = None,
        name: str | None = None,
        **pool_options: Any,
    ) -> None:
        if strategy not in ("round-robin", "least-busy"):
            raise ValueError(f'strategy must be "round-robin" or "least-busy", not {strategy!r}')
        if max_lag is not None and not max_lag >= 0:
            raise ValueError(f"max_lag can't be negative: {max_lag!r}")
        if not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        self.name = name or f"cluster-{next(_cluster_numbers)}"
        #: Seconds by which a replica that is read from may be behind; None: any number.
        self.max_lag = max_lag
        self._tokens = tokens = Tokens()
        self._connect_by = conninfo, kwargs
        self._replica_options = {**pool_options, "min_size": 0, "fail_fast": True, **(replica_options or {})}
        self._replica_options.setdefault("max_size", pool_options.get("min_size", _DEFAULT_SIZE))
        configure: ConnectionCallback | None = pool_options.get("configure")

        def configure_primary(conn: Connection) -> None:
            conn._tell_commits_to(tokens.note)
            if configure is not None:
                configure(conn)

        #: The pool of connections to the primary.
        self.primary: ConnectionPool[Connection] = ConnectionPool(
            **pool_options
            | conninfo_for(conninfo, kwargs, {"target_session_attrs": "read-write"})
            | {"configure": configure_primary, "name": f"{self.name} primary"}
        )
        core = self.primary._core

        def new_primary() -> None:
            doubt_all(core)
            pool = core.pool()
            if pool is not None and not core.is_closed:
                hub().spawn(pool.check)  # type: ignore[attr-defined]

        nodes = [self._node(parameters_of(host), host) for host in hosts_of(conninfo, kwargs)]
        self._topology = Topology(nodes, interval, max_lag, new_primary)
        self._routing = Routing(self.name, self._topology, tokens, self.primary, strategy, fallback)
        #: The pools of connections to the replicas, as one.
        self.replica = Replicas(self._routing)

    def _node(self, changes: dict[str, str], host: Any) -> Node:
        where = conninfo_for(*self._connect_by, changes)
        label = f"{self.name} {host.name or host.address}:{host.port or 5432}"
        pool: ConnectionPool[Connection] = ConnectionPool(**self._replica_options | where | {"name": label})
        look_pool: ConnectionPool[Connection] = ConnectionPool(
            where["conninfo"],
            min_size=0,
            max_size=1,
            name=f"{label} (looks)",
            fail_fast=True,
            timeout=LOOK_TIMEOUT,
            statement_deadline=LOOK_TIMEOUT,
            reconnect_timeout=0,
        )
        return Node(host, pool, look_pool)

    # -- transactions

    def transaction(
        self, *, timeout: float | None = None, **options: Unpack[TransactionOptions]
    ) -> AbstractContextManager[Connection, bool | None]:
        """`with cluster.transaction() as conn:` a transaction on the primary; with `readonly=True` on a replica.

        Options and behaviour of `ConnectionPool.transaction()`. Suspends.
        """
        if options.get("readonly"):
            return self.replica.transaction(timeout=timeout, **options)
        return self.primary.transaction(timeout=timeout, **options)

    def cursor(
        self, *, readonly: bool = False, timeout: float | None = None
    ) -> AbstractContextManager[Cursor, bool | None]:
        """`with cluster.cursor() as cur:` as `ConnectionPool.cursor()`; with `readonly` on a replica."""
        return self.replica.cursor(timeout=timeout) if readonly else self.primary.cursor(timeout=timeout)

    def run(
        self,
        function: Callable[[Connection], T],
        *,
        attempts: int = 5,
        timeout: float | None = None,
        **options: Unpack[TransactionOptions],
    ) -> T | None:
        """`function(conn)` in a transaction, as `ConnectionPool.run()`; with `readonly=True` on a replica. Suspends."""
        pool = self._reader(bool(options.get("readonly")))
        result: T | None = pool.run(function, attempts=attempts, timeout=timeout, **options)
        return result

    # -- single statements

    def execute(self, query: Query, vars: Params = None, *, timeout: float | None = None) -> int:
        """Run one statement on the primary, committed by itself. Returns the number of rows. Suspends."""
        return self.primary.execute(query, vars, timeout=timeout)

    def fetchone(
        self, query: Query, vars: Params = None, *, readonly: bool = False, timeout: float | None = None
    ) -> Any:
        """The first row of a statement, None if there is none; with `readonly` from a replica. Suspends."""
        return self._reader(readonly).fetchone(query, vars, timeout=timeout)

    def fetchall(
        self, query: Query, vars: Params = None, *, readonly: bool = False, timeout: float | None = None
    ) -> Any:
        """All rows of a statement; with `readonly` from a replica. Suspends."""
        return self._reader(readonly).fetchall(query, vars, timeout=timeout)

    def fetchval(
        self, query: Query, vars: Params = None, *, readonly: bool = False, timeout: float | None = None
    ) -> Any:
        """The first column of the first row, None if there is none; with `readonly` from a replica. Suspends."""
        return self._reader(readonly).fetchval(query, vars, timeout=timeout)

    def _reader(self, readonly: bool) -> Any:
        return self.replica if readonly else self.primary

    # -- reading one's own writes

    @property
    def token(self) -> str | None:
        """How far the primary's log had come after the running task's last write, None if it has written nothing.

        Noted after each COMMIT on the primary's pool, whoever calls it; after what was executed in autocommit it's
        asked for when it's needed: here, which suspends then, or before a read. Passed on (in a message, a cookie) and
        assigned in another task, it makes that read what this one has written; None makes it read anything. ValueError
        for what isn't a token.
        """
        self._routing.settle()
        if self._tokens.is_unknown:
            self._tokens.note(self.primary.fetchval("SELECT pg_catalog.pg_current_wal_insert_lsn()::text"))
        return token_of(self._tokens.position) if self._tokens.position else None

    @token.setter
    def token(self, token: str | None) -> None:
        if token is None:
            self._tokens.forget()
        else:
            self._tokens.note(token)

    # -- life

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """What is known of each server: `host`, `role` ("primary", "replica", None: out), `lag` (seconds), `position`,
        `error`, `in_rotation`. Doesn't suspend."""
        readable = self._topology.replicas()
        return [
            {
                "host": str(node),
                "role": node.role,
                "lag": node.lag,
                "position": token_of(node.position),
                "error": node.error,
                "in_rotation": node in readable,
            }
            for node in self._topology.nodes
        ]

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start to connect, and to look at the servers; with `wait`, suspend until the primary's pool is filled and
        each server was looked at. Raises as `ConnectionPool.open()`."""
        self.primary.open(wait, timeout)
        self._topology.ensure_watching()
        if wait:
            self._topology.wait_for_looks(hub().now() + timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Close all pools, and look at nothing any more. Suspends as `ConnectionPool.close()`."""
        self._topology.stop()
        self.primary.close(timeout)
        for node in self._topology.nodes:
            node.close(timeout)

    @property
    def closed(self) -> bool:
        """Whether `close()` was called. Doesn't suspend."""
        return self._topology.is_stopped

    def __enter__(self) -> Cluster:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        topology = getattr(self, "_topology", None)
        if topology is not None:
            topology.is_stopped = True  # without its mutex, which whoever runs now may hold

    def __repr__(self) -> str:
        nodes = ", ".join(f"{node} {node.role or 'out'}" for node in self._topology.nodes)
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r}: {nodes}>"
