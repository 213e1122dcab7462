"""Waits in a pool's line for a connection. Whoever is killed or gives up while waiting takes nothing along."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from ..errors import PoolClosed, PoolTimeout, TooManyRequests
from ..hubs import Event, hub
from .ledger import Slot

if TYPE_CHECKING:
    from .pool import ConnectionPool

logger = logging.getLogger("greenpg.pool")


def wait_in_line(pool: ConnectionPool, timeout: float) -> Slot:
    """Wait until a connection is handed over, for at most `timeout` seconds. Suspends; raises what `getconn()` does."""
    started = time.monotonic()
    event = hub().event()
    has_grown = _join(pool, event, timeout)
    try:
        if has_grown:
            pool._opener.start_workers()
        event.wait(started + timeout)
    except BaseException:
        pool._stats.requests_errors += 1
        slot = _leave(pool, event)
        if slot is not None:  # handed over at the same moment
            pool._pass_on(slot)
        raise
    finally:
        waited = time.monotonic() - started
        pool._stats.requests_wait_ms += waited * 1000.0
        if pool._observer is not None:
            pool._observer.waited(waited)
    if event.value.__class__ is Slot:
        return event.value
    slot = _leave(pool, event)  # at the last moment, it may have been handed over all the same
    if slot is not None:
        return slot
    pool._stats.requests_errors += 1
    raise event.value or timeout_error(pool, timeout)


def _join(pool: ConnectionPool, event: Event, timeout: float) -> bool:
    """Get in line, unless a connection is free after all. True: there are slots to be opened now."""
    ledger, mutex = pool._ledger, pool._mutex
    mutex.acquire()  # `with` takes half as long again
    try:
        if pool._closed:
            raise PoolClosed(f"the pool {pool.name!r} is already closed")
        if ledger.idle and (slot := ledger.take()):  # another native thread returned it since the caller looked
            event.set(slot)
            return False
        is_full = pool.max_waiting and len(ledger.line) >= pool.max_waiting
        if timeout and not is_full:
            pool._stats.requests_queued += 1
            ledger.line[event] = None
            if pool._opener.resting:
                pool._opener.hurry()
            if len(ledger.slots) < ledger.max_size:
                pool._grow()
                return True
            event.on_delay = pool._on_delay
            return False
        pool._stats.requests_errors += 1
    finally:
        mutex.release()
    if is_full:
        raise TooManyRequests(
            f"the pool {pool.name!r} has already {pool.max_waiting} requests waiting, which is its max_waiting"
        )
    raise timeout_error(pool, timeout)


def report_deadlock(pool: ConnectionPool, task: object | None) -> None:
    """The task (None: the running one) holds a connection and waits for another one. Doesn't suspend."""
    ledger = pool._ledger
    if len(ledger.slots) >= ledger.max_size:
        hub().spawn(  # logging may suspend
            logger.warning,
            "pool %r: probable deadlock: %s holds a connection and waits for another one, and all %d are taken",
            pool.name,
            hub().describe(hub().current() if task is None else task),
            ledger.size,
        )


def _leave(pool: ConnectionPool, event: Event) -> Slot | None:
    with pool._mutex:
        return pool._ledger.leave_line(event)


def timeout_error(pool: ConnectionPool, timeout: float) -> PoolTimeout:
    """The error that says what the pool's connections are doing instead. Doesn't suspend."""
    ledger = pool._ledger
    with pool._mutex:
        counts = (
            f"{ledger.size} of {ledger.max_size} connections, {ledger.lent_count} lent, "
            f"{len(ledger.opening)} connecting, {len(ledger.line)} requests waiting"
        )
        longest = ledger.longest_lent()
        held = longest and (longest.holder, time.monotonic() - longest.lent_at)
    waiting = len(ledger.line)
    text = f"couldn't get a connection from pool {pool.name!r} after {timeout:.2f} s: {counts}"
    if held:
        text += f"; {hub().describe(held[0])} has held one for {held[1]:.1f} s"
    if pool._opener.last_error:
        text += f"; last connection error: {pool._opener.last_error}"
    return PoolTimeout(text, size=ledger.size, lent=ledger.lent_count, waiting=waiting)
