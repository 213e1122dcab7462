"""`Connection`: psycopg2's connection, safe in the presence of other tasks, kills and timeouts."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..errors import COMMITTED, ROLLED_BACK, UNKNOWN, note_commit_outcome
from ..errors.sqlstate import name_by_sqlstate
from ..hubs import hub
from .cancel import CancelRequest, request_cancel, shut_down
from .composing import compose
from .cursor import Cursor, ServerCursor
from .deadlines import DeadlineBlock, checked_seconds, deadlines_of
from .guarding import guarded_method, guarded_property
from .lobject import LargeObjectMixin
from .notifying import NotifyWaits
from .replication import ReplicationCursor, is_replication_cursor
from .riding import Ride
from .transaction import Transaction, forbid_inside, settle_before
from .waiting import Occupant

logger = logging.getLogger("greenpg.connection")

_connection = extensions.connection
_descriptors: Any = extensions.connection
_new_cursor: Any = _connection.cursor
_plain_cursor = extensions.cursor
_plain_execute = extensions.cursor.execute
_get_status = _descriptors.status.__get__
_get_autocommit = _descriptors.autocommit.__get__
_set_autocommit = _descriptors.autocommit.__set__

#: Seconds that close() waits for a task that it has thrown out of the connection.
_LEAVE_TIMEOUT = 5.0

#: Seconds that it takes trouble to cancel what the other task was running.
_CANCEL_TIMEOUT = 1.0


class Connection(LargeObjectMixin, NotifyWaits, _connection):
    """psycopg2's connection; everything psycopg2 documents of connections holds.

    While another task waits for the server on it, calls that would talk to the server raise
    `errors.ConnectionInUse`, where psycopg2 would stop the whole process; `close()` throws the other task out.
    An exception thrown into a wait (a kill, a timeout) cancels the statement and comes out unchanged, and the
    connection stays open, its transaction in error as after any failed statement.
    """

    #: The connection string as it was given, before names were looked up.
    _given_dsn: str | None = None
    #: Known only of connections with a `SqlLog`.
    _last_statement: Any = None
    #: What a pool that resets sessions found when the connection was new.
    _initial_session: tuple[Any, ...] = ()
    #: The server's part of the session has been reset by the last ride, or was not touched in it.
    _is_session_clean = False
    #: The pool that has lent the connection, while it is lent.
    _pool: Any = None
    #: What goes under the classes of cursors; a log (sql_log.py) brings others.
    _client_cursor: type = Cursor
    _server_cursor: type = ServerCursor

    #: What was opened in a transaction before is not valid any more, like psycopg2's own `mark`.
    _transactions_ended = 0

    #: The transaction block of greenpg's that it is in, and all of them, nested ones included.
    _ride: Ride | None = None
    _has_session_settings = False
    #: Autocommit is off for the user, but on underneath: see riding.py.
    _hides_autocommit = False

    rollback = guarded_method(_connection, "rollback", ends_transaction=True, in_block=forbid_inside)
    reset = guarded_method(_connection, "reset", ends_transaction=True, in_block=forbid_inside)
    set_client_encoding = guarded_method(
        _connection, "set_client_encoding", ends_transaction=True, in_block=settle_before
    )
    tpc_begin = guarded_method(_connection, "tpc_begin", in_block=settle_before)
    tpc_prepare = guarded_method(_connection, "tpc_prepare", ends_transaction=True)
    tpc_rollback = guarded_method(_connection, "tpc_rollback", ends_transaction=True)
    tpc_recover = guarded_method(_connection, "tpc_recover")

    isolation_level = guarded_property(_connection, "isolation_level", settle_before)
    readonly = guarded_property(_connection, "readonly", settle_before)
    deferrable = guarded_property(_connection, "deferrable", settle_before)

    set_session = guarded_method(_connection, "set_session", sets_session=True, in_block=settle_before)
    set_isolation_level = guarded_method(_connection, "set_isolation_level", sets_session=True, in_block=settle_before)

    @property
    def autocommit(self) -> bool:
        """As psycopg2's; False in a transaction block."""
        return self._ride is None and not self._hides_autocommit and bool(_get_autocommit(self))

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._refuse_if_owned("autocommit = ")
        if self._ride is not None:
            settle_before(self, "autocommit")
        self._hides_autocommit = False
        _set_autocommit(self, value)

    #: psycopg2's own, without a property of ours in between.
    _driver_status = _descriptors.status

    @property
    def status(self) -> int:
        """As psycopg2's; STATUS_BEGIN in a transaction block, also before its first statement."""
        status = int(_get_status(self))
        return extensions.STATUS_BEGIN if status == extensions.STATUS_READY and self._ride is not None else status

    @functools.cached_property
    def _transactions(self) -> list[Transaction]:
        """The blocks that have been entered, the innermost last."""
        return []

    def _let_psycopg2_begin(self) -> None:
        """Before psycopg2's C code sends a statement that BEGIN can't ride on. Doesn't suspend."""
        if self._ride is not None and self._ride.is_pending:
            self._ride.go_native()

    def _control(self, statement: str | bytes) -> None:
        """Run a statement of greenpg's own. Suspends; the caller sees to interruptions."""
        _plain_execute(_new_cursor(self, None, _plain_cursor), statement)

    def __enter__(self) -> Any:
        if self._ride is not None:
            forbid_inside(self, "with connection: ")
        return _connection.__enter__(self)

    def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
        *,
        isolation_level: int | str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> Transaction:
        """`with conn.transaction():` commits at the end of the block, and rolls back if it raises; as psycopg 3's.

        BEGIN is sent along with the first statement, so that the block takes one round trip less than with psycopg2's
        own, and none if nothing is done in it. A block inside another one, or in a transaction that was begun before,
        is a savepoint. `force_rollback` rolls back in any case; `raise greenpg.Rollback()` does, and ends the block
        without an error. `isolation_level` ("SERIALIZABLE" ... or psycopg2's constants), `readonly` and `deferrable`
        are of this transaction alone, and for an outermost block. `commit()` and `rollback()` are refused inside.

        Entering suspends for a nested block; leaving suspends if anything was sent. Leaving a block whose transaction
        is in error without an exception raises `psycopg2.errors.InFailedSqlTransaction`.
        """
        return Transaction(self, savepoint_name, force_rollback, isolation_level, readonly, deferrable)

    def commit(self) -> None:
        """Commit, as psycopg2's. Suspends; without a transaction, only to let other tasks run once.

        Interrupted, it waits for the outcome all the same (5 s at most), then raises what interrupted it;
        `errors.commit_outcome(exception)` says what has become of the transaction.
        """
        if self._ride is not None:
            forbid_inside(self, "commit")
        if _get_status(self) == extensions.STATUS_READY:
            # Nothing to wait for, and a task that does it in a loop would keep all others from running.
            hub().sleep(0)
        self._end_transaction("commit")

    def tpc_commit(self, *xid: Any) -> None:
        """Commit a two-phase transaction, as psycopg2's. Suspends; interrupted, it does as `commit()`."""
        self._end_transaction("tpc_commit", *xid)

    def _end_transaction(self, name: str, *args: Any, statement: str | None = None) -> bool:
        """Call psycopg2's method of that name, or run the statement; note a COMMIT's outcome on what is raised.

        False if the transaction has ended as asked, but something that the statement does after it has failed.
        """
        if self._owner is not None:
            self._refuse_if_owned(name)
        self._call = name
        self._transactions_ended += 1
        outcome: str | None = COMMITTED
        try:
            if statement is not None:
                self._control(statement)
            else:
                getattr(_connection, name)(self, *args)
            return True
        except BaseException as error:
            if statement is not None and self.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR:
                # Another transaction is: the server drops what comes after a COMMIT that fails.
                logger.warning("%s: what was to be done after the %s failed: %s", self, name, str(error).strip())
                return False
            if isinstance(error, psycopg2.ProgrammingError | psycopg2.InterfaceError) and error.pgcode is None:
                outcome = None  # psycopg2 has refused to do it
            else:
                outcome = UNKNOWN if self.closed else ROLLED_BACK
                if name.endswith("commit"):
                    note_commit_outcome(error, outcome)
            if isinstance(error, psycopg2.Error):
                name_by_sqlstate(error)
            raise error
        finally:
            self._call = None
            if self._interruption is not None:
                if name.endswith("commit") and outcome is not None:
                    note_commit_outcome(self._interruption, outcome)
                self._raise_interruption()

    def close(self) -> None:
        """Close the connection, as psycopg2's; or return it, if a pool made with `close_returns` has lent it.

        If another task waits for the server on it, that task gets an OperationalError; the caller is suspended then,
        until it has left.
        """
        if self._pool is not None and self._pool.close_returns:
            self._pool.putconn(self)
            return
        if self._owner is not None and not (isinstance(self._owner, Occupant) and self._owner.let_go()):
            self._throw_owner_out()
        if self._fd_waiter is not None:
            self._fd_waiter.close()
        _connection.close(self)

    def _throw_owner_out(self) -> None:
        give_up_at = time.monotonic() + _LEAVE_TIMEOUT
        request = CancelRequest(self)
        try:
            shut_down(self)
            while self._owner is not None:
                if time.monotonic() >= give_up_at:
                    self._refuse_if_owned("close")
                hub().sleep(0.001)
            # The server hasn't noticed anything: it would go on with the statement.
            request.send(min(give_up_at, time.monotonic() + _CANCEL_TIMEOUT))
        except psycopg2.OperationalError as error:
            logger.warning("could not cancel the statement on %s, which is closed: %s", self, error)
        finally:
            request.close()

    def cancel(self) -> None:
        """Cancel what the connection is running, as psycopg2's; any task may call it. Suspends for a round trip.

        Raises `psycopg2.OperationalError` if the request can't be delivered within 30 s.
        """
        self.cancel_safe()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """The same as `cancel()`, under the name and with the `timeout` (seconds) of psycopg 3."""
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if self.status == extensions.STATUS_PREPARED:
            raise psycopg2.ProgrammingError("cancel cannot be used with a prepared two-phase transaction")
        if self.status not in (extensions.STATUS_READY, extensions.STATUS_BEGIN):
            raise psycopg2.OperationalError("asynchronous connection attempt underway")
        request_cancel(self, time.monotonic() + timeout)

    @property
    def dsn(self) -> str:
        """The connection string as it was given, its password masked as psycopg2 does."""
        if self._given_dsn is None:
            return str(_connection.dsn.__get__(self))
        parameters = extensions.parse_dsn(self._given_dsn)
        if "password" not in parameters:
            return self._given_dsn
        return str(extensions.make_dsn(**parameters | {"password": "xxx"}))

    def deadline(self, seconds: float) -> DeadlineBlock:
        """`with conn.deadline(seconds):` a limit for all statements of the block together.

        When it is over, the statement that runs is cancelled and raises `errors.DeadlineExceeded`; the connection can
        be used on after a rollback. If the server can't be reached, the connection is closed. Raises ValueError
        unless `seconds` is positive.
        """
        return DeadlineBlock(self, seconds)

    @property
    def statement_deadline(self) -> float | None:
        """Seconds that each statement has, from when it is sent; None (default): no limit. See `deadline()`."""
        return None if self._deadlines is None else self._deadlines.per_statement

    @statement_deadline.setter
    def statement_deadline(self, seconds: float | None) -> None:
        deadlines_of(self).per_statement = None if seconds is None else checked_seconds(seconds)

    @property
    def connection(self) -> Connection:
        """Itself: psycopg2.extras takes whatever has `execute()` for a cursor, and asks it for its connection."""
        return self

    def execute(self, query: Any, vars: Any = None) -> Any:
        """A new cursor that has executed the statement, as psycopg 3's. Suspends; raises as `cursor.execute()`."""
        cur = self.cursor()
        cur.execute(query, vars)
        return cur

    def cursor(
        self, name: Any = None, cursor_factory: Any = None, withhold: bool = False, scrollable: bool | None = None
    ) -> Any:
        """A cursor, as psycopg2's: of `cursor_factory`, or else the connection's, with greenpg's methods under it."""
        factory = cursor_factory or self.cursor_factory
        if factory is None and name is None and not withhold and scrollable is None:
            return _new_cursor(self, None, self._client_cursor)
        green = self._client_cursor if name is None else self._server_cursor
        if factory is not None and is_replication_cursor(factory):
            green = ReplicationCursor
        factory = green if factory is None else compose(factory, green)
        return _new_cursor(self, name, factory, withhold, scrollable)
