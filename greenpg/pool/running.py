"""Work that a pool does by itself: functions in repeated transactions, single statements in one round trip."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
import psycopg2.errors

from ..connection.lazy_begin import execute_alone
from ..errors import COMMITTED, ROLLED_BACK, UNKNOWN, commit_outcome, is_interruption, note_commit_outcome
from ..hubs import hub
from .healing import note_error

if TYPE_CHECKING:
    from .pool import ConnectionPool

logger = logging.getLogger("greenpg.pool")

T = TypeVar("T")

_REPEATABLE = (psycopg2.errors.SerializationFailure, psycopg2.errors.DeadlockDetected)
_FIRST_DELAY = 0.005
_LONGEST_DELAY = 1.0


def run_repeatedly(pool: ConnectionPool, function: Callable[[Any], T], attempts: int, **transaction: Any) -> T | None:
    """`pool.run()`. Between two attempts the connection is free for others."""
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    delay = _FIRST_DELAY
    for attempt in range(1, attempts + 1):
        try:
            with pool.transaction(**transaction) as conn:
                return function(conn)
            return None  # a Rollback has ended the block
        except _REPEATABLE as error:
            if attempt == attempts:
                error.args = (f"{str(error).rstrip()} (tried {attempts} times)",)
                raise
            logger.info("pool %r: attempt %d of %d failed: %s", pool.name, attempt, attempts, type(error).__name__)
        hub().sleep(delay * random.uniform(0.5, 1.5))
        delay = min(delay * 2, _LONGEST_DELAY)
    raise AssertionError("unreachable")


def run_one_shot(
    pool: ConnectionPool, query: Any, vars: Any, fetch: Callable[[Any], T], cursor_factory: Any, timeout: float | None
) -> T:
    """One statement, committed by itself, in one round trip.

    On a connection whose BEGIN says more than that (its isolation level ...) it's a transaction, which takes two.
    """
    conn = pool._lend(timeout)
    try:
        cur = conn.cursor(None, cursor_factory)
        is_transaction = not conn.autocommit and conn._slot.settings.puts_more_into_begin
        try:
            if is_transaction:
                with conn.transaction():
                    cur.execute(query, vars)
                    result = fetch(cur)
            else:
                execute_alone(conn, cur, query, vars)
                result = fetch(cur)
        except BaseException as error:
            is_done = not is_transaction and cur.statusmessage is not None
            _note_outcome(conn, error, COMMITTED if is_done else ROLLED_BACK)
            raise
        cur.close()
        return result
    except psycopg2.Error as error:
        note_error(pool, conn, error)
        raise
    finally:
        pool.putconn(conn)


def _note_outcome(conn: Any, error: BaseException, outcome: str) -> None:
    """What has become of the statement. Nothing is said of an error before anything was sent."""
    if commit_outcome(error) is not None:
        return
    if conn.closed:
        note_commit_outcome(error, UNKNOWN)
    elif outcome == COMMITTED or is_interruption(error) or getattr(error, "pgcode", None) is not None:
        note_commit_outcome(error, outcome)


def first_value(cur: Any) -> Any:
    """The first column of the first row; None if there is no row."""
    row = cur.fetchone()
    if row is None:
        return None
    return next(iter(row.values())) if isinstance(row, dict) else row[0]
