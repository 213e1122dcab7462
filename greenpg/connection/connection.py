"""`Connection`: psycopg2's connection, safe in the presence of other tasks, kills and timeouts."""

from __future__ import annotations

import functools
import logging
import time
from types import TracebackType
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..driver import driver_status
from ..errors import COMMITTED, ROLLED_BACK, UNKNOWN, note_commit_outcome
from ..errors.sqlstate import name_by_sqlstate
from ..hubs import hub
from .cancel import CancelRequest, request_cancel, shut_down
from .composing import compose
from .cursor import Cursor, ServerCursor
from .deadlines import DeadlineBlock, checked_seconds, deadlines_of
from .guarding import guarded_method, guarded_property, noted_property
from .lender import Lender
from .lobject import LargeObjectMixin
from .notifying import NotifyWaits
from .replication import ReplicationCursor, is_replication_cursor
from .session_settings import SessionSettings
from .transaction import (
    Blocks,
    Transaction,
    forbid_autocommit_inside,
    forbid_inside,
    forbid_inside_transaction,
)
from .waiting import CopyBlock

logger = logging.getLogger("greenpg.connection")

_connection = extensions.connection
_descriptors: Any = extensions.connection
_new_cursor: Any = _connection.cursor
_get_status = _descriptors.status.__get__
_get_cursor_factory = _descriptors.cursor_factory.__get__

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
    #: A pool's slot for the connection, which may have lent it.
    _lender: Lender | None = None
    #: What goes under the classes of cursors; a log (sql_log.py) brings others.
    _client_cursor: type = Cursor
    _server_cursor: type = ServerCursor

    #: What was opened in a transaction before is not valid any more, like psycopg2's own `mark`.
    _transactions_ended = 0
    #: It is in psycopg2's own `with conn:`.
    _is_entered = False
    #: A setting may have been changed that a pool puts back.
    _has_altered_settings = False

    rollback = guarded_method(_connection, "rollback", ends_transaction=True, check=forbid_inside)
    reset = guarded_method(_connection, "reset", ends_transaction=True, check=forbid_inside, alters_settings=True)
    set_client_encoding = guarded_method(
        _connection,
        "set_client_encoding",
        ends_transaction=None,
        check=forbid_inside_transaction,
        alters_settings=True,
    )
    tpc_begin = guarded_method(_connection, "tpc_begin")
    tpc_prepare = guarded_method(_connection, "tpc_prepare", ends_transaction=True)
    tpc_rollback = guarded_method(_connection, "tpc_rollback", ends_transaction=True)
    tpc_recover = guarded_method(_connection, "tpc_recover")

    autocommit = guarded_property(_connection, "autocommit", check=forbid_autocommit_inside)
    isolation_level = guarded_property(_connection, "isolation_level")
    readonly = guarded_property(_connection, "readonly")
    deferrable = guarded_property(_connection, "deferrable")

    set_session = guarded_method(_connection, "set_session", check=forbid_inside_transaction, alters_settings=True)
    set_isolation_level = guarded_method(
        _connection, "set_isolation_level", ends_transaction=None, check=forbid_inside_transaction, alters_settings=True
    )
    #: The same for greenpg's own use.
    _set_session = guarded_method(_connection, "set_session")

    cursor_factory = noted_property(_connection, "cursor_factory")
    notices = noted_property(_connection, "notices")
    notifies = noted_property(_connection, "notifies")

    @property
    def status(self) -> int:
        """As psycopg2's; STATUS_BEGIN in a transaction block, also before its first statement."""
        status = int(_get_status(self))
        return extensions.STATUS_BEGIN if status == extensions.STATUS_READY and self._blocks else status

    #: psycopg2's own, without a property of ours in between.
    _driver_status = _descriptors.status

    @functools.cached_property
    def _blocks(self) -> Blocks:
        return Blocks()

    @functools.cached_property
    def _status_word(self) -> Any:
        """psycopg2's `status`, to be written; None where that isn't possible: see driver.py."""
        return driver_status.word_of(self)

    def __enter__(self) -> Any:
        forbid_inside(self, "with connection: ")
        entered = _connection.__enter__(self)
        self._is_entered = True
        return entered

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_entered = False
        return _connection.__exit__(self, exc_type, exc, traceback)

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
        forbid_inside(self, "commit")
        if _get_status(self) == extensions.STATUS_READY:
            # Nothing to wait for, and a task that does it in a loop would keep all others from running.
            hub().sleep(0)
        self._end_transaction("commit")

    def tpc_commit(self, *xid: Any) -> None:
        """Commit a two-phase transaction, as psycopg2's. Suspends; interrupted, it does as `commit()`."""
        self._end_transaction("tpc_commit", *xid)

    def _end_transaction(self, name: str, *args: Any) -> None:
        """Call psycopg2's method of that name; note a COMMIT's outcome on what is raised."""
        if self._owner is not None:
            self._refuse_if_owned(name)
        # The server rolls a transaction in error back, whatever it is told, and psycopg2 says nothing.
        is_failed = self.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
        outcome: str | None = ROLLED_BACK if is_failed else COMMITTED
        outer_call = self._call
        self._call = name
        self._transactions_ended += 1
        try:
            getattr(_connection, name)(self, *args)
        except BaseException as error:
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
            self._call = outer_call
            if self._interruption is not None:
                if name.endswith("commit") and outcome is not None:
                    note_commit_outcome(self._interruption, outcome)
                self._raise_interruption()

    def close(self) -> None:
        """Close the connection, as psycopg2's; or return it, if a pool made with `close_returns` has lent it.

        If another task waits for the server on it, that task gets an OperationalError; the caller is suspended then,
        until it has left.
        """
        if self._lender is not None and self._lender.close_returns:
            self._lender.give_back()
            return
        if self._owner is not None and not (isinstance(self._owner, CopyBlock) and self._owner.let_go()):
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
        self._has_altered_settings = True

    def _forget_deadlines(self) -> None:
        """Also those of blocks that nobody will leave."""
        self._deadlines = None

    def _belongs_to(self, lender: Lender) -> None:
        """From a pool that has opened it."""
        self._lender = lender

    def _settings(self) -> SessionSettings:
        """What a pool notes, in order to put it back with `_put_back()`."""
        settings = SessionSettings.of(self)
        self._has_altered_settings = False
        return settings

    def _put_back(self, settings: SessionSettings) -> None:
        settings.put_back(self)
        self._has_altered_settings = False

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
        factory = cursor_factory or _get_cursor_factory(self)
        if factory is None and name is None and not withhold and scrollable is None:
            return _new_cursor(self, None, self._client_cursor)
        green = self._client_cursor if name is None else self._server_cursor
        if factory is not None and is_replication_cursor(factory):
            green = ReplicationCursor
        factory = green if factory is None else compose(factory, green)
        return _new_cursor(self, name, factory, withhold, scrollable)
