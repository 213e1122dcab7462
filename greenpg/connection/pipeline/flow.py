"""Statements under way in libpq's pipeline mode on psycopg2's connection, and psycopg2's `status`, which is kept true.

libpq is in pipeline mode only while something is under way in it. In a transaction BEGIN goes in front, `commit()`
sends COMMIT along, and psycopg2's own `status` is set to what is so then (driver.py). In autocommit a Sync follows each
statement, which makes it a transaction of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from ...driver import driver_status
from ...errors import (
    COMMITTED,
    ROLLED_BACK,
    UNKNOWN,
    DeadlineExceeded,
    PipelineAborted,
    is_interruption,
    note_commit_outcome,
)
from ..bulk.channel import ConnectionLost
from ..guarded_connection import GuardedConnection
from ..interrupting import cut_off, note_first
from ..lazy_begin import begin_of, is_autocommit
from .channel import PipelineChannel
from .pipelined_cursor import PipelinedCursor
from .statement import PipelinedStatement, add_note

logger = logging.getLogger("greenpg.connection")

_READY, _BEGIN = extensions.STATUS_READY, extensions.STATUS_BEGIN
_IDLE = extensions.TRANSACTION_STATUS_IDLE

_COMMIT = b"COMMIT"
_CAUGHT = (
    "the transaction was in error, so it has been rolled back instead of committed: an error of a statement in the "
    "pipeline was caught"
)


class Flow:
    """Of one connection, whose gate is the caller's business."""

    def __init__(self, conn: GuardedConnection) -> None:
        self._conn = conn
        #: Libpq is in pipeline mode.
        self._channel: PipelineChannel | None = None
        #: The channel of before: there is one for each connection.
        self._idle_channel: PipelineChannel | None = None
        #: Each statement is a transaction of its own.
        self._syncs_each = False
        #: psycopg2's status has been set to BEGIN, which it is only if nothing goes wrong.
        self._sets_status = False
        #: Nothing is put between the statements: they begin and commit by themselves.
        self.is_plain = False
        self._count = self._sent = 0
        #: Statements whose error nobody has got yet.
        self._failed: list[PipelinedStatement] = []
        #: Sends what is gathered in gathering.py, if anything is: before whatever comes.
        self.send_gathered: Callable[[], None] | None = None

    @property
    def connection(self) -> GuardedConnection:
        return self._conn

    def made(self, cursor: PipelinedCursor, statement: bytes) -> PipelinedStatement:
        """The next statement of the block."""
        self._count += 1
        return PipelinedStatement(self._count - 1, statement, cursor, self)

    def send(self, *statements: PipelinedStatement) -> None:
        """Send them, or have them sent with others. Suspends now and then.

        Raises `PipelineAborted` if the server would pass over them. `turn_on()` comes first.
        """
        channel = self._channel
        assert channel is not None
        if channel.is_aborted:
            raise PipelineAborted(
                "the statement was not sent, because one before it in the pipeline has failed: call sync() or "
                "rollback() first"
            )
        try:
            if self._conn._driver_status == _READY and not self._syncs_each and not self.is_plain:
                self._begin(channel)
            for statement in statements:
                channel.send(statement)
            if self._syncs_each:
                channel.sync()
        except ConnectionLost:
            raise self._lost() from None
        self._sent += 1
        if channel.is_full:
            self._wait(channel.flush)
        elif not self._sent & 31:
            channel.breathe()

    def count(self) -> None:
        """A statement goes another way."""
        self._count += 1

    def settle(self) -> None:
        """Have everything answered, and raise the first error that nobody has got yet. The connection is at rest
        then. Suspends."""
        self.bring_to_rest()
        error = self._first_error()
        try:
            if error is not None:
                raise error
        finally:
            del error  # no circle through its traceback

    def settle_quietly(self) -> None:
        """The same; nobody wants to know of errors."""
        try:
            self.bring_to_rest()
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            logger.warning("a pipeline could not be brought to its end: %s", error)
        for failed in self._failed:
            if not failed.is_told:
                logger.info("an error in a pipeline is dropped: %s", str(failed.error(failed.cursor)).rstrip())
        self._failed.clear()

    # -- libpq's pipeline mode

    def turn_on(self, *, is_plain: bool = False) -> bool:
        """False where psycopg2 has to begin the transaction by itself. Suspends if it's on in the other way."""
        if self.send_gathered is not None:
            self.settle()
        if self._channel is not None:
            if self.is_plain == is_plain:
                return True
            self.settle()
        conn = self._conn
        status = conn._driver_status
        is_alone = bool(is_autocommit(conn))
        if status not in (_READY, _BEGIN) or (
            status == _READY and not is_alone and (conn._status_word is None or not driver_status.is_proven)
        ):
            return False
        channel = self._idle_channel or PipelineChannel(conn, conn._gate.waiter_of(conn))
        channel.enter()
        # A COMMIT that was executed leaves psycopg2 without a transaction, but thinking that there is one.
        has_no_transaction = is_alone or (status == _BEGIN and conn.get_transaction_status() == _IDLE)
        self.is_plain, self._syncs_each = is_plain, has_no_transaction and not is_plain
        self._channel = self._idle_channel = channel
        return True

    def _turn_off(self) -> None:
        conn = self._conn
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.leave()
        self._settle_status()
        self._syncs_each = self.is_plain = False
        if not conn.closed:
            conn.poll()  # psycopg2 looks for notices and notifications; it doesn't wait

    def _settle_status(self) -> None:
        """psycopg2's status, whatever has become of BEGIN and COMMIT."""
        conn = self._conn
        if self._sets_status:
            self._sets_status = False
            word = conn._status_word
            if word is not None and conn._driver_status == _BEGIN and conn.get_transaction_status() == _IDLE:
                word.value = _READY

    def _begin(self, channel: PipelineChannel) -> None:
        conn = self._conn
        word = conn._status_word
        assert word is not None
        channel.send(self._own(begin_of(conn).rstrip(b";\n")))
        self._sets_status = True
        word.value = _BEGIN

    def _own(self, command: bytes) -> PipelinedStatement:
        return PipelinedStatement(None, command, None, self)

    def bring_to_rest(self) -> None:
        """Have everything answered. Suspends. Errors are told later."""
        if self.send_gathered is not None:
            self.send_gathered()
        channel = self._channel
        if channel is None:
            return
        if channel.pending or channel.needs_sync:
            self._wait(channel.finish)
        if self._channel is not None:
            self._turn_off()

    def wait_for(self, statement: PipelinedStatement) -> None:
        """Until it's answered. Suspends."""
        channel = self._channel
        if channel is None:
            raise psycopg2.InterfaceError("the pipeline of the statement is closed")
        self._conn._gate.refuse("fetch")
        self._wait(lambda: channel.read_until(statement))

    def _wait(self, transfer: Callable[[], None]) -> None:
        """If it raises, all has been answered, or the connection is closed."""
        conn = self._conn
        channel = self._channel
        assert channel is not None
        channel.limit(conn._gate.next_deadline())
        try:
            with conn._gate.occupied():
                transfer()
        except ConnectionLost:
            raise self._lost() from None
        except BaseException as exception:
            self._cancel(exception)
            raise

    def _cancel(self, exception: BaseException) -> None:
        """The exception was thrown into a wait, or its deadline has passed: nothing may go on at the server."""
        conn, channel = self._conn, self._channel
        if channel is None or conn.closed:
            return
        # A COMMIT isn't cancelled when it is all that is left.
        cancels = not all(statement is None or statement.query == _COMMIT for statement in channel.pending)
        try:
            with conn._gate.occupied():
                channel.end(exception, cancels=cancels)
            self._turn_off()
        except BaseException as second:
            self._channel = None
            cut_off(conn, cancels=cancels)
            self._lose_pending(channel, "the connection was closed when the pipeline was interrupted")
            if is_interruption(second) or not isinstance(second, psycopg2.Error | ConnectionLost):
                note_first(second, exception)
                raise
        finally:
            self._failed.clear()  # the exception is what is told

    def _lost(self) -> psycopg2.Error:
        """The error for it."""
        conn, channel = self._conn, self._channel
        self._channel = None
        error = self._first_error()  # the server may have said why
        reason = "the connection was lost during a pipeline"
        try:
            conn.poll()
        except psycopg2.Error as raised:
            if is_interruption(raised):
                raise
            reason = str(raised).strip()
        if not conn.closed:
            cut_off(conn)
        if channel is not None:
            self._lose_pending(channel, reason)
        self._failed.clear()
        return error or psycopg2.OperationalError(reason)

    @staticmethod
    def _lose_pending(channel: PipelineChannel, reason: str) -> None:
        for statement in channel.pending:
            if statement is not None and not statement.is_over:
                statement.lose(reason)
        channel.pending.clear()

    # -- errors

    def note_failed(self, statement: PipelinedStatement) -> None:
        """Its error is to be told by `settle()`, unless somebody asks its cursor before."""
        self._failed.append(statement)

    def forget_failed(self) -> None:
        """Somebody else tells their errors."""
        self._failed.clear()

    def _first_error(self) -> psycopg2.Error | None:
        failed = [statement for statement in self._failed if not statement.is_told]
        self._failed.clear()
        if not failed:
            return None
        error = failed[0].error(failed[0].cursor)
        if others := [str(statement.index) for statement in failed[1:]]:
            add_note(error, f"pipeline: these have failed, too: {', '.join(others[:20])}")
        for statement in failed:
            statement.cursor = None  # which refers to it
        return error

    # -- COMMIT

    def commit(self) -> None:
        """For psycopg2's `commit()`, which then has nothing left to do: COMMIT in the same flush as what comes before
        it. Where psycopg2's status can't be written, or nothing is under way, psycopg2 does it."""
        conn, channel = self._conn, self._channel
        commit = None
        try:
            rides = conn._status_word is not None and conn._tells_commit is None  # else psycopg2's way has more to do
            if channel is not None and self._has_transaction() and rides:
                commit = self._own(_COMMIT)
                if not channel.is_aborted:
                    channel.send(commit)
                    self._sets_status = True
            self.bring_to_rest()
        except ConnectionLost:
            raise _noted(self._lost(), UNKNOWN) from None
        except BaseException as error:
            outcome = self._outcome(commit)
            note_commit_outcome(error, outcome)
            if is_interruption(error) or not isinstance(error, DeadlineExceeded) or outcome != COMMITTED:
                raise
            # It is done, if late: no reason to complain.
        failure = self._first_error()
        if failure is None and (commit is None or commit.command == _COMMIT):
            return
        if self._has_transaction() and not conn.closed:
            with conn._gate.calling("rollback"):
                extensions.connection.rollback(conn)
        try:
            raise _noted(failure or psycopg2.errors.InFailedSqlTransaction(_CAUGHT), ROLLED_BACK)
        finally:
            del failure  # no circle through its traceback

    def _has_transaction(self) -> bool:
        return self._conn._driver_status == _BEGIN and not self._syncs_each

    def _outcome(self, commit: PipelinedStatement | None) -> str:
        if commit is None:
            return UNKNOWN if self._conn.closed else ROLLED_BACK
        if commit.command == _COMMIT:
            return COMMITTED
        return UNKNOWN if commit.is_lost or (self._conn.closed and not commit.is_over) else ROLLED_BACK


def _noted(error: psycopg2.Error, outcome: str) -> psycopg2.Error:
    note_commit_outcome(error, outcome)
    return error
