"""Cancel and keep: what happens to a connection when an exception is thrown into its wait.

What runs is cancelled, the answer is waited for, and the connection is as after any failed statement. If that takes
longer than `END_TIMEOUT`, or is itself interrupted, the connection is cut off.

Nothing here may leave a cancel request on its way that could hit a later statement.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

import psycopg2
from psycopg2 import extensions

from ..errors import DeadlineExceeded, is_interruption, set_attribute
from ..hubs import FdWaiter
from .cancel import request_cancel, shut_down
from .guarded_connection import GuardedConnection

logger = logging.getLogger("greenpg.connection")

#: Seconds that whatever is interrupted or abandoned gets to come to its end; then the connection is closed.
END_TIMEOUT = 5.0

#: These end a transaction: they take no time that would be worth saving, and nobody wants their outcome in doubt.
ENDING_CALLS = frozenset({"commit", "rollback", "tpc_commit", "tpc_rollback", "tpc_prepare"})

_FIRST_PAUSE = 0.05


def end_deadline() -> float:
    """`END_TIMEOUT` from now, by `time.monotonic()`."""
    return time.monotonic() + END_TIMEOUT


class Running(Protocol):
    """Something that a server is doing for a connection."""

    #: What it is called in errors.
    what: str

    def is_over(self) -> bool:
        """Take in what has come. Doesn't suspend. Raises if the connection is lost."""

    def wait(self, until: float) -> object:
        """Wait for more to come, or for the time. Suspends."""


def end_on_server(conn: GuardedConnection, running: Running, give_up_at: float, *, cancels: bool = True) -> None:
    """Bring it to its end, by cancel requests or (`cancels` false) by waiting. Suspends until `give_up_at` at most.

    Raises `psycopg2.OperationalError` if it isn't over then, or if a request may still be under way: in both cases the
    connection can't be kept.
    """
    pause = _FIRST_PAUSE
    cancel_again_at = 0.0
    uncertain: psycopg2.Error | None = None
    while not running.is_over():
        now = time.monotonic()
        if now >= give_up_at:
            raise psycopg2.OperationalError(f"the server has not ended {running.what} within {END_TIMEOUT:g} s")
        if not cancels:
            running.wait(give_up_at)
        elif now < cancel_again_at:
            running.wait(min(give_up_at, cancel_again_at))
        else:
            # Again and again, because a request that comes before the statement finds nothing to cancel.
            try:
                request_cancel(conn, give_up_at)
            except psycopg2.Error as error:
                if is_interruption(error):
                    raise
                uncertain = error
            cancel_again_at = time.monotonic() + pause
            pause *= 2
    if uncertain is not None:
        raise psycopg2.OperationalError(f"a cancel request may still be under way: {uncertain}")


class _Statement:
    """The statement that psycopg2 waits for."""

    what = "the statement"

    def __init__(self, conn: GuardedConnection, waiter: FdWaiter) -> None:
        self._conn = conn
        self._waiter = waiter
        self._state = extensions.POLL_OK

    def is_over(self) -> bool:
        self._state = self._conn.poll()
        return bool(self._state == extensions.POLL_OK)

    def wait(self, until: float) -> object:
        wait = self._waiter.wait_read if self._state == extensions.POLL_READ else self._waiter.wait_write
        return wait(until)


def interrupt(conn: GuardedConnection, waiter: FdWaiter, exception: BaseException) -> None:
    """Bring the statement under way to its end. Called in the wait callback; suspends.

    Returns if the connection is kept: the call raises the exception when it leaves the gate. Otherwise raises, which
    makes psycopg2 close the connection.
    """
    gate = conn._gate
    call = gate.call
    if call is None:  # nobody would raise the exception at the end of the call
        cancel_unheeded(conn)
        raise exception
    gate.hold_back(exception)
    try:
        end_on_server(conn, _Statement(conn, waiter), end_deadline(), cancels=call not in ENDING_CALLS)
    except BaseException as error:
        if isinstance(error, psycopg2.Error) and not is_interruption(error):
            logger.warning("closing %s, interrupted by %s: %s", conn, type(exception).__name__, str(error).strip())
        else:
            note_first(error, exception)
            gate.hold_back(error)
        shut_down(conn)
        raise
    if isinstance(exception, DeadlineExceeded) and call in ENDING_CALLS and not is_interruption(exception):
        gate.hold_back(None)  # it is done, if late: no reason to complain


def note_first(second: BaseException, first: BaseException) -> None:
    """Show the exception that was thrown in first as the second one's context: it has none of its own accord."""
    if second.__context__ is None and second is not first:
        set_attribute(second, "__context__", first)


def cancel_unheeded(conn: extensions.connection) -> None:
    """Cancel what runs on a connection that is going to be closed. Suspends; its own errors are logged only."""
    try:
        request_cancel(conn, end_deadline())
    except psycopg2.Error as error:
        if is_interruption(error):
            raise
        logger.warning("could not cancel the statement on %s, which is closed: %s", conn, error)


def cut_off(conn: GuardedConnection) -> None:
    """Close a connection on which something could not be brought to its end. Doesn't suspend."""
    shut_down(conn)
    conn._gate.vacate()
    conn._gate.close_waiter()
    extensions.connection.close(conn)
