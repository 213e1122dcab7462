"""Where a reading task goes: to a replica that is new enough, or to the primary."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import psycopg2
from psycopg2 import sql

from ..connection.connection import Connection
from ..connection.cursor import Cursor
from ..connection.guarded_cursor import Params, Query
from ..connection.lazy_begin import execute_alone
from ..driver import driver_status
from ..errors import PoolTimeout, TooManyRequests, is_interruption, safe_to_retry
from ..hubs import hub
from ..pool.core import PoolCore
from ..pool.pool import ConnectionPool
from .nodes import Node
from .tokens import Tokens, position_of, token_of
from .topology import Topology

logger = logging.getLogger("greenpg.cluster")

T = TypeVar("T")

Strategy = Literal["round-robin", "least-busy"]

_REPLAYED = "SELECT pg_catalog.pg_last_wal_replay_lsn()::text"
#: In front of a statement that is to be run only where enough was replayed: an error ends the message.
_GUARD = (
    "SELECT (CASE WHEN pg_catalog.pg_last_wal_replay_lsn() >= '{token}' THEN '0'"
    " ELSE 'greenpg: replayed ' || pg_catalog.pg_last_wal_replay_lsn()::text END)::int4;\n"
)
_BEHIND = "greenpg: replayed "
#: Seconds between two looks whether something has been replayed, or a replica is there.
_PAUSE = 0.02


class Routing:
    """Chooses, for the running task, and remembers what it has written."""

    def __init__(
        self,
        name: str,
        topology: Topology,
        tokens: Tokens,
        primary: ConnectionPool[Any],
        strategy: Strategy,
        falls_back: bool,
    ) -> None:
        self.name = name
        self.topology = topology
        self.tokens = tokens
        self.primary = primary
        self._strategy = strategy
        self._falls_back = falls_back
        self._turn = itertools.count()

    def deadline(self, timeout: float | None) -> float:
        return hub().now() + (self.primary.timeout if timeout is None else timeout)

    def settle(self) -> None:
        """Find out how far the running task has written, if that isn't known. Suspends.

        The primary is asked on the connection that looks at it: the task may hold the last one of its pool. If it can't
        be asked, no replica is read from.
        """
        primary = self.topology.primary
        if primary is not None and self.tokens.is_unknown:
            position = primary.log_position()
            if position is not None:
                self.tokens.note_position(position)

    def candidates(self) -> list[Node]:
        """Replicas that can be read from, the best first, those last that aren't known to be new enough."""
        nodes = self.topology.replicas()
        if self._strategy == "least-busy":
            nodes.sort(key=lambda node: node.load)
        elif nodes:
            first = next(self._turn) % len(nodes)
            nodes = nodes[first:] + nodes[:first]
        position = self.tokens.position
        if position:
            nodes = [node for node in nodes if node.is_worth_asking(position)]
            nodes.sort(key=lambda node: node.position < position)
        return nodes

    def each(self, timeout: float | None) -> Iterator[Node | None]:
        """The nodes to try one after the other, None for the primary, which is the last; without a fallback again and
        again, until the timeout. Suspends. Raises PoolTimeout."""
        deadline = self.deadline(timeout)
        self.topology.wait_for_looks(deadline)
        while True:
            if self.tokens.is_unknown and self.topology.replicas():
                self.settle()
            yield from self.candidates()
            if self._falls_back:
                yield None
                return
            if hub().now() + _PAUSE >= deadline:
                states = ", ".join(
                    f"{node} ({node.role or node.error or 'not looked at'}, {node.lag:.1f} s behind)"
                    for node in self.topology.nodes
                )
                raise PoolTimeout(f"no replica can be read from, and fallback is off: {states}")
            hub().sleep(_PAUSE)

    def is_new_enough(self, node: Node) -> bool:
        """As far as is known."""
        return node.position >= self.tokens.position

    def lends_what_is_new_enough(self, core: PoolCore) -> bool:
        """Whether a connection of this pool may be read from, as far as is known: a replica's, or the primary's."""
        node = next((node for node in self.topology.replicas() if node.pool._core is core), None)
        return core is self.primary._core or (node is not None and self.is_new_enough(node))

    def passes_on(self, node: Node, error: BaseException) -> bool:
        """Whether another server is to be tried after this error of getting a connection."""
        if is_interruption(error) or not safe_to_retry(error):
            return False
        if not isinstance(error, PoolTimeout | TooManyRequests):
            node.note_failure(error)  # type: ignore[arg-type]
        return True

    # -- single statements

    def run_one_shot(self, name: str, query: Query, vars: Params, timeout: float | None, **options: Any) -> Any:
        """The pool's method of that name. The question whether enough was replayed goes with the statement."""
        for node in self.each(timeout):
            if node is None:
                break
            guarded = query if self.is_new_enough(node) else self._guarded(query)
            try:
                return getattr(node.pool, name)(guarded, vars, timeout=timeout, **options)
            except psycopg2.Error as error:
                if not (self._is_behind(node, error) or self.passes_on(node, error)):
                    raise
        return getattr(self.primary, name)(query, vars, timeout=timeout, **options)

    def _guarded(self, query: Query) -> Query:
        guard = _GUARD.format(token=token_of(self.tokens.position))
        if isinstance(query, bytes):
            return guard.encode() + query
        if isinstance(query, str):
            return guard + query
        return sql.SQL(guard) + query

    def _is_behind(self, node: Node, error: psycopg2.Error) -> bool:
        _, found, replayed = str(error).partition(_BEHIND)
        if not found or error.pgcode != "22P02":
            return False
        node.note_replayed(position_of(replayed.split('"')[0]), self.tokens.position)
        return True

    # -- blocks

    def enter(
        self,
        make_block: Callable[[ConnectionPool[Any]], Any],
        timeout: float | None,
        only_replicas: bool = False,
    ) -> tuple[Any, Any]:
        """A block of a pool's, entered, and what that gave. Suspends; once more if it has to be asked how far a replica
        has come. `only_replicas`: NoReplica instead of a block on the primary."""
        for node in self.each(timeout):
            if node is None:
                break
            block = make_block(node.pool)
            try:
                entered = block.__enter__()
            except psycopg2.Error as error:
                if self.passes_on(node, error):
                    continue
                raise
            if self.is_new_enough(node) or self._has_replayed(node, block, entered):
                return block, entered
        if only_replicas:
            raise NoReplica
        block = make_block(self.primary)
        return block, block.__enter__()

    def borrow(self, timeout: float | None, only_replicas: bool = False) -> Connection:
        """A connection, lent by one of the pools. Suspends."""
        conn: Connection = self.enter(lambda pool: _Borrowing(pool, timeout), timeout, only_replicas)[1]
        return conn

    def _has_replayed(self, node: Node, block: Any, entered: Any) -> bool:
        """Ask. If it isn't so, or can't be asked, the block is left."""
        conn: Connection = entered if isinstance(entered, Connection) else entered.connection
        try:
            with conn.cursor(cursor_factory=Cursor) as cur:
                if driver_status.is_proven and conn._status_word is not None:
                    # Before the block's transaction begins, whose snapshot might be older than the answer.
                    execute_alone(conn, cur, _REPLAYED, None)
                else:
                    cur.execute(_REPLAYED)
                row: Any = cur.fetchone()
        except BaseException as error:
            block.__exit__(type(error), error, None)
            if isinstance(error, psycopg2.Error) and not is_interruption(error):
                return False
            raise
        if row[0] is not None:
            node.note_replayed(position_of(row[0]), self.tokens.position)
        if self.is_new_enough(node):
            return True
        block.__exit__(None, None, None)
        return False

    def give_back(self, conn: Any) -> None:
        """What `borrow()` has lent. Suspends as `putconn()`; raises ValueError for what isn't one of them."""
        slot = getattr(conn, "_lender", None)
        pools = [self.primary, *(node.pool for node in self.topology.nodes)]
        lent_by = None if slot is None else slot.lent_by
        next((pool for pool in pools if pool._core is lent_by), self.primary).putconn(conn)


class NoReplica(Exception):
    """No replica can be read from; for callers that know what to do then."""


class _Borrowing:
    """A connection that is kept when all goes well."""

    def __init__(self, pool: ConnectionPool[Any], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __enter__(self) -> Connection:
        conn: Connection = self._pool.getconn(self._timeout, take_back=False)
        self._conn = conn
        return conn

    def __exit__(self, *exc_info: object) -> None:
        self._pool.putconn(self._conn)


class ReadBlock(Generic[T]):
    """`with` a block of whichever pool is chosen when it is entered."""

    __slots__ = ("_block", "_make_block", "_routing", "_timeout")

    def __init__(
        self, routing: Routing, make_block: Callable[[ConnectionPool[Any]], Any], timeout: float | None
    ) -> None:
        self._routing = routing
        self._make_block = make_block
        self._timeout = timeout

    def __enter__(self) -> T:
        self._block, entered = self._routing.enter(self._make_block, self._timeout)
        return entered  # type: ignore[no-any-return]

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(exc_type, exc, traceback)  # type: ignore[no-any-return]
