"""What is done to a pool's connections while nobody asks for one: what isn't needed is closed, what is held too long is
reported; and what an administrator wants, `check()`, `drain()`, `resize()`.

One task, only while there is something to do; it has its pool's core by a weak reference while it waits.
"""

from __future__ import annotations

import logging
import weakref

from ..errors import is_interruption
from ..hubs import hub
from .core import PoolCore
from .failover import prove
from .opening import describe, replace, start_workers
from .slot import LENT, RESETTING, Slot
from .tasks import Keeper

logger = logging.getLogger("greenpg.pool")


def start_keeper(core: PoolCore) -> None:
    """Start the task if there's something to do and it isn't running. Doesn't suspend."""
    keeper, ledger, options = core.keeper, core.ledger, core.options
    may_shrink = ledger.keeps_idle and ledger.max_size > ledger.least_kept
    if core.is_closed or keeper.is_running or not (may_shrink or options.leak_after is not None):
        return
    keeper.begin(shrink_at=core.now() + options.max_idle)
    hub().spawn(_keep, weakref.ref(core, lambda _: keeper.stop()), keeper)


def _keep(core_ref: weakref.ref[PoolCore], keeper: Keeper) -> None:
    while not keeper.is_stopped:
        core = core_ref()
        if core is None:
            break
        event, deadline = hub().event(), core.now() + _seconds_to_rest(core)
        del core
        keeper.rest(event, deadline)
        core = core_ref()
        if core is None or keeper.is_stopped:
            break
        _work(core)
        del core
    keeper.end()


def _seconds_to_rest(core: PoolCore) -> float:
    rest = max(core.keeper.shrink_at - core.now(), 0.01)
    leak_after = core.options.leak_after
    return rest if leak_after is None else min(rest, max(leak_after / 2, 0.01))


def _work(core: PoolCore) -> None:
    now = core.now()
    if now >= core.keeper.shrink_at:
        core.keeper.shrink_again_at(now + core.options.max_idle)
        _shrink(core)
    if core.options.leak_after is not None:
        _report_leaks(core, now, core.options.leak_after)


def _shrink(core: PoolCore) -> None:
    with core.mutex:
        slot = None if core.is_closed else core.ledger.remove_unused()
    if slot is not None:
        logger.info("pool %r: shrinking to %d, as connections went unused", core.options.name, core.ledger.size)
        core.close_connection(slot, slot.conn)


def _report_leaks(core: PoolCore, now: float, leak_after: float) -> None:
    with core.mutex:
        leaks = [
            slot
            for slot in core.ledger.slots
            if slot.state is LENT and slot.lent_at and now - slot.lent_at >= leak_after and slot.stack
        ]
        reports = [(slot.describe_holder(), now - slot.lent_at, slot.conn, slot.stack) for slot in leaks]
        for slot in leaks:
            slot.stack = None  # once
    for holder, seconds, conn, stack in reports:
        logger.warning(
            "pool %r: %s has held a connection for %.1f s (leak_after is %s): %s; last statement: %s; taken at:\n%s",
            core.options.name,
            holder,
            seconds,
            leak_after,
            conn,
            conn._last_statement or "unknown, for lack of a greenpg.SqlLog",
            "".join(stack or []).rstrip(),
        )
        core.note_leak(conn, f"{holder} has held it for {seconds:.1f} s")


def check_idle_connections(core: PoolCore) -> None:
    """`pool.check()`: ping them one after the other, and replace those that are broken or out of date. Suspends."""
    checked: set[Slot] = set()
    while True:
        with core.mutex:
            slot = next((slot for slot in core.ledger.idle if slot not in checked), None)
            if slot is None:
                break
            checked.add(slot)
            core.ledger.move(slot, RESETTING)
        slot.gate.wake()
        try:
            is_good = slot.expires_at > core.now() and slot.true_generation == core.generation and _pings(core, slot)
        except BaseException:
            replace(core, slot)
            raise
        if is_good:
            core.pass_on(slot)
        else:
            replace(core, slot)
    with core.mutex:
        if not core.is_closed:
            core.grow()
    start_workers(core)


def drain(core: PoolCore) -> None:
    """`pool.drain()`. Doesn't suspend."""
    with core.mutex:
        idle = core.drain()
        size = core.ledger.size + len(idle)
    for slot in idle:
        core.close_connection(slot, slot.conn)
    with core.mutex:
        if not core.is_closed:
            core.ledger.reserve_at_least(min(size, core.ledger.max_size))
    start_workers(core)


def resize(core: PoolCore, min_size: int, max_size: int) -> None:
    """`pool.resize()`. Doesn't suspend."""
    with core.mutex:
        surplus = core.ledger.resize(min_size, max_size)
        if not core.is_closed:
            core.ledger.reserve_at_least(min_size)
            core.grow()
    for slot in surplus:
        core.close_connection(slot, slot.conn)
    start_keeper(core)
    start_workers(core)


def resume(core: PoolCore) -> None:
    """`pool.resume()`. Doesn't suspend."""
    with core.mutex:
        core.ledger.resume()
        if not core.is_closed:
            core.grow()
    start_workers(core)


def _pings(core: PoolCore, slot: Slot) -> bool:
    try:
        prove(slot)
    except Exception as error:
        if is_interruption(error):
            raise
        core.stats.connections_lost += 1
        logger.warning("pool %r: discarding broken connection: %s", core.options.name, str(error).strip())
        core.note_eviction(slot.conn, f"it failed its check: {describe(error)}")
        return False
    return True
