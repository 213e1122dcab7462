"""`ConnectionPool`: many tasks, few connections, shared out fairly. This file is what borrowers call, managed.py what
else can be done with a pool.

core.py is the state; lending.py tells how a connection is got, returning.py what happens to it when it comes back.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from psycopg2 import extensions

from ..connection.connect.connecting import CursorFactory
from ..connection.connection import AnyCursor
from ..connection.cursor import Cursor
from ..connection.guarded_cursor import Params, Query, Row
from ..connection.transaction import TransactionOptions
from ..hubs import hub
from ..shared.subscription import Subscription
from .contexts import ConnectionContext, CursorContext, TransactionContext, first_value, run_one_shot
from .lending import lend
from .managed import ManagedPool
from .options import ConnT
from .pipelining import PipelineContext
from .repeating import run_repeatedly
from .returning import give_back, not_ours, take_back_from_ended
from .slot import Slot
from .stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

_ROWCOUNT = operator.attrgetter("rowcount")
_FETCHONE, _FETCHALL = operator.methodcaller("fetchone"), operator.methodcaller("fetchall")


class ConnectionPool(ManagedPool[ConnT]):
    """At most `max_size` connections, lent to one task at a time, strictly in the order of asking.

    Parameters, as psycopg_pool's (sizes count connections, times are in seconds):

    - `conninfo`, `kwargs`: how to connect: a libpq connection string, and keywords for `greenpg.connect` (plus
      `autocommit`). Each may be a callable (an IAM token, a password that is rotated): it returns the value, for one
      connection, or `(value, expiry)`, for all until then; `expiry` is seconds from now, or an aware datetime. One call
      at a time, however many connections are opened. When the server refuses the login (28P01, 28000), it is called
      anew, and connecting is tried once more at once.
    - `connection_class`: `greenpg.Connection` or any subclass of psycopg2's connection.
    - `min_size` (4): kept open. `max_size` (None: `min_size`): never exceeded, connections being opened included.
    - `open`: True opens the pool at once (connecting goes on in the background), False waits for `open()` or `with`,
      None (default) opens it at its first use, so that it can be made at import time and before a fork.
    - `configure(conn)`: called on each new connection; `check(conn)`: on each before it is lent; `reset(conn)`: on each
      that is returned. None of them may leave a transaction open; a connection for which one fails is discarded.
      Two values of `reset` have a meaning: "rollback" (default) only ends an open transaction, "session" also takes
      back what a session can keep (settings, temporary tables, advisory locks, LISTEN, cursors, isolation level,
      autocommit, ...) and calls `configure` again. A `reset` is run by a task of the pool's own: the borrower doesn't
      wait for it. Its statements have 10 s together.
    - `name` (None: "pool-N"): for messages. `timeout` (30): how long `getconn()` waits by default.
    - `max_waiting` (0: no limit): more tasks than that don't get into the line but `TooManyRequests`.
    - `max_lifetime` (3600): a connection older than that, less up to 5 %, is replaced when it comes back.
    - `max_idle` (600): one connection above `min_size` is closed whenever so many went unused for that long.
    - `reconnect_timeout` (300): how long connecting is tried again, with backoff, before `reconnect_failed(pool)` is
      called. `num_workers` (3): how many connections are opened at a time, not counting those that take longer than a
      second. Where no `connect_timeout` is given, each address of the server has 10 s.
    - `close_returns` (False): `conn.close()` returns the connection to the pool.

    And beyond psycopg_pool's:

    - `fail_fast` (False): True: when connecting fails, whoever waits for a connection (or in `wait()`) gets that error
      at once, instead of waiting until the timeout while it is tried again. A function: called with each such error, it
      tells whether that is so.
    - `refused_after` (2): while the pool has no connection at all, and every attempt to connect has failed for so many
      seconds, whoever waits or comes is told so at once by `PoolTimeout`, instead of waiting until the timeout. Trying
      goes on meanwhile. `float("inf")`: never.
    - `check_idle` (30): a connection that was idle for longer is pinged before it is lent. Any that was idle at all
      gets a look at its socket, which costs no round trip.
    - `statement_deadline` (None: no limit): how long each statement may take, see `Connection.deadline()`.
    - `prepare_threshold` (None: never): after how many executions on a connection a statement is prepared there, see
      `Connection.prepare_threshold`. psycopg 3's default is 5.
    - `multiplex` (0: off): so many connections, less than `max_size`, are shared by `execute()`, `fetchone()`,
      `fetchall()` and `fetchval()`: the statements of all tasks go out together, each committed by itself. Behind one
      that runs for more than 20 ms nothing is queued: then, and for what isn't a plain SELECT, INSERT, UPDATE, DELETE
      or MERGE, or has a large result, the rest of the pool is used. A kill or a deadline comes out at once, but the
      statement goes on. Not with a `reset`; functions that change the session (settings, advisory locks) must not be
      called then, if greenpg can't see them in the statement.
    - `histograms` (False): count waiting and holding times for `get_histograms()`.
    - `leak_after` (None: off): a connection that is held for longer is reported in the log, with its holder and the
      stack where it was taken.

    - `pooler` (None: found out when it matters): the `pool_mode` of a PgBouncer, or its like, in front of the server:
      "session", "transaction", "statement"; "none". In transaction mode, what a session keeps (SET, LISTEN, temporary
      tables, session-level advisory locks, ...) is refused with `psycopg2.NotSupportedError`, and nothing is reset; in
      statement mode, transactions are refused, too, and connections are in autocommit.
    - `direct_conninfo` (None): how `listen()` connects, past the pooler: a conninfo of the server itself.
    - `on_event` (None): a function that is called with each `TraceEvent` when it is over, or a `Tracer` that is also
      told of beginnings, or a list of them. Loans and statements that no tracer wants to know of cost nothing.

    Raises ValueError and TypeError for values that make no sense, `psycopg2.ProgrammingError` for a malformed conninfo.
    All its methods may be called from any task of any native thread.
    """

    # -- blocks

    def connection(self, timeout: float | None = None) -> ConnectionContext[ConnT]:
        """`with pool.connection() as conn:` lends a connection for the block, then commits, or rolls back on error.

        Entering suspends until a connection is free, as `getconn()` does; leaving suspends if there's a transaction.
        """
        return ConnectionContext(self._core, timeout)

    @overload
    def cursor(self, cursor_factory: None = None, *, timeout: float | None = None) -> CursorContext[Cursor]: ...
    @overload
    def cursor(
        self, cursor_factory: Callable[..., AnyCursor], *, timeout: float | None = None
    ) -> CursorContext[AnyCursor]: ...
    def cursor(
        self, cursor_factory: CursorFactory | None = None, *, timeout: float | None = None
    ) -> CursorContext[Any]:
        """`with pool.cursor() as cur:` lends a cursor in a transaction of its own: commit at the end of the block,
        rollback if it raises. Suspends as `connection()` does.
        """
        return CursorContext(self._core, cursor_factory, timeout)

    def transaction(
        self, *, timeout: float | None = None, **options: Unpack[TransactionOptions]
    ) -> TransactionContext[ConnT]:
        """`with pool.transaction() as conn:` lends a connection for a block that is a transaction.

        Options and behaviour of `conn.transaction()`: `isolation_level`, `readonly`, `deferrable`, `force_rollback`,
        `settle`. Suspends as `connection()` does.
        """
        return TransactionContext(self._core, timeout, options)

    def pipeline(self, *, timeout: float | None = None) -> PipelineContext:
        """`with pool.pipeline() as p:` lends a connection for a transaction in one round trip: what `p.execute()` is
        given is sent without waiting, and COMMIT with it at the end of the block, which rolls back if it raises.

            with pool.pipeline() as p:
                p.execute("UPDATE account SET balance = balance - 10 WHERE id = %s", (1,))
                cur = p.execute("UPDATE account SET balance = balance + 10 WHERE id = %s RETURNING balance", (2,))
            print(cur.fetchone())

        The cursors that `p.execute()` gives keep their rows after the block; asked for them inside of it they wait for
        their own statement. See `Connection.pipeline()`; `p.connection` is the connection. Suspends as `connection()`
        does, and leaving the block for the round trip. With connections in autocommit each statement is a transaction.
        """
        return PipelineContext(self._core, timeout)

    def run(
        self,
        function: Callable[[ConnT], T],
        *,
        attempts: int = 5,
        timeout: float | None = None,
        **options: Unpack[TransactionOptions],
    ) -> T | None:
        """`function(conn)` in a transaction of its own, repeated if that fails by a serialization failure or deadlock,
        or because the server goes, is lost or takes no writes any more: always with the transaction undone.

        Returns its result, None if it raised `greenpg.Rollback`. After `attempts` (default 5) failures of that kind,
        with growing, jittered pauses of 5 ms to 1 s in between, the last one is raised, its text saying how often it
        was tried. Everything else is raised at once, also what leaves the COMMIT in doubt; with `settle=True` the
        server is asked then what has become of it. `options` are `transaction()`'s. Suspends.
        """
        core = self._core

        def make_block() -> TransactionContext[ConnT]:
            return TransactionContext(core, timeout, options)

        return run_repeatedly(core, function, attempts, make_block, bool(options.get("readonly")))

    # -- one statement, one round trip

    def execute(self, query: Query, vars: Params = None, *, timeout: float | None = None) -> int:
        """Run one statement, committed by itself, in one round trip. Returns the number of rows. Suspends."""
        rows: int = run_one_shot(self._core, query, vars, _ROWCOUNT, None, timeout)
        return rows

    @overload
    def fetchone(
        self, query: Query, vars: Params = None, *, cursor_factory: None = None, timeout: float | None = None
    ) -> Row | None: ...
    @overload
    def fetchone(
        self, query: Query, vars: Params = None, *, cursor_factory: CursorFactory, timeout: float | None = None
    ) -> Any: ...
    def fetchone(
        self,
        query: Query,
        vars: Params = None,
        *,
        cursor_factory: CursorFactory | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The first row of a statement that is committed by itself, None if there is none. One round trip. Suspends."""
        return run_one_shot(self._core, query, vars, _FETCHONE, cursor_factory, timeout)

    @overload
    def fetchall(
        self, query: Query, vars: Params = None, *, cursor_factory: None = None, timeout: float | None = None
    ) -> list[Row]: ...
    @overload
    def fetchall(
        self, query: Query, vars: Params = None, *, cursor_factory: CursorFactory, timeout: float | None = None
    ) -> list[Any]: ...
    def fetchall(
        self,
        query: Query,
        vars: Params = None,
        *,
        cursor_factory: CursorFactory | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """All rows of a statement that is committed by itself. One round trip. Suspends."""
        return run_one_shot(self._core, query, vars, _FETCHALL, cursor_factory, timeout)

    def fetchval(self, query: Query, vars: Params = None, *, timeout: float | None = None) -> Any:
        """The first column of the first row, None if there is none. One round trip. Suspends."""
        return run_one_shot(self._core, query, vars, first_value, None, timeout)

    @overload
    def stream(
        self,
        sql: Query,
        args: Params = None,
        *,
        chunk_size: int = 2000,
        cursor_factory: None = None,
        timeout: float | None = None,
    ) -> Stream[Row]: ...
    @overload
    def stream(
        self,
        sql: Query,
        args: Params = None,
        *,
        chunk_size: int = 2000,
        cursor_factory: CursorFactory,
        timeout: float | None = None,
    ) -> Stream[Any]: ...
    def stream(
        self,
        sql: Query,
        args: Params = None,
        *,
        chunk_size: int = 2000,
        cursor_factory: CursorFactory | None = None,
        timeout: float | None = None,
    ) -> Stream[Any]:
        """`for row in pool.stream(sql, args):` the rows of a big result, fetched `chunk_size` at a time through a
        server-side cursor in a transaction of its own. The loop may be left at any time. See `Stream`.

        Doesn't suspend: a connection is borrowed (for `timeout`, see `getconn()`) when the first row is asked for.
        `sql` must be a SELECT or VALUES. Raises ValueError for a `chunk_size` below 1.
        """
        return Stream(self._core, sql, args, chunk_size=chunk_size, cursor_factory=cursor_factory, timeout=timeout)

    # -- by hand

    def getconn(self, timeout: float | None = None, *, take_back: bool = True) -> ConnT:
        """Borrow a connection; each must be given back with `putconn()`. `connection()` is harder to get wrong.

        Suspends until one is free, for at most `timeout` seconds (None: the pool's; 0: doesn't wait). Raises
        `PoolTimeout`, whose `__cause__` is the last error of connecting, if that failed; `PoolClosed`;
        `TooManyRequests` when `max_waiting` tasks wait already; ValueError for a negative timeout; with `fail_fast`
        what connecting fails by.

        If the task ends without giving it back, the pool takes it back, with a warning, unless another task has used it
        since. `take_back=False`: not so, for connections that may outlive their task, as a framework's do.
        """
        core = self._core
        slot = lend(core, timeout)
        if take_back:
            slot.conn._gate.forget_user()
            frame = sys._getframe().f_back
            slot.taken_at = frame and (frame.f_code, frame.f_lineno)  # None: it's the task's own function
            lent_at = slot.lent_at
            slot.forget_holder = hub().on_end(core.current_task(), lambda: take_back_from_ended(core, slot, lent_at))
        return slot.conn  # type: ignore[return-value]

    def putconn(self, conn: extensions.connection) -> None:
        """Give a borrowed connection back; an open transaction is rolled back, a broken connection replaced.

        Harmless if `conn.close()` has given it back already. From then on it can't be used until it is lent again.
        Raises ValueError, and touches nothing, if the connection isn't one that this pool has lent. Suspends only for
        a rollback: a `reset` is done by a task of the pool's own.
        """
        slot: Slot | None = getattr(conn, "_lender", None)
        if slot is None:
            raise not_ours(self._core, conn)
        if slot.lent_by is None and slot.closed_in is not None:
            return  # close() has given the slot back
        give_back(self._core, slot)

    # -- LISTEN and NOTIFY

    def listen(self, *channels: str, timeout: float | None = None, max_pending: int | None = None) -> Subscription:
        """`with pool.listen("orders") as subscription:` subscribes to the channels, as `Listener.subscribe()` does.

        All subscriptions of a pool share one connection, which is opened for the first of them, is not counted in
        `max_size`, and is closed with the pool. Suspends, for at most `timeout` seconds (None: the pool's), until the
        server listens. Raises what `Listener.subscribe()` raises, and `PoolClosed`.
        """
        return self._listening.subscribe(channels, timeout, max_pending)

    def notify(self, channel: str, payload: str = "", *, timeout: float | None = None) -> None:
        """Send a notification, in a transaction of its own. Suspends as `cursor()` does.

        Raises ValueError for a payload of 8000 bytes or more, and for a name that can't be a channel. To notify as part
        of another transaction, execute `SELECT pg_notify(channel, payload)` in it.
        """
        self._listening.notify(channel, payload, timeout)
