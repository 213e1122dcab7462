"""Cancel and keep: what happens to a connection when an exception is thrown into its wait.

What runs is cancelled, the answer is waited for, and the connection is as after any failed statement. If that takes
longer than the connection's `interruption_grace`, or is itself interrupted, the exception comes out, the connection is
closed, and a task ends what runs: see remains.py.

Nothing here may leave a cancel request on its way that could hit a later statement.
"""

from __future__ import annotations

import socket
import time
from typing import Protocol

import psycopg2
from psycopg2 import extensions

from ..errors import DeadlineExceeded, is_interruption, set_attribute
from ..hubs import FdWaiter, hub
from .cancel import request_cancel, shut_down
from .guarded_connection import GuardedConnection
from .occupants import Parent
from .remains import give_up, give_up_from_outside, grace_ends_at

#: Seconds that what is ended for no haste gets to come to its end; then the connection is closed.
END_TIMEOUT = 5.0

#: These end a transaction: they take no time that would be worth saving, and nobody wants their outcome in doubt.
ENDING_CALLS = frozenset({"commit", "rollback", "tpc_commit", "tpc_rollback", "tpc_prepare"})

_FIRST_PAUSE = 0.05


def end_deadline() -> float:
    """`END_TIMEOUT` from now, by `time.monotonic()`."""
    return time.monotonic() + END_TIMEOUT


def end_deadline_after(conn: GuardedConnection, exception: BaseException | None) -> float:
    """Until when what the exception has ended may take to end: a kill, a timeout and a deadline come out at once."""
    is_error = isinstance(exception, Exception) and not isinstance(exception, DeadlineExceeded)
    if exception is None or isinstance(exception, GeneratorExit) or (is_error and not is_interruption(exception)):
        return end_deadline()
    return grace_ends_at(conn)


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
    uncertain = ""  # not the error: its traceback refers to this frame
    while not running.is_over():
        now = time.monotonic()
        if now >= give_up_at:
            raise psycopg2.OperationalError(f"the server has not ended {running.what} in time")
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
                uncertain = str(error)
            cancel_again_at = time.monotonic() + pause
            pause *= 2
    if uncertain:
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
    if isinstance(gate.owner, Parent):  # what runs isn't ours
        raise exception
    if call is None:  # nobody would raise the exception at the end of the call
        give_up(conn)
        raise exception
    cancels = call not in ENDING_CALLS
    gate.hold_back(exception)
    try:
        end_on_server(conn, _Statement(conn, waiter), grace_ends_at(conn), cancels=cancels)
    except BaseException as error:
        if isinstance(error, psycopg2.Error) and not is_interruption(error):
            reason = f"interrupted by {type(exception).__name__}: {str(error).strip()}"
            give_up(conn, cancels=cancels, reason=reason)
        else:
            give_up(conn, cancels=cancels)
            note_first(error, exception)
            gate.hold_back(error)
        raise
    else:
        if isinstance(exception, DeadlineExceeded) and not cancels and not is_interruption(exception):
            gate.hold_back(None)  # it is done, if late: no reason to complain
    finally:
        del exception  # it gets the error as its context, and so this frame, which would refer to it


def note_first(second: BaseException, first: BaseException) -> None:
    """Show the exception that was thrown in first as the second one's context: it has none of its own accord."""
    if second.__context__ is None and second is not first:
        set_attribute(second, "__context__", first)


def cut_off(conn: GuardedConnection, *, cancels: bool = True) -> None:
    """Close a connection on which something could not be brought to its end; a task ends it. Doesn't suspend."""
    give_up(conn, cancels=cancels)
    conn._gate.vacate()
    conn._gate.close_waiter()
    extensions.connection.close(conn)


def throw_out(conn: GuardedConnection) -> None:
    """Make the task that waits in the connection leave, and what it runs end. Suspends until it has left.

    Its statement gets the server's error, or the loss of the connection if the server doesn't answer.
    """
    gate = conn._gate
    cancels = gate.call not in ENDING_CALLS
    try:
        if cancels:
            request_cancel(conn, grace_ends_at(conn))
    except psycopg2.OperationalError as error:
        if is_interruption(error):
            raise
    finally:
        shut_down(conn, socket.SHUT_WR)  # it can't send anything more
    give_up_at, shut_at = end_deadline(), grace_ends_at(conn)
    has_shut = False
    while gate.owner is not gate.free:
        now = time.monotonic()
        if now >= give_up_at:
            gate.make_way("close")
        if now >= shut_at and not has_shut:
            has_shut = True
            give_up_from_outside(conn, cancels=cancels)
        hub().sleep(0.001)
    if not conn.closed:
        give_up(conn, cancels=False)
