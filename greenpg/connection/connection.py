"""`Connection`: psycopg2's connection, safe in the presence of other tasks, kills and timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

import psycopg2
from psycopg2 import extensions

from .cancel import request_cancel
from .composing import adopt, compose, stacked
from .connect.dsn import SECRETS
from .cursor import Cursor, PreparingCursor, ServerCursor, TellingCursor
from .deadlines import DeadlineBlock, checked_seconds
from .guarded_cursor import GuardedCursor, Params, Query
from .interrupting import throw_out
from .lender import Lender
from .lobject import LargeObjectMixin
from .occupants import AT_REST, Occupant, Parent
from .pipeline.pipeline import Pipeline, pipeline_of
from .pipeline.rows import Batch, execute_rows
from .prepared.statements import checked_threshold
from .remains import ENDING_TIMEOUT, INTERRUPTION_GRACE
from .replication import ReplicationCursor, is_replication_cursor
from .transaction import IsolationLevel, Transaction
from .wait_notify import NotifyWaits

_c: Any = extensions.connection
_new_cursor = _c.cursor
_get_cursor_factory = _c.cursor_factory.__get__

C = TypeVar("C", bound="Connection")
AnyCursor = TypeVar("AnyCursor", bound=extensions.cursor)


class Connection(LargeObjectMixin, NotifyWaits):
    """psycopg2's connection; everything psycopg2 documents of connections holds.

    While another task waits for the server on it, calls that would talk to the server raise
    `errors.ConnectionInUse`, where psycopg2 would stop the whole process; `close()` throws the other task out.
    An exception thrown into a wait (a kill, a timeout) cancels the statement and comes out unchanged, and the
    connection stays open, its transaction in error as after any failed statement.
    """

    #: Seconds for which an exception that is thrown into a wait (a kill, a timeout), or a deadline, is held back while
    #: the statement is cancelled, so that the connection can be kept. Then it comes out, and the connection is closed.
    #: Set it on a connection, or on the class for all of them: higher where the server is more than 50 ms away.
    interruption_grace: float = INTERRUPTION_GRACE
    #: Seconds that the server's process is waited for after a connection was closed like this, by a task of greenpg's:
    #: so long a pool keeps its slot. A process that is to be cancelled and says nothing is waited for for 5 s. A COMMIT
    #: isn't cancelled.
    ending_timeout: float = ENDING_TIMEOUT

    #: The connection string as it was given, before names were looked up.
    _given_dsn: str | None = None
    #: Its `SqlLog`, and what it was last told.
    _sql_log: Any = None
    _last_statement: Any = None
    #: Its `Tracing`: see tracing.py.
    _tracing: Any = None
    #: A pool's slot for the connection, which may have lent it.
    _lender: Lender | None = None
    #: What goes on top of greenpg's cursors: a log's class, a tracing's, and a pooler's; and what comes of that.
    _log_cursor: type[Cursor] | None = None
    _rules_cursor: type[Cursor] | None = None
    _tracing_cursor: type[Cursor] | None = None
    _prepare_threshold: int | None = None
    _client_cursor: type[Cursor] = Cursor
    _server_cursor: type[ServerCursor] = ServerCursor

    def _attach_log(self, log: Any, cursor: type[Cursor] | None = None) -> None:
        """Cursors that are made from now on have this class on top, and find the log; None for no log."""
        self._sql_log, self._log_cursor = log, cursor
        self._choose_cursors()

    def _attach_tracing(self, tracing: Any, cursor: type[Cursor] | None = None) -> None:
        """The same for a tracing."""
        self._tracing, self._tracing_cursor = tracing, cursor
        self._choose_cursors()

    def _attach_rules(self, cursor: type[Cursor]) -> None:
        """The same for what refuses statements."""
        self._rules_cursor = cursor
        self._choose_cursors()

    def _tell_commits_to(self, tell: Callable[[str | None], object] | None) -> None:
        super()._tell_commits_to(tell)
        self._choose_cursors()

    def _choose_cursors(self) -> None:
        telling = None if self._tells_commit is None else TellingCursor
        on_top = tuple(filter(None, (self._rules_cursor, self._log_cursor, self._tracing_cursor, telling)))
        preparing = () if self._prepare_threshold is None else (PreparingCursor,)
        self._client_cursor, self._server_cursor = stacked(on_top + preparing, Cursor), stacked(on_top, ServerCursor)

    @property
    def prepare_threshold(self) -> int | None:
        """After how many executions a statement is prepared, on cursors that are made from now on; as psycopg 3's.

        None (default): only with `execute(prepare=True)`; 0: at once. Up to `prepared_max` statements are kept. Behind
        a pooler, which is noticed, nothing is prepared.
        """
        return self._prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, executions: int | None) -> None:
        if executions == self._prepare_threshold:
            return
        self._prepare_threshold = None if executions is None else checked_threshold(executions)
        self._has_altered_settings = True
        self._choose_cursors()

    def _note_statement(self, statement: Any) -> None:
        self._last_statement = statement

    def _note_dsn(self, dsn: str) -> None:
        self._given_dsn = dsn

    def transaction(
        self: C,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
        *,
        isolation_level: IsolationLevel | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
        settle: bool = False,
    ) -> Transaction[C]:
        """`with conn.transaction():` commits at the end of the block, and rolls back if it raises; as psycopg 3's.

        BEGIN is sent along with the first statement, so that the block takes one round trip less than with psycopg2's
        own, and none if nothing is done in it. A block inside another one, or in a transaction that was begun before,
        is a savepoint. `force_rollback` rolls back in any case; `raise greenpg.Rollback()` does, and ends the block
        without an error. `isolation_level` ("SERIALIZABLE" ... or psycopg2's constants), `readonly` and `deferrable`
        are of this transaction alone, and for an outermost block. `commit()` and `rollback()` are refused inside.
        `settle` (False): should the connection be lost in the COMMIT, `errors.commit_outcome(exception, ask=pool)`
        finds out what has become of it; the transaction's id is asked for along with its first statement, and its
        `application_name` tells it (PostgreSQL 13 or later, else `psycopg2.NotSupportedError`).

        Entering suspends for a nested block; leaving suspends if anything was sent. Leaving a block whose transaction
        is in error without an exception raises `psycopg2.errors.InFailedSqlTransaction`.
        """
        return Transaction(self, savepoint_name, force_rollback, isolation_level, readonly, deferrable, settle)

    def pipeline(self: C) -> Pipeline[C]:
        """`with conn.pipeline() as p:` sends statements without waiting for the answers, as psycopg 3's.

        A cursor's `fetch*()`, `rowcount` and `description` wait for the answer to its own statement; `p.sync()`, the
        end of the block, and whatever else is called on the connection, for all of them. In a transaction BEGIN is
        sent along, and by `commit()` COMMIT, so the whole takes one round trip; in autocommit each statement is a
        transaction of its own.

        An error has the `statement_index`, counted from 0. It is raised by the statement's cursor, or else at the next
        thing that waits for all (but `rollback()`). In a transaction the statements after the one that has failed
        aren't executed: they raise `errors.PipelineAborted`, until `p.sync()` or `rollback()`. COPY, and several
        commands in one statement, raise `psycopg2.ProgrammingError` before anything is sent. A kill, a timeout or a
        deadline cancels what is under way, and the connection is kept.

        A block in a block is the same pipeline, with a `sync()` at its beginning and end, and so is a nested
        `transaction()`. `execute()` suspends now and then, when there is much to send. Large results are better fetched
        outside: each value costs a call. Raises `errors.LibpqUnavailable` where psycopg2 runs on a libpq before 14.
        """
        return pipeline_of(self)

    def _execute_rows(
        self, cursor: Any, query: Query, rows: Iterable[Any], each_by_itself: bool, keeps: bool, before: tuple[int, int]
    ) -> Batch:
        return execute_rows(self, cursor, query, rows, each_by_itself, keeps, before)

    def close(self) -> None:
        """Close the connection, as psycopg2's; or return it, if a pool made with `close_returns` has lent it. Any other
        pool that has lent it opens another one in its place; a connection that has been returned is left alone.

        If another task waits for the server on it, that task gets an OperationalError; the caller is suspended then,
        until it has left.
        """
        lender = self._lender
        if lender is None:
            self._close()
        elif lender.close_returns:
            lender.give_back()
        elif self._gate.owner is not AT_REST:  # else it isn't the caller's any more
            loan = self._gate.loan
            self._close()
            if self._gate.loan is loan:
                lender.take_closed()

    def _close(self) -> None:
        """Close it, whoever has it."""
        owner = self._gate.owner
        if isinstance(owner, Parent) and owner.is_locked:
            return  # and its socket leads to nobody
        if owner is not None and not (isinstance(owner, Occupant) and owner.let_go()):
            self._gate.close_queue()
            if self._lender is not None:  # who is thrown out may give it back before it is closed
                self._lender.condemn()
            throw_out(self)
        self._gate.close_waiter()
        _c.close(self)

    def cancel(self) -> None:
        """Cancel what the connection is running, as psycopg2's; any task may call it. Suspends for a round trip.

        Raises `psycopg2.OperationalError` if the request can't be delivered within 30 s.
        """
        self.cancel_safe()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """The same as `cancel()`, under the name and with the `timeout` (seconds) of psycopg 3."""
        if self._gate.owner is AT_REST:
            self._gate.make_way("cancel")
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if self.status == extensions.STATUS_PREPARED:
            raise psycopg2.ProgrammingError("cancel cannot be used with a prepared two-phase transaction")
        if self.status not in (extensions.STATUS_READY, extensions.STATUS_BEGIN):
            raise psycopg2.OperationalError("asynchronous connection attempt underway")
        request_cancel(self, time.monotonic() + timeout)

    @property
    def dsn(self) -> str:
        """The connection string as it was given, its secrets masked as psycopg2 masks the password."""
        dsn = str(_c.dsn.__get__(self)) if self._given_dsn is None else self._given_dsn
        parameters = extensions.parse_dsn(dsn)
        masked = {name: "xxx" for name in SECRETS if name in parameters}
        return str(extensions.make_dsn(**parameters | masked)) if masked else dsn

    def __repr__(self) -> str:
        return f"<connection object at {id(self):#x}; dsn: '{self.dsn}', closed: {self.closed}>"

    __str__ = __repr__  # psycopg2's own would show sslpassword

    def deadline(self, seconds: float) -> DeadlineBlock:
        """`with conn.deadline(seconds):` a limit for all statements of the block together.

        When it is over, the statement that runs is cancelled and raises `errors.DeadlineExceeded`; the connection can
        be used on after a rollback. If the server can't be reached, the connection is closed. Raises ValueError
        unless `seconds` is positive. Entering and leaving the block don't suspend.
        """
        self._has_altered_settings = True  # a pool ends it if nobody does
        return DeadlineBlock(self._gate, seconds)

    @property
    def statement_deadline(self) -> float | None:
        """Seconds that each statement has, from when it is sent; None (default): no limit. See `deadline()`."""
        deadlines = self._gate.deadlines
        return None if deadlines is None else deadlines.per_statement

    @statement_deadline.setter
    def statement_deadline(self, seconds: float | None) -> None:
        self._gate.made_deadlines().set_per_statement(None if seconds is None else checked_seconds(seconds))
        self._has_altered_settings = True

    def _belongs_to(self, lender: Lender | None) -> None:
        """From a pool that has opened it, or lets it go."""
        self._lender = lender

    @property
    def connection(self: C) -> C:
        """Itself: psycopg2.extras takes whatever has `execute()` for a cursor, and asks it for its connection."""
        return self

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> Cursor:
        """A new cursor that has executed the statement, as psycopg 3's. Suspends; raises as `cursor.execute()`."""
        cur = self.cursor()
        if prepare is None:
            cur.execute(query, vars)
        else:
            cur.execute(query, vars, prepare=prepare)
        return cur

    @overload  # type: ignore[override]  # of a named cursor psycopg2's type stubs know no class of its own
    def cursor(
        self, name: None = None, cursor_factory: None = None, withhold: bool = False, scrollable: bool | None = None
    ) -> Cursor: ...
    @overload
    def cursor(
        self, name: str | bytes, cursor_factory: None = None, withhold: bool = False, scrollable: bool | None = None
    ) -> ServerCursor: ...
    @overload
    def cursor(
        self,
        name: str | bytes | None = None,
        *,
        cursor_factory: Callable[..., AnyCursor],
        withhold: bool = False,
        scrollable: bool | None = None,
    ) -> AnyCursor: ...
    @overload
    def cursor(
        self,
        name: str | bytes | None,
        cursor_factory: Callable[..., AnyCursor],
        withhold: bool = False,
        scrollable: bool | None = None,
    ) -> AnyCursor: ...
    def cursor(
        self,
        name: str | bytes | None = None,
        cursor_factory: Callable[..., extensions.cursor] | None = None,
        withhold: bool = False,
        scrollable: bool | None = None,
    ) -> Any:
        """A cursor, as psycopg2's: of `cursor_factory`, or else the connection's, with greenpg's methods under it.

        With a `name` it is a server-side one, a `ServerCursor`. Doesn't suspend.
        """
        factory = cursor_factory or _get_cursor_factory(self)
        if factory is not None:
            factory = compose(factory, self._green_class(factory, name))
        elif name is None and not withhold and scrollable is None:
            cur = _new_cursor(self, None, self._client_cursor)
            cur._belongs_to(self._gate.loan)
            return cur
        cur = _new_cursor(self, name, factory or self._green_class(None, name), withhold, scrollable)
        if not isinstance(cur, Cursor):  # a function has made it
            adopt(cur, self._green_class(type(cur), cur.name))
        if isinstance(cur, GuardedCursor):
            cur._belongs_to(self._gate.loan)
        return cur

    def _green_class(self, factory: Any, name: Any) -> type:
        if is_replication_cursor(factory):
            return ReplicationCursor
        return self._client_cursor if name is None else self._server_cursor
