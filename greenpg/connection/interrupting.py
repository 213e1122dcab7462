"""Cancel and keep: what happens to a connection when an exception is thrown into its wait.

The statement is cancelled, the answer is waited for, and the connection is as after any failed statement. If that
takes longer than `CANCEL_TIMEOUT`, or is itself interrupted, the connection is cut off: psycopg2 closes it then.

Nothing here may leave a cancel request on its way that could hit a later statement.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..errors import DeadlineExceeded, is_interruption, set_attribute
from ..hubs import FdWaiter
from .cancel import request_cancel, shut_down

logger = logging.getLogger("greenpg.connection")

#: Seconds that an interrupted statement gets to come to its end.
CANCEL_TIMEOUT = 5.0

#: These end a transaction: they take no time that would be worth saving, and nobody wants their outcome in doubt.
ENDING_CALLS = frozenset({"commit", "rollback", "tpc_commit", "tpc_rollback", "tpc_prepare"})

_FIRST_PAUSE = 0.05


def interrupt(conn: Any, waiter: FdWaiter, exception: BaseException) -> None:
    """Bring the statement under way to its end. Called in the wait callback; suspends.

    Returns if the connection is kept: the guarded call raises the exception then. Otherwise raises, which makes
    psycopg2 close the connection.
    """
    if conn._call is None:  # nobody would raise the exception at the end of the call
        interrupt_foreign(conn)
        raise exception
    conn._interruption = exception
    try:
        _finish_statement(conn, waiter, is_ending=conn._call in ENDING_CALLS)
    except BaseException as error:
        if isinstance(error, psycopg2.Error) and not is_interruption(error):
            logger.warning("closing %s, interrupted by %s: %s", conn, type(exception).__name__, str(error).strip())
        else:
            note_first(error, exception)
            conn._interruption = error
        shut_down(conn)
        raise
    if isinstance(exception, DeadlineExceeded) and conn._call in ENDING_CALLS and not is_interruption(exception):
        conn._interruption = None  # it is done, if late: no reason to complain


def note_first(second: BaseException, first: BaseException) -> None:
    """Show the exception that was thrown in first as the second one's context: it has none of its own accord."""
    if second.__context__ is None and second is not first:
        set_attribute(second, "__context__", first)


def interrupt_foreign(conn: Any) -> None:
    """Cancel what runs on a connection that is going to be closed. Suspends; its own errors are logged only."""
    try:
        request_cancel(conn, time.monotonic() + CANCEL_TIMEOUT)
    except psycopg2.Error as error:
        if is_interruption(error):
            raise
        logger.warning("could not cancel the statement on %s, which is closed: %s", conn, error)


def _finish_statement(conn: Any, waiter: FdWaiter, is_ending: bool) -> None:
    give_up_at = time.monotonic() + CANCEL_TIMEOUT
    pause = _FIRST_PAUSE
    cancel_again_at = 0.0
    uncertain: psycopg2.Error | None = None
    while True:
        state = conn.poll()
        if state == extensions.POLL_OK:
            break
        now = time.monotonic()
        if now >= give_up_at:
            raise psycopg2.OperationalError(f"the server has not ended the statement within {CANCEL_TIMEOUT:g} s")
        if not is_ending and now >= cancel_again_at:
            # Again and again, because a request that comes before the statement finds nothing to cancel.
            try:
                request_cancel(conn, give_up_at)
            except psycopg2.Error as error:
                if is_interruption(error):
                    raise
                uncertain = error
            cancel_again_at = time.monotonic() + pause
            pause *= 2
            continue
        wait_until = give_up_at if is_ending else min(give_up_at, cancel_again_at)
        if state == extensions.POLL_READ:
            waiter.wait_read(wait_until)
        else:
            waiter.wait_write(wait_until)
    if uncertain is not None:
        raise psycopg2.OperationalError(f"a cancel request may still be under way: {uncertain}")
