"""Opens a pool's connections, in tasks of the pool's own, so that nobody who waits for one is killed while connecting.

A task has the pool's core by a weak reference while it waits: a pool that is forgotten is not kept alive.
"""

from __future__ import annotations

import functools
import logging
import random
import weakref
from typing import Any

from psycopg2 import extensions

from ..connection.connect.connecting import connect_as_instrumented
from ..connection.connect.route import find_route
from ..connection.connection import Connection
from ..errors import PoolTimeout, copied, is_interruption
from ..hubs import hub
from .core import Opener, PoolCore
from .failover import note_server, watch_ending
from .health import IDLE_STATUS, status_name
from .options import dsn_from
from .pooler import set_up
from .slot import CLOSED, Slot
from .tasks import Workers

logger = logging.getLogger("greenpg.pool")

#: Seconds for each address of the server, where nothing says otherwise: a connection that is being made would hang for
#: ever if the server accepts it and is silent.
CONNECT_TIMEOUT = 10

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 30.0


class Backoff:
    """Of one slot: jittered, doubling, and over `timeout` seconds after the first failure."""

    __slots__ = ("_delay", "_ends_at", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._delay = _FIRST_DELAY / 2
        self._ends_at: float | None = None

    def next_delay(self, now: float) -> float | None:
        """The seconds to wait after a failure, None if it is time to give up."""
        if self._ends_at is None:
            self._ends_at = now + self._timeout
        if now >= self._ends_at:
            return None
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        return min(self._delay * random.uniform(0.9, 1.1), self._ends_at - now)


def start_workers(core: PoolCore) -> None:
    """Start as many tasks as there is work for. Called without the mutex. Doesn't suspend."""
    ledger, workers = core.ledger, core.workers
    while ledger.to_open:
        with core.mutex:
            if not ledger.to_open or not workers.may_begin(core.now(), core.options.num_workers):
                return
            workers.begin()
        try:
            hub().spawn(_work, weakref.ref(core, lambda _: workers.wake()), workers)
        except BaseException:
            with core.mutex:
                workers.end()
                ledger.remove_unbegun()
            raise


def replace(core: PoolCore, slot: Slot, is_silent: bool = False) -> None:
    """Close the slot's connection, and open another one if it's needed: when the server's process has ended, or at once
    if the connection is silent. Doesn't suspend, unless a task waits in it."""
    remains = core.discard(slot, is_silent)
    if remains is None:
        start_workers(core)
    else:
        ended = functools.partial(_ended, weakref.ref(core), slot)
        remains.when_over(ended)
        watch_ending(slot, ended)


def _ended(core_ref: weakref.ref[PoolCore], slot: Slot) -> None:
    core = core_ref()
    if core is not None:
        core.ended(slot)
        start_workers(core)


def _work(core_ref: weakref.ref[PoolCore], workers: Workers) -> None:
    """A worker: opens slots until none is left to open."""
    while True:
        core = core_ref()
        if core is None:
            return
        with core.mutex:
            if not core.ledger.to_open:
                workers.end()
                return
            slot = core.ledger.to_open.popleft()
        try:
            backoff = Backoff(core.options.reconnect_timeout)
            while core is not None:
                delay = _try_to_open(core, slot, backoff)
                if core.workers is not workers:
                    return  # in a child of the process whose the slot is
                if delay is None:
                    break
                event = hub().event()
                with core.mutex:
                    deadline = workers.rest_until(event, core.now(), delay, bool(core.ledger.line))
                core = None
                event.wait(deadline)
                core = core_ref()
                if core is not None:
                    with core.mutex:
                        workers.rest_is_over(event)
        except BaseException:
            # Somebody kills tasks that aren't his. The slot must not stay reserved, nor the worker counted.
            core = core_ref()
            if core is not None and core.workers is workers:
                with core.mutex:
                    if slot.state is not CLOSED and slot.conn is None:
                        core.ledger.move(slot, CLOSED)
                    workers.end()
            raise
        core = None


def _try_to_open(core: PoolCore, slot: Slot, backoff: Backoff) -> float | None:
    """Connect. Returns the seconds after which to try again, None if there is nothing more to do."""
    if core.is_closed:
        with core.mutex:
            core.ledger.move(slot, CLOSED)
        return None
    slot.begin(core.generation)
    stats, workers = core.stats, core.workers
    stats.connections_num += 1
    started, tracing = core.now(), core.tracing
    event = tracing and tracing.begin("connect")
    with core.mutex:
        workers.trying(slot, started)
    try:
        try:
            conn = connect_for(core, slot) if core.opener is None else _open(core.opener, slot)
        finally:
            with core.mutex:
                workers.tried(slot)
    except Exception as error:
        if core.workers is not workers:  # this is a child of the process whose the slot is
            return None
        if tracing and event:
            tracing.end(event, error)
        stats.connections_errors += 1
        if core.opener is not None:
            return _answer_head(core, slot, error, started)
        _tell_those_who_wait(core, error, started)
        logger.warning("error connecting in pool %r: %s", core.options.name, describe(error))
        delay = backoff.next_delay(core.now())
        if delay is None or core.is_closed:
            _give_up(core, slot)
            return None
        return delay
    seconds = core.now() - started
    stats.connections_ms += seconds * 1000.0
    with core.mutex:
        workers.succeeded()
    is_added = core.add(slot, conn)
    if is_added:
        note_server(core, slot, conn)
    else:
        core.close_connection(slot, conn)
    start_workers(core)
    if tracing and event:
        event.connection = conn
        tracing.end(event, seconds=seconds)
    return None if is_added else 0.0


def describe(error: BaseException) -> str:
    """The error in a line of text."""
    return f"{type(error).__name__}: {str(error).strip()}"


def _tell_those_who_wait(core: PoolCore, error: Exception, begun_at: float) -> None:
    fails_fast = False
    try:
        fails_fast = not is_interruption(error) and core.options.fails_fast(error)
    except Exception:
        logger.exception("pool %r: fail_fast raised", core.options.name)
    with core.mutex:
        core.workers.failed(error, begun_at, core.now())
        if fails_fast:
            core.ledger.fail_line(lambda: copied(error))
            core.end_filling(error)
        elif core.ledger.line and is_refused(core):
            core.ledger.fail_line(lambda: refusal(core))


def is_refused(core: PoolCore) -> bool:
    """[mutex] There is no connection, and none can be made: it makes no sense to wait."""
    return not core.ledger.open_count and core.workers.fails_for(core.options.refused_after, core.now())


def refusal(core: PoolCore) -> PoolTimeout:
    """[mutex] The error of who would wait for nothing."""
    error = core.workers.last_error
    refused = PoolTimeout(
        f"pool {core.options.name!r} has no connection, and every attempt to connect has failed for "
        f"{core.options.refused_after:g} s or longer (refused_after), the last one by {error and describe(error)}",
        size=core.ledger.size,
        lent=0,
        waiting=len(core.ledger.line),
    )
    refused.__cause__ = error
    return refused


def _answer_head(core: PoolCore, slot: Slot, error: Exception, begun_at: float) -> float | None:
    """Who has asked for the connection gets the error of connecting. Try again at once for the next in line."""
    with core.mutex:
        core.workers.failed(copied(error), begun_at, core.now())
        if not is_interruption(error):
            core.ledger.fail_head(error)
        if core.ledger.line and not core.is_closed:
            return 0.0
        core.ledger.move(slot, CLOSED)
    return None


def _give_up(core: PoolCore, slot: Slot) -> None:
    with core.mutex:
        core.ledger.move(slot, CLOSED)
    options = core.options
    if core.is_closed:
        return
    logger.warning("pool %r: gave up reconnecting after %s s", options.name, options.reconnect_timeout)
    if options.reconnect_failed is None or (pool := core.pool()) is None:
        return
    try:
        options.reconnect_failed(pool)
    except Exception:
        logger.exception("pool %r: reconnect_failed raised", options.name)


def dsn_of(core: PoolCore) -> str:
    """Where a new connection would be made to; functions that say it are called."""
    conninfo, kwargs = core.credentials().get()
    kwargs.pop("total_connect_timeout", None)
    return dsn_from(conninfo, kwargs)


def _open(opener: Opener, slot: Slot) -> Connection:
    conn = opener.open(slot)
    slot.note_settings(conn, is_bare=True)
    return conn


def _in_time(dsn: str) -> str:
    route = find_route(dsn)
    if route.timeout is not None or "connect_timeout" in route.options:
        return dsn
    return str(extensions.make_dsn(dsn, connect_timeout=CONNECT_TIMEOUT))


def connect_for(core: PoolCore, slot: Slot) -> Connection:
    """A new connection, configured. Suspends."""
    options = core.options

    def connect(conninfo: str, kwargs: dict[str, Any]) -> tuple[Connection, dict[str, Any]]:
        dsn = _in_time(dsn_from(conninfo, kwargs))
        return connect_as_instrumented(dsn, options.connection_class, kwargs.get("cursor_factory")), kwargs

    conn, kwargs = core.credentials().connect(connect)
    try:
        if kwargs.get("autocommit"):
            conn.autocommit = True
        set_up(core, conn)
        if options.statement_deadline is not None:
            conn.statement_deadline = options.statement_deadline
        if options.prepare_threshold is not None:
            conn.prepare_threshold = options.prepare_threshold
        if core.tracing is not None:
            core.trace_statements(conn)
        slot.note_settings(conn, is_bare=True)
        if options.configure is not None:
            options.configure(conn)
            status = conn.info.transaction_status
            if status != IDLE_STATUS:
                raise RuntimeError(
                    f"connection left in status {status_name(status)} by configure function {options.configure!r}: "
                    "discarded. Let it commit, or set autocommit"
                )
            slot.note_settings(conn, is_bare=False)
    except BaseException:
        conn.close()
        raise
    return conn
