"""A pool's life: opened, waited for, closed, and begun anew in a forked child."""

from __future__ import annotations

import logging
import os
import weakref

from ..connection.patching import check_patched
from ..errors import PoolClosed, PoolTimeout
from ..hubs import hub
from .core import PoolCore
from .opening import describe, start_workers
from .upkeep import start_keeper

logger = logging.getLogger("greenpg.pool")


def open_pool(core: PoolCore) -> None:
    """Begin to connect. Doesn't suspend. Harmless on an open pool, PoolClosed if it has been closed."""
    check_patched()
    with core.mutex:
        is_new = core.open()
    if is_new:
        start_keeper(core)
    start_workers(core)


def open_if_needed(core: PoolCore) -> None:
    """At the first use. PoolClosed if the pool is closed, or can't be opened in this way. Doesn't suspend."""
    if not core.is_closed:
        return
    if core.was_opened:
        raise PoolClosed(f"the pool {core.options.name!r} is already closed")
    if not core.opens_itself:
        raise PoolClosed(f"the pool {core.options.name!r} is not open yet: call open(), or use it in a with block")
    open_pool(core)


def wait_until_filled(core: PoolCore, timeout: float) -> None:
    """Suspend until there are `min_size` connections. Raises PoolTimeout, and what `fail_fast` lets through."""
    deadline = core.now() + timeout
    open_if_needed(core)
    event = hub().event()
    with core.mutex:
        if core.is_filled():
            return
        core.when_filled.append(event)
    try:
        event.wait(deadline)
    finally:
        with core.mutex:
            if event in core.when_filled:
                core.when_filled.remove(event)
    name, ledger = core.options.name, core.ledger
    if isinstance(event.value, Exception):
        raise event.value
    if core.is_closed:
        raise PoolClosed(f"the pool {name!r} was closed while it was being filled")
    if event.value is None:
        error = core.workers.last_error
        raise PoolTimeout(
            f"pool initialization incomplete: the pool {name!r} has {ledger.open_count} of {ledger.min_size} "
            f"connections after {timeout:.2f} s, and is closed now; "
            f"last connection error: {describe(error) if error else None}"
        ) from error


def close_pool(core: PoolCore, timeout: float) -> None:
    """Close what is idle, send those who wait away. Suspends until what is being opened or reset has come to rest."""
    deadline = core.now() + timeout
    done, at_rest = hub().event(), hub().event()
    with core.mutex:
        if core.is_closed:
            return
        idle = core.close()
        core.workers.stop(done)
        core.when_at_rest.append(at_rest)
        core.note_rest()
    core.keeper.stop()
    for slot in idle:
        core.close_connection(slot, slot.conn)
    if not done.wait(deadline):
        logger.warning("pool %r: still connecting %s s after close()", core.options.name, timeout)
    if not at_rest.wait(deadline):
        logger.warning("pool %r: still resetting connections %s s after close()", core.options.name, timeout)


# -- forks: a child begins with pools that have no connections, and the parent's are not touched

_cores: weakref.WeakSet[PoolCore] = weakref.WeakSet()


def living_pools() -> list[object]:
    """The pools of this process that are open, or may be opened yet, in no order."""
    pools = [core.pool() for core in list(_cores) if not (core.is_closed and core.was_opened)]
    return [pool for pool in pools if pool is not None]


def survive_forks(core: PoolCore) -> None:
    """Let the pool begin anew in the children of this process."""
    _cores.add(core)


def open_cores() -> list[PoolCore]:
    """Of all pools that are open in this process."""
    return [core for core in list(_cores) if not core.is_closed]


def _after_fork_in_child() -> None:
    """The connections themselves are seen to by connection/forking.py. Who waited for one goes on waiting."""
    for core in list(_cores):
        for slot in core.ledger.slots:
            slot.forget_loan()
        core.begin_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
