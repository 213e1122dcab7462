"""`Replicas`: what borrowers call of a pool, over the pools of all replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg2 import extensions

from ..connection.connection import Connection
from ..connection.cursor import Cursor
from ..connection.guarded_cursor import Params, Query
from ..connection.transaction import TransactionOptions
from ..pool.repeating import run_repeatedly
from .routing import ReadBlock, Routing

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Replicas:
    """`cluster.replica`: the pools of all replicas as one, with a pool's methods for borrowers. Its transactions are
    read-only.

    Each call goes to a replica that can be reached, isn't more than `max_lag` behind, and has what the running task has
    written; if there is none, to the primary, or, without `fallback`, it waits for one. Errors are a pool's.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self._routing.name} replica"

    def get_stats(self) -> dict[str, int]:
        """As `ConnectionPool.get_stats()`, the sums of all replicas. Doesn't suspend."""
        total: dict[str, int] = {}
        for node in self._routing.topology.nodes:
            for name, count in node.pool.get_stats().items():
                total[name] = total.get(name, 0) + count
        return total

    def getconn(self, timeout: float | None = None) -> Connection:
        """Borrow a connection, as `ConnectionPool.getconn(take_back=False)`; it has what the running task has written
        until now. To be given back with `putconn()`. Suspends."""
        return self._routing.borrow(timeout)

    def putconn(self, conn: extensions.connection) -> None:
        """Give back what `getconn()` has lent, as `ConnectionPool.putconn()`. Suspends only for a rollback."""
        self._routing.give_back(conn)

    def connection(self, timeout: float | None = None) -> ReadBlock[Connection]:
        """`with cluster.replica.connection() as conn:` as `ConnectionPool.connection()`."""
        return ReadBlock(self._routing, lambda pool: pool.connection(timeout), timeout)

    def cursor(self, cursor_factory: Any = None, *, timeout: float | None = None) -> ReadBlock[Cursor]:
        """`with cluster.replica.cursor() as cur:` as `ConnectionPool.cursor()`."""
        return ReadBlock(self._routing, lambda pool: pool.cursor(cursor_factory, timeout=timeout), timeout)

    def transaction(
        self, *, timeout: float | None = None, **options: Unpack[TransactionOptions]
    ) -> ReadBlock[Connection]:
        """`with cluster.replica.transaction() as conn:` as `ConnectionPool.transaction()`, and read-only."""
        options["readonly"] = True
        return ReadBlock(self._routing, lambda pool: pool.transaction(timeout=timeout, **options), timeout)

    def run(
        self,
        function: Callable[[Connection], T],
        *,
        attempts: int = 5,
        timeout: float | None = None,
        **options: Unpack[TransactionOptions],
    ) -> T | None:
        """`function(conn)` in a read-only transaction, as `ConnectionPool.run()`; another attempt may go elsewhere."""

        def make_block() -> ReadBlock[Connection]:
            return self.transaction(timeout=timeout, **options)

        return run_repeatedly(self._routing.primary._core, function, attempts, make_block, is_readonly=True)

    def execute(self, query: Query, vars: Params = None, *, timeout: float | None = None) -> int:
        """As `ConnectionPool.execute()`. Suspends."""
        rows: int = self._routing.run_one_shot("execute", query, vars, timeout)
        return rows

    def fetchone(
        self, query: Query, vars: Params = None, *, cursor_factory: Any = None, timeout: float | None = None
    ) -> Any:
        """As `ConnectionPool.fetchone()`. One round trip. Suspends."""
        return self._routing.run_one_shot("fetchone", query, vars, timeout, cursor_factory=cursor_factory)

    def fetchall(
        self, query: Query, vars: Params = None, *, cursor_factory: Any = None, timeout: float | None = None
    ) -> Any:
        """As `ConnectionPool.fetchall()`. One round trip. Suspends."""
        return self._routing.run_one_shot("fetchall", query, vars, timeout, cursor_factory=cursor_factory)

    def fetchval(self, query: Query, vars: Params = None, *, timeout: float | None = None) -> Any:
        """As `ConnectionPool.fetchval()`. One round trip. Suspends."""
        return self._routing.run_one_shot("fetchval", query, vars, timeout)
