"""How a task gets a connection: one that is idle, or by waiting in the line; and in any case one that works.

Whoever is killed or gives up while waiting takes nothing along.
"""

from __future__ import annotations

import functools
import logging
import operator
import traceback

from ..connection.tracing import Tracing
from ..errors import DeadlineExceeded, PoolClosed, PoolTimeout, TooManyRequests, is_interruption
from ..hubs import Event, hub
from .core import PoolCore
from .failover import prove
from .health import PING_TIMEOUT, is_alive
from .lifecycle import open_if_needed
from .opening import Backoff, describe, is_refused, refusal, replace, start_workers
from .options import check_not_negative
from .slot import RESETTING, Slot
from .tasks import HANGING

logger = logging.getLogger("greenpg.pool")

#: Of the time that a request has, so much goes to the check of one connection; but so many seconds at least.
_SHARE_OF_CHECKS, _SHORTEST_CHECK = 0.4, 0.01
#: A connection that says nothing for so many seconds speaks for all that are as old.
_SILENCE = 1.0

_HOLDER = operator.attrgetter("holder")


def lend(core: PoolCore, timeout: float | None, is_told: bool = False) -> Slot:
    """The slot of a connection that is the running task's now. Suspends; raises what `getconn()` does."""
    if core.loan_tracing is not None and not is_told:
        return _lend_and_tell(core, core.loan_tracing, timeout)
    if timeout is not None and not timeout >= 0:
        check_not_negative(timeout=timeout)
    core.stats.requests_num += 1
    ledger, slot = core.ledger, None
    if ledger.idle:
        mutex = core.mutex
        mutex.acquire()  # `with` takes half as long again
        try:
            slot = ledger.take()
        finally:
            mutex.release()
    options = core.options
    if slot is None:
        if core.is_closed:
            open_if_needed(core)
        slot = _wait_in_line(core, options.timeout if timeout is None else timeout)
    now = core.now()
    if now > slot.unchecked_until:
        slot = _ensure_healthy(core, slot, now, options.timeout if timeout is None else timeout)
        now = core.now()
    # From here to the caller nothing suspends, so nobody can be killed with the slot in hand.
    slot.lent_by = core
    slot.holder = core.hold(core.current_task())
    slot.lent_at = now
    gate = slot.gate  # gate.lend() spelled out
    gate.owner = gate.free
    gate.loan = now
    if options.leak_after is not None:
        slot.stack = traceback.format_list(traceback.extract_stack(limit=12)[:-2])
    return slot


def _lend_and_tell(core: PoolCore, tracing: Tracing, timeout: float | None) -> Slot:
    event = tracing.begin("acquire")
    try:
        slot = lend(core, timeout, is_told=True)
    except BaseException as error:
        tracing.end(event, error)
        raise
    event.connection = slot.conn
    try:
        tracing.end(event)
    except BaseException:  # a tracer that suspends can be killed
        core.give_back(slot)
        raise
    return slot


# -- the line


def _wait_in_line(core: PoolCore, timeout: float) -> Slot:
    """Wait until a connection is handed over, for at most `timeout` seconds."""
    started, ledger = core.now(), core.ledger
    event = hub().event()
    has_grown = _join(core, event, timeout)
    try:
        if has_grown:
            start_workers(core)
        if ledger.opening:
            _look_for_hanging(core, event, started + timeout)
        event.wait(started + timeout)
    except BaseException:
        core.stats.requests_errors += 1
        slot = _leave(core, event)
        if slot is not None:  # handed over at the same moment
            core.pass_on(slot)
        raise
    finally:
        waited = core.now() - started
        core.stats.requests_wait_ms += waited * 1000.0
        if core.histograms is not None:
            core.histograms.waited(waited)
    if core.ledger is not ledger:  # this is a child of the process that has asked
        hub().event().wait()
    if event.value.__class__ is Slot:
        return event.value
    slot = _leave(core, event)  # at the last moment, it may have been handed over all the same
    if slot is not None:
        return slot
    core.stats.requests_errors += 1
    if event.value is not None:
        raise event.value
    raise _timeout_error(core, timeout) from core.workers.last_error


def _look_for_hanging(core: PoolCore, event: Event, deadline: float) -> None:
    """Wait while connections are being made; those that hang while they are keep the others from nothing."""
    while core.ledger.opening:
        until = min(deadline, core.now() + HANGING)
        if event.wait(until) or until == deadline:
            return
        with core.mutex:
            if not core.is_closed:
                core.grow()
        start_workers(core)


def _join(core: PoolCore, event: Event, timeout: float) -> bool:
    """Get in line, unless a connection is free after all. True: there are slots to be opened now."""
    ledger, mutex, max_waiting = core.ledger, core.mutex, core.options.max_waiting
    mutex.acquire()  # `with` takes half as long again
    try:
        if core.is_closed:
            raise PoolClosed(f"the pool {core.options.name!r} is already closed")
        if ledger.idle and (slot := ledger.take()):  # another native thread returned it since the caller looked
            event.set(slot)
            return False
        is_full = max_waiting and len(ledger.line) >= max_waiting
        if timeout and not is_full:
            core.stats.requests_queued += 1
            if core.workers.resting:
                core.workers.hurry(core.now())
            if core.workers.last_error is not None and is_refused(core):
                core.stats.requests_errors += 1
                raise refusal(core)
            ledger.join_line(event)
            if len(ledger.slots) < ledger.max_size:
                core.grow()
                return True
            event.on_delay = functools.partial(_report_deadlock, core)
            return False
        core.stats.requests_errors += 1
    finally:
        mutex.release()
    if is_full:
        raise TooManyRequests(
            f"the pool {core.options.name!r} has already {max_waiting} requests waiting, which is its max_waiting"
        )
    raise _timeout_error(core, timeout) from core.workers.last_error


