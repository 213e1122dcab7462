"""`pool.run()`: a function in a transaction, again as long as it's certain that nothing of it was done."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from ..errors import COMMITTED, UNKNOWN, commit_outcome, is_interruption
from ..hubs import hub
from .core import PoolCore
from .options import ConnT
from .returning import READ_ONLY, says_server_goes

logger = logging.getLogger("greenpg.pool")

T = TypeVar("T")

_REPEATABLE = (psycopg2.errors.SerializationFailure, psycopg2.errors.DeadlockDetected)
_FIRST_DELAY = 0.005
_LONGEST_DELAY = 1.0


def run_repeatedly(
    core: PoolCore,
    function: Callable[[ConnT], T],
    attempts: int,
    make_block: Callable[[], AbstractContextManager[ConnT, bool | None]],
    is_readonly: bool,
) -> T | None:
    """`pool.run()`, in transaction blocks. Between two attempts the connection is free for others."""
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    delay = _FIRST_DELAY
    for attempt in range(1, attempts + 1):
        conn: ConnT | None = None
        result: T | None = None  # of a block that a Rollback has ended
        try:
            with make_block() as conn:
                result = function(conn)
            return result
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            if commit_outcome(error) == UNKNOWN and _is_committed_after_all(core, error):
                return result
            if not _is_undone(error, conn, is_readonly):
                raise
            if attempt == attempts:
                error.args = (f"{str(error).rstrip()} (tried {attempts} times)",)
                raise
            logger.info(
                "pool %r: attempt %d of %d failed: %s", core.options.name, attempt, attempts, type(error).__name__
            )
        hub().sleep(delay * random.uniform(0.5, 1.5))
        delay = min(delay * 2, _LONGEST_DELAY)
    raise AssertionError("unreachable")


def _is_undone(error: psycopg2.Error, conn: extensions.connection | None, is_readonly: bool) -> bool:
    """Whether the whole transaction is certainly undone, for a reason that the next attempt may not meet."""
    if isinstance(error, _REPEATABLE):
        return True
    if conn is None or (commit_outcome(error) in (COMMITTED, UNKNOWN) and not is_readonly):
        return False
    if error.pgcode == READ_ONLY:
        return not is_readonly
    if error.pgcode is None:
        return bool(conn.closed) and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return says_server_goes(error.pgcode)


def _is_committed_after_all(core: PoolCore, error: psycopg2.Error) -> bool:
    """Settle a COMMIT in doubt, if it can be."""
    try:
        return commit_outcome(error, core.pool()) == COMMITTED  # type: ignore[arg-type]  # any of its classes
    except psycopg2.Error as failure:
        if is_interruption(failure):
            raise
        logger.warning("pool %r: a COMMIT in doubt couldn't be settled: %s", core.options.name, failure)
        return False
