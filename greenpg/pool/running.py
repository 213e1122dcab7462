"""Work that a pool does by itself: functions in repeated transactions, single statements in one round trip."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
import psycopg2.errors

from ..connection.riding import hide_autocommit
from ..hubs import hub
from .healing import note_error

if TYPE_CHECKING:
    from .pool import ConnectionPool

logger = logging.getLogger("greenpg.pool")

T = TypeVar("T")

_REPEATABLE = (psycopg2.errors.SerializationFailure, psycopg2.errors.DeadlockDetected)
_FIRST_DELAY = 0.005
_LONGEST_DELAY = 1.0


def run_repeatedly(pool: ConnectionPool, function: Callable[[Any], T], attempts: int, **transaction: Any) -> T:
    """`pool.run()`. Between two attempts the connection is free for others."""
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    delay = _FIRST_DELAY
    for attempt in range(1, attempts + 1):
        try:
            with pool.transaction(**transaction) as conn:
                return function(conn)
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
    """One statement, committed by itself, in one round trip."""
    conn = pool._lend(timeout)
    try:
        was_autocommit = conn._hides_autocommit or hide_autocommit(conn) or conn.autocommit
        if not was_autocommit:
            conn.autocommit = True
        try:
            cur = conn.cursor(None, cursor_factory)
            cur.execute(query, vars)
            result = fetch(cur)
            cur.close()
            return result
        finally:
            if not was_autocommit and not conn.closed:
                conn.autocommit = False
    except psycopg2.Error as error:
        note_error(pool, conn, error)
        raise
    finally:
        pool.putconn(conn)


def first_value(cur: Any) -> Any:
    """The first column of the first row; None if there is no row."""
    row = cur.fetchone()
    if row is None:
        return None
    return next(iter(row.values())) if isinstance(row, dict) else row[0]
