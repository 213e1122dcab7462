"""What a leased connection is asked, and what is done to it, before it goes back."""

from __future__ import annotations

import logging
import sys
from types import CodeType, FrameType

import psycopg2

from ...connection.connection import Connection
from ...errors import is_interruption
from ..core import PoolCore
from ..health import IDLE_STATUS, READY
from ..returning import give_back
from ..slot import Slot

logger = logging.getLogger("greenpg.pool")

#: This package's modules.
_OURS = "greenpg."


def is_at_rest(conn: Connection) -> bool:
    """No transaction is open, nor a block."""
    return (
        conn._driver_status == READY
        and conn.get_transaction_status() == IDLE_STATUS
        and not conn._blocks
        and not conn._is_entered
        and conn._gate.queue is None
    )


def roll_back_quietly(conn: Connection) -> None:
    """The program's own transaction, as psycopg2's `close()` does; anything else the pool ends, with a warning."""
    if conn._driver_status != READY and not (conn.closed or conn._blocks or conn._is_entered):
        try:
            conn.rollback()
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            logger.debug("rolling back %s: %s", conn, error)


def give_back_abandoned(core: PoolCore, slot: Slot, lent_at: float, needs_reset: bool) -> None:
    """In a task of its own: nobody has the connection any more. Suspends as `putconn()` does."""
    if slot.lent_at != lent_at:
        return
    try:
        if needs_reset:
            slot.want_reset()
        give_back(core, slot)
    except Exception as error:
        logger.warning("pool %r: giving back an abandoned connection failed: %s", core.options.name, error)


def users_place() -> tuple[CodeType, int] | None:
    """The code and line that has called greenpg."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    return frame and (frame.f_code, frame.f_lineno)
