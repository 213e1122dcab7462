"""`LeasedConnection`: what users see."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import psycopg2
from psycopg2 import extensions

from ...connection.connection import Connection
from ...connection.guarded_cursor import Params, Query
from ...connection.pipeline.pipeline import Pipeline
from ...connection.transaction import IsolationLevel, Transaction, TransactionOptions
from ..managed import ManagedPool
from ..options import check_not_negative
from ..slot import Slot
from .blocks import LeasedBlock, Session
from .cursor import LeasedCursor
from .kept import Kept
from .lease import Lease
from .psycopg2_api import Psycopg2Connection

L = TypeVar("L", bound="LeasedConnection")


class LeasedConnection(Psycopg2Connection):
    """Looks like a connection, and leases one of a pool's for each transaction; in autocommit, for each statement.

    So tasks that mostly wait for something else share few connections, each with a connection object of its own, as
    behind PgBouncer in transaction mode. Making one costs nothing. The first statement waits for a connection of the
    `pool`, as `pool.getconn(timeout)` does, and raises what that raises. When the transaction has ended, the connection
    goes back; rows that were not read yet, notices and notifications stay on this side. `commit()` and `rollback()`
    without a transaction do nothing. One task at a time: another one gets `errors.ConnectionInUse`.

    Settings (`autocommit`, `isolation_level`, `readonly`, `deferrable`, `cursor_factory` ...) are this object's, and
    each connection has them while it is leased.

    Statements that leave something in the session, as SET, LISTEN, PREPARE, a temporary table, a cursor WITH HOLD or
    pg_advisory_lock(), make the lease last, until `close()` or `unstick()`; then the session is reset. It's known by
    what the server calls the statement, and by its text: not if a function does it inside. Then say so: `stick()`, or
    `with conn.sticky() as real`.

    If the connection is lost, `closed` is 2 if there was a transaction or state in it; else the next statement leases
    another one. Raises TypeError if `pool` isn't a pool, ValueError for a negative `timeout`.
    """

    def __init__(self, pool: ManagedPool[Any], timeout: float | None = None) -> None:
        if not isinstance(pool, ManagedPool):
            raise TypeError(f"LeasedConnection needs a greenpg.ConnectionPool, not {type(pool).__name__}")
        if timeout is not None:
            check_not_negative(timeout=timeout)
        self._pool = pool
        self._kept = Kept()
        self._lease = Lease(pool._core, self._kept, timeout)

    @classmethod
    def _by(cls: type[L], pool: ManagedPool[Any], lend: Callable[[], Slot]) -> L:
        """For integrations that do something when a connection is lent."""
        conn = cls(pool)
        conn._lease.lend_by(lend)
        return conn

    @property
    def pool(self) -> ManagedPool[Any]:
        """Whose connections it leases."""
        return self._pool

    @property
    def is_leased(self) -> bool:
        """It has one of the pool's connections now. Doesn't suspend."""
        return self._lease.conn is not None

    @property
    def is_stuck(self) -> bool:
        """The lease doesn't end with the transaction. Doesn't suspend."""
        return self._lease.conn is not None and self._lease.is_held

    # -- statements

    def cursor(
        self,
        name: str | bytes | None = None,
        cursor_factory: Callable[..., extensions.cursor] | None = None,
        withhold: bool = False,
        scrollable: bool | None = None,
    ) -> LeasedCursor:
        """A cursor; with a `name`, one at the server, whose transaction has the connection; `withhold`: until it is
        closed. What `cursor_factory` makes is below it. Doesn't suspend.
        """
        self._check_open()
        return LeasedCursor(self, self._lease, self._kept.note, name, cursor_factory, withhold, scrollable)

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> LeasedCursor:
        """A new cursor that has executed the statement, as `Connection.execute()`. Suspends."""
        cursor = self.cursor()
        cursor.execute(query, vars, prepare=prepare)
        return cursor

    @property
    def connection(self: L) -> L:
        """Itself: psycopg2.extras takes whatever has `execute()` for a cursor, and asks it for its connection."""
        return self

    # -- transactions

    def commit(self) -> None:
        """Commit, as psycopg2's, and give the connection back. Suspends; without a transaction it does nothing."""
        self._end("commit")

    def rollback(self) -> None:
        """Roll the transaction back, and give the connection back. Suspends; without a transaction it does nothing."""
        self._end("rollback")

    def _end(self, name: str) -> None:
        self._check_open()
        lease = self._lease
        if not lease.number:
            return
        with lease.calling(name, commits=name == "commit") as conn:
            getattr(conn, name)()

    def reset(self) -> None:
        """Roll back, forget the settings, and end the lease. Suspends if there is one."""
        self._check_open()
        self._lease.overrides.clear()
        if self._lease.number:
            with self._lease.calling("reset") as conn:
                conn.reset()
                self._lease.unstick()

    def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
        *,
        isolation_level: IsolationLevel | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
        settle: bool = False,
    ) -> LeasedBlock[Transaction[Connection]]:
        """`with conn.transaction():` as `Connection.transaction()`; a connection is leased from its beginning to its
        end. Suspends."""
        options: TransactionOptions = {
            "savepoint_name": savepoint_name,
            "force_rollback": force_rollback,
            "isolation_level": isolation_level,
            "readonly": readonly,
            "deferrable": deferrable,
            "settle": settle,
        }
        return LeasedBlock(self._lease, "transaction", lambda conn: conn.transaction(**options))

    def pipeline(self) -> LeasedBlock[Pipeline[Connection]]:
        """`with conn.pipeline() as p:` as `Connection.pipeline()`; a connection is leased from its beginning to its
        end. Suspends."""
        return LeasedBlock(self._lease, "pipeline", lambda conn: conn.pipeline())

    def __enter__(self: L) -> L:
        self._check_open()
        lease = self._lease
        if lease.enters:
            raise psycopg2.ProgrammingError("the connection cannot be re-entered recursively")
        if lease.number:
            with lease.calling("__enter__") as conn:
                conn.__enter__()
        lease.enter_connections(True)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease = self._lease
        lease.enter_connections(False)
        if lease.number and not lease.closed:
            with lease.calling("__exit__", commits=exc is None) as conn:
                conn.__exit__(exc_type, exc, traceback)
        elif exc is None:
            self._check_open()

    # -- sessions

    def stick(self) -> None:
        """Lease a connection, if there's none, and keep it until `unstick()` or `close()`; then its session is reset.
        Suspends."""
        with self._lease.calling("stick"):
            self._lease.stick()

    def unstick(self) -> None:
        """Let the lease end with the transaction again; what the session has kept is taken back then. Suspends if there
        is one."""
        if self._lease.number:
            with self._lease.calling("unstick"):
                self._lease.unstick()

    def sticky(self) -> LeasedBlock[Connection]:
        """`with conn.sticky() as real:` one and the same connection for the block, which is reset afterwards: for what
        a session keeps and this object doesn't see. `real` is a `greenpg.Connection`. Suspends."""
        return LeasedBlock(self._lease, "sticky", lambda conn: Session(self._lease, conn))

    # -- the end

    def close(self) -> None:
        """Close it; a connection that is leased goes back, a transaction in it is rolled back. Again is harmless.

        If another task waits for the server on it, that task gets an OperationalError. Suspends for a transaction.
        """
        self._kept.forget_rows()
        self._lease.close()

    def __del__(self) -> None:
        lease = getattr(self, "_lease", None)
        if lease is not None:
            lease.abandon()

    def __repr__(self) -> str:
        has = f"server process {self.info.backend_pid}" if self.is_leased else "nothing"
        return f"<LeasedConnection of pool {self._pool.name!r} at {id(self):#x}; has {has}, closed: {self.closed}>"