def _leave(core: PoolCore, event: Event) -> Slot | None:
    with core.mutex:
        return core.ledger.leave_line(event)


def _report_deadlock(core: PoolCore, task: object | None) -> None:
    """A task (None: the running one) has waited for a moment (see `hubs.Event`). Does it hold a connection, and no
    other can come? Doesn't suspend."""
    ledger = core.ledger
    waiting = core.current_task() if task is None else task
    if core.hold(waiting) in map(_HOLDER, list(ledger.slots)) and len(ledger.slots) >= ledger.max_size:
        core.stats.deadlocks += 1
        text = (
            f"{hub().describe(waiting)} holds a connection and waits for another one, and all {ledger.size} are taken"
        )
        hub().spawn(logger.warning, "pool %r: probable deadlock: %s", core.options.name, text)  # it may suspend
        core.tell_later("deadlock", None, text)


def _timeout_error(core: PoolCore, timeout: float) -> PoolTimeout:
    """The error that says what the pool's connections are doing instead. Doesn't suspend."""
    core.stats.requests_timeouts += 1
    ledger, error = core.ledger, core.workers.last_error
    with core.mutex:
        size, lent, waiting = ledger.size, ledger.lent_count, len(ledger.line)
        counts = (
            f"{size} of {ledger.max_size} connections, {lent} lent, {len(ledger.opening)} connecting, "
            f"{waiting} requests waiting"
        )
        if ledger.ending:
            counts += f", {len(ledger.ending)} closed ones still busy at the server"
        longest = ledger.longest_lent()
        held = longest and (longest.describe_holder(), core.now() - longest.lent_at, longest.describe_place())
    text = f"couldn't get a connection from pool {core.options.name!r} after {timeout:.2f} s: {counts}"
    if held:
        text += f"; {held[0]} has held one for {held[1]:.1f} s{held[2]}"
    if error is not None:
        text += f"; last connection error: {describe(error)}"
    timeout_error = PoolTimeout(text, size=size, lent=lent, waiting=waiting)
    if core.tracing is not None:
        core.tracing.tell("timeout", error=timeout_error)
    return timeout_error


# -- health


def _ensure_healthy(core: PoolCore, slot: Slot, now: float, timeout: float) -> Slot:
    """The slot if its connection works, else the next one that does. Suspends for pings and for the next one.

    Raises what `getconn()` raises; the slot at hand is passed on or given up then.
    """
    deadline = now + timeout
    backoff: Backoff | None = None
    while not _is_healthy(core, slot, deadline):
        core.stats.connections_lost += 1
        was_fresh = slot.opened_at >= now
        remaining = deadline - core.now()
        if remaining <= 0:
            core.stats.requests_errors += 1
            raise _timeout_error(core, timeout) from core.workers.last_error
        if was_fresh:  # new ones fail the check as well: don't open one after the other
            backoff = backoff or Backoff(timeout)
            hub().sleep(min(backoff.next_delay(core.now()) or 0.0, remaining))
        with core.mutex:
            next_slot = core.ledger.take()
        slot = next_slot or _wait_in_line(core, max(deadline - core.now(), 0.001))
    return slot


def _is_healthy(core: PoolCore, slot: Slot, deadline: float) -> bool:
    """False: it is replaced. Suspends for a part of the time until the deadline: what is left is for another one."""
    conn, options = slot.conn, core.options
    started = core.now()
    slot.gate.wake()
    try:
        if not is_alive(conn):
            logger.warning("pool %r: discarding a connection that the server has closed: %s", options.name, conn)
            core.suspect_all()
            core.note_eviction(conn, "the server has closed it")
            replace(core, slot)
            return False
        needs_ping = slot.is_suspect or started - slot.unchecked_until > options.check_idle
        if needs_ping or options.check is not None:
            with conn.deadline(min(max((deadline - started) * _SHARE_OF_CHECKS, _SHORTEST_CHECK), PING_TIMEOUT)):
                if needs_ping:
                    prove(slot)
                if options.check is not None:
                    options.check(conn)
    except Exception as error:
        if is_interruption(error):
            replace(core, slot)
            raise
        is_silent = isinstance(error, DeadlineExceeded) and slot.conn.closed != 0
        replace(core, slot, is_silent)
        if is_silent and core.now() - started >= _SILENCE:
            _close_unused_since(core, started)
        logger.warning("pool %r: discarding a connection that failed its check: %s", options.name, str(error).strip())
        core.note_eviction(conn, f"it failed its check: {describe(error)}")
        return False
    except BaseException:
        replace(core, slot)
        raise
    return True


def _close_unused_since(core: PoolCore, started: float) -> None:
    """A connection has been silent: the others that nobody has used since are so, too, but would be tried one after
    the other."""
    with core.mutex:
        silent = [slot for slot in core.ledger.idle if slot.unchecked_until < started]
        for slot in silent:
            core.ledger.move(slot, RESETTING)
    core.suspect_all()
    for slot in silent:
        core.stats.connections_lost += 1
        replace(core, slot, is_silent=True)
