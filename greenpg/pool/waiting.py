"""Waits in a pool's line for a connection. Whoever is killed or gives up while waiting takes nothing along."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import PoolClosed, PoolTimeout, TooManyRequests
from ..hubs import hub
from .line import Waiter

if TYPE_CHECKING:
    from .ledger import Slot
    from .pool import ConnectionPool


def wait_in_line(pool: ConnectionPool, timeout: float) -> Slot:
    """Wait until a connection is handed over, for at most `timeout` seconds. Suspends; raises what `getconn()` does."""
    started = time.monotonic()
    waiter = Waiter(hub().event())
    _join(pool, waiter, timeout)
    try:
        pool._opener.start_workers()
        waiter.event.wait(started + timeout)
    except BaseException:
        pool._stats.requests_errors += 1
        slot = _leave(pool, waiter)
        if slot is not None:  # handed over at the same moment
            pool._pass_on(slot)
        raise
    finally:
        pool._stats.requests_wait_ms += (time.monotonic() - started) * 1000.0
    slot = _leave(pool, waiter)
    if slot is not None:
        return slot
    pool._stats.requests_errors += 1
    raise waiter.error or timeout_error(pool, timeout)


def _join(pool: ConnectionPool, waiter: Waiter, timeout: float) -> None:
    ledger = pool._ledger
    with pool._mutex:
        if pool.closed:
            raise PoolClosed(f"the pool {pool.name!r} is already closed")
        if ledger.idle:  # another native thread returned it since the caller looked
            waiter.slot = ledger.take()
            waiter.event.set()
            return
        is_full = pool.max_waiting and len(ledger.line) >= pool.max_waiting
        if timeout and not is_full:
            pool._stats.requests_queued += 1
            ledger.line.join(waiter)
            pool._grow()
            pool._opener.hurry()
            return
        pool._stats.requests_errors += 1
    if is_full:
        raise TooManyRequests(
            f"the pool {pool.name!r} has already {pool.max_waiting} requests waiting, which is its max_waiting"
        )
    raise timeout_error(pool, timeout)


def _leave(pool: ConnectionPool, waiter: Waiter) -> Slot | None:
    with pool._mutex:
        return pool._ledger.leave_line(waiter)


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
    text = f"couldn't get a connection from pool {pool.name!r} after {timeout:.2f} s: {counts}"
    if held:
        text += f"; {hub().describe(held[0])} has held one for {held[1]:.1f} s"
    if pool._opener.last_error:
        text += f"; last connection error: {pool._opener.last_error}"
    return PoolTimeout(text)
