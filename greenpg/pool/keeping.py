"""What a pool does now and then: close a connection that isn't needed, report one that is held for too long.

One task, only while there is something to do; it holds its pool by a weak reference while it waits.
"""

from __future__ import annotations

import logging
import time
import traceback
import weakref
from typing import TYPE_CHECKING

from ..hubs import Event, hub
from .ledger import LENT, Slot
from .returning import close_quietly

if TYPE_CHECKING:
    from .base import BasePool

logger = logging.getLogger("greenpg.pool")


class Keeper:
    """The task, and what it has to remember."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = weakref.ref(pool, lambda _: self.stop())
        self._wake: Event | None = None
        self._is_stopped = False
        self._is_running = False
        self._shrink_at = 0.0

    def start(self) -> None:
        """Start the task if there's something to do and it isn't running. Doesn't suspend."""
        pool = self._pool()
        if pool is None or pool.closed or self._is_running or not self._has_work(pool):
            return
        self._is_running = True
        self._shrink_at = time.monotonic() + pool.max_idle
        hub().spawn(_keep, self._pool, self)

    def stop(self) -> None:
        """End the task soon. Doesn't suspend."""
        self._is_stopped = True
        wake = self._wake
        if wake is not None:
            wake.set()

    def _has_work(self, pool: BasePool) -> bool:
        may_shrink = pool._keeps_idle and pool._ledger.max_size > pool._ledger.min_size
        return may_shrink or pool.leak_after is not None

    def note_stack(self, slot: Slot) -> None:
        """Remember where the connection was taken: for the report of a leak."""
        slot.stack = traceback.format_list(traceback.extract_stack(limit=12)[:-2])

    def seconds_to_rest(self, pool: BasePool) -> float:
        rest = max(self._shrink_at - time.monotonic(), 0.01)
        return rest if pool.leak_after is None else min(rest, max(pool.leak_after / 2, 0.01))

    def work(self, pool: BasePool) -> None:
        now = time.monotonic()
        if now >= self._shrink_at:
            self._shrink_at = now + pool.max_idle
            self._shrink(pool)
        if pool.leak_after is not None:
            self._report_leaks(pool, now, pool.leak_after)

    def _shrink(self, pool: BasePool) -> None:
        ledger = pool._ledger
        with pool._mutex:
            unused, ledger.least_idle = ledger.least_idle, len(ledger.idle)
            if pool.closed or not unused or not ledger.idle or ledger.size <= ledger.min_size:
                return
            slot = ledger.idle[0]
            ledger.remove(slot)
            ledger.least_idle = len(ledger.idle)
        logger.info("pool %r: shrinking to %d, as %d connections went unused", pool.name, ledger.size, unused)
        close_quietly(slot.conn)

    def _report_leaks(self, pool: BasePool, now: float, leak_after: float) -> None:
        with pool._mutex:
            leaks = [
                slot
                for slot in pool._ledger.slots
                if slot.state is LENT and slot.lent_at and now - slot.lent_at >= leak_after and slot.stack
            ]
            reports = [(slot.holder, now - slot.lent_at, slot.conn, slot.stack) for slot in leaks]
            for slot in leaks:
                slot.stack = None  # once
        for holder, seconds, conn, stack in reports:
            logger.warning(
                "pool %r: %s has held a connection for %.1f s (leak_after is %s): %s; last statement: %s; "
                "taken at:\n%s",
                pool.name,
                hub().describe(holder),
                seconds,
                leak_after,
                conn,
                conn._last_statement or "unknown, for lack of a greenpg.SqlLog",
                "".join(stack or []).rstrip(),
            )


def _keep(pool_ref: weakref.ref[BasePool], keeper: Keeper) -> None:
    while True:
        pool = pool_ref()
        if pool is None or keeper._is_stopped:
            break
        keeper._wake = event = hub().event()
        deadline = time.monotonic() + keeper.seconds_to_rest(pool)
        del pool
        if not keeper._is_stopped:
            event.wait(deadline)
        pool = pool_ref()
        if pool is None or keeper._is_stopped:
            break
        keeper.work(pool)
        del pool
    keeper._is_running = False
