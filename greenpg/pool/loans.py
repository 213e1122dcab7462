"""Who has a pool's connections right now."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psycopg2

from .core import PoolCore
from .slot import LENT

_MOST_FRAMES = 30


@dataclass(frozen=True)
class Loan:
    """One connection that is lent."""

    #: The name of the task that took it, and for how many seconds it has had it.
    holder: str
    seconds: float
    #: The server's process, None if the connection is closed.
    backend_pid: int | None
    #: Where the holder is now, outermost call first, as `traceback` formats it; None if it wasn't asked for, or the
    #: holder is the running task or has ended.
    stack: list[str] | None


def loans_of(core: PoolCore, stacks: bool) -> list[Loan]:
    """The longest first. Doesn't suspend."""
    with core.mutex:
        now = core.now()
        lent = [
            (slot.describe_holder(), now - slot.lent_at, slot.conn, slot.holder and slot.holder())
            for slot in core.ledger.slots
            if slot.state is LENT and slot.lent_at
        ]
    return [
        Loan(holder, seconds, _backend_pid(conn), _stack_of(task) if stacks else None)
        for holder, seconds, conn, task in sorted(lent, key=lambda loan: -loan[1])
    ]


def _backend_pid(conn: Any) -> int | None:
    try:
        return None if conn.closed else int(conn.info.backend_pid)
    except psycopg2.Error:
        return None


def _stack_of(task: Any) -> list[str] | None:
    """A greenlet that is suspended has a frame; a native thread is known by its number."""
    frames: Any = sys._current_frames()
    frame: FrameType | None = frames.get(task) if isinstance(task, int) else getattr(task, "gr_frame", None)
    return None if frame is None else traceback.format_stack(frame, limit=_MOST_FRAMES)
