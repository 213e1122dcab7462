"""What happens to a connection that comes back: it is lent on, cleaned, or replaced. The slot is never lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions

from ..errors import is_interruption
from ..hubs import hub
from .sessions import reset_session

if TYPE_CHECKING:
    from .base import BasePool
    from .ledger import Slot

logger = logging.getLogger("greenpg.pool")

IDLE_STATUS = extensions.TRANSACTION_STATUS_IDLE
READY = extensions.STATUS_READY
_STATUS_NAMES = {
    extensions.TRANSACTION_STATUS_IDLE: "IDLE",
    extensions.TRANSACTION_STATUS_ACTIVE: "ACTIVE",
    extensions.TRANSACTION_STATUS_INTRANS: "INTRANS",
    extensions.TRANSACTION_STATUS_INERROR: "INERROR",
    extensions.TRANSACTION_STATUS_UNKNOWN: "UNKNOWN",
}


_CLOSED_BY_USER = 1  # psycopg2's `closed` is 2 after a failure


def status_name(status: int) -> str:
    """libpq's name of a transaction status."""
    return _STATUS_NAMES.get(status, str(status))


def clean_up(pool: BasePool, slot: Slot) -> None:
    """Bring a returned connection back to where it can be lent, or replace it.

    Suspends if there's work to do; but a `reset` is done by a task of the pool's own: it is none of the borrower's
    business, and he may be killed.
    """
    with pool._mutex:
        pool._ledger.start_reset(slot)
    if pool._reset is None or pool.closed:
        _clean_up(pool, slot)
        return
    try:
        hub().spawn(_clean_up, pool, slot)
    except BaseException:
        discard(pool, slot)
        raise


def _clean_up(pool: BasePool, slot: Slot) -> None:
    try:
        is_clean = _clean(pool, slot)
    except BaseException:
        # Killed while rolling back: nobody knows the connection's state now.
        discard(pool, slot)
        raise
    else:
        if is_clean:
            pool._pass_on(slot)
        else:
            discard(pool, slot)
    finally:
        with pool._mutex:
            pool._note_rest()


def discard(pool: BasePool, slot: Slot) -> None:
    """Close the connection, and open another one if it's needed. Doesn't suspend."""
    close_quietly(slot.conn)
    with pool._mutex:
        pool._ledger.remove(slot)
        if not pool.closed:
            pool._replace_lost()
    pool._opener.start_workers()


def close_quietly(conn: Any) -> None:
    try:
        conn.close()
    except Exception as error:
        logger.warning("closing %s failed: %s", conn, error)


def _clean(pool: BasePool, slot: Slot) -> bool:
    conn = slot.conn
    status = conn.info.transaction_status
    if pool.closed:
        return False
    if status == extensions.TRANSACTION_STATUS_UNKNOWN:
        pool._stats.returns_bad += 1
        logger.warning("pool %r: discarding closed connection: %s", pool.name, conn)
        if conn.closed != _CLOSED_BY_USER:
            pool._suspect_all()
        return False
    if status == extensions.TRANSACTION_STATUS_ACTIVE:
        pool._stats.returns_bad += 1
        logger.warning("pool %r: closing connection returned while a statement was running: %s", pool.name, conn)
        return False
    try:
        _roll_back(pool, conn, status)
        if slot.expires_at <= time.monotonic():
            logger.info("pool %r: discarding expired connection", pool.name)
            return False
        if pool._reset is reset_session:
            conn._put_back(slot.bare_settings)
        elif conn._has_altered_settings or conn.notices or conn.notifies:
            conn._put_back(slot.settings)
    except Exception as error:
        if is_interruption(error):
            raise
        logger.warning("pool %r: rollback failed: %s. Discarding connection %s", pool.name, error, conn)
        return False
    return pool._reset is None or _reset(pool, conn)


def _roll_back(pool: BasePool, conn: Any, status: int) -> None:
    """Out of all transactions and blocks. Suspends if there is a transaction."""
    if status != IDLE_STATUS:
        logger.warning("pool %r: rolling back returned connection: %s", pool.name, conn)
    conn._blocks.clear()
    if status != IDLE_STATUS and conn._driver_status == READY:
        # Somebody executed a BEGIN, which psycopg2 doesn't know of.
        with conn.cursor() as cur:
            cur.execute("ROLLBACK")
    if conn._is_entered:
        conn.__exit__(GeneratorExit, None, None)
    elif conn._driver_status != READY:
        conn.rollback()
    status = conn.info.transaction_status
    if status != IDLE_STATUS:
        raise RuntimeError(f"the status is {status_name(status)} afterwards")


def _reset(pool: BasePool, conn: Any) -> bool:
    assert pool._reset is not None
    try:
        pool._reset(conn)
        if pool._reset is reset_session and pool._configure is not None:
            pool._configure(conn)
    except Exception as error:
        if is_interruption(error):
            raise
        logger.warning("pool %r: error resetting connection: %s", pool.name, error)
        return False
    status = conn.info.transaction_status
    if status != IDLE_STATUS:
        logger.warning(
            "pool %r: connection left in status %s by reset function %r: discarded",
            pool.name,
            status_name(status),
            pool._reset,
        )
        return False
    return True
