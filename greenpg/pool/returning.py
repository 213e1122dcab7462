"""What happens to a connection when it comes back: it is lent on, cleaned, or replaced. The slot is never lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..connection.connection import Connection
from ..connection.deadlines import ROLLBACK_TIMEOUT, DeadlineBlock
from ..connection.lazy_begin import execute_alone
from ..connection.occupants import AT_REST, Occupant
from ..connection.tracing import Tracing
from ..errors import COMMITTED, commit_outcome, is_interruption, note_commit_outcome
from ..hubs import hub
from .core import PoolCore
from .failover import doubt_all
from .health import IDLE_STATUS, LOST, READY, status_name
from .opening import describe, replace
from .pooler import find_mode, lends_sessions
from .slot import RESETTING, Slot

logger = logging.getLogger("greenpg.pool")

#: SQLSTATEs after which a connection isn't lent again: the server is going, or it isn't the primary any more.
READ_ONLY = "25006"
_EVICTING = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", READ_ONLY})

#: Seconds that the statements of a reset may take together.
_RESET_TIMEOUT = 10.0

#: What DISCARD ALL does, but for the plans of prepared statements; DISCARD ALL itself can't share a round trip. And the
#: setting that psycopg2 makes when it connects.
_SESSION_RESET = """\
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; \
SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; SET datestyle TO 'ISO'"""


def not_ours(core: PoolCore, conn: object) -> ValueError:
    """The error of who returns a connection that this pool hasn't lent."""
    slot = getattr(conn, "_lender", None)
    if slot is None:
        reason = "it doesn't come from any pool"
    elif slot.lent_by is None:
        reason = "it has been returned already"
    else:
        reason = f"it comes from pool {slot.lent_by.options.name!r}"
    return ValueError(f"can't return connection to pool {core.options.name!r}, {reason}: {conn!r}")


def give_back(
    core: PoolCore, slot: Slot, is_told: bool = False, is_at_rest: bool = False, is_committed: bool = False
) -> None:
    """The borrower returns the connection. Suspends only for a rollback. ValueError if it isn't lent by this pool.

    `is_at_rest`: both psycopg2 and libpq say that no transaction is open. `is_committed`: whoever is killed in this is
    told that his transaction was committed.
    """
    if slot.lent_by is not core:
        raise not_ours(core, slot.conn)
    if core.loan_tracing is not None and not is_told:
        _run_noting(is_committed, _give_back_and_tell, core, core.loan_tracing, slot)
        return
    conn, options, ledger, now = slot.conn, core.options, core.ledger, core.now()
    core.stats.usage_ms += (now - slot.lent_at) * 1000.0
    if core.histograms is not None:
        core.histograms.held(now - slot.lent_at)
    slot.lent_by = slot.holder = None
    slot.lent_at = 0.0
    slot.unchecked_until = now + options.unchecked_seconds
    if slot.forget_holder is not None:
        slot.forget_holder()
        slot.forget_holder = None
    if not (
        # Not closed, either; and nobody executed a COMMIT that psycopg2 doesn't know of.
        (is_at_rest or (conn.get_transaction_status() == IDLE_STATUS and conn._driver_status == READY))
        and now < slot.expires_at
        and slot.generation == core.generation
        and options.only_rolls_back
        and not (conn._has_altered_settings or conn._blocks or conn._is_entered or slot.notices or slot.notifies)
    ):
        _run_noting(is_committed, _clean_up, core, slot)
        return
    slot.gate.owner = AT_REST  # gate.rest() spelled out
    mutex = core.mutex  # core.pass_on(), and ledger.give() in the usual case, spelled out
    mutex.acquire()
    try:
        if ledger.line or ledger.is_shrinking or not ledger.keeps_idle:
            is_wanted = ledger.give(slot)
        else:
            ledger.keep(slot)
            is_wanted = True
    finally:
        mutex.release()
    if not is_wanted:
        core.close_connection(slot, conn)


def _run_noting(is_committed: bool, work: Callable[..., None], *args: Any) -> None:
    try:
        work(*args)
    except BaseException as error:
        if is_committed and commit_outcome(error) is None:
            note_commit_outcome(error, COMMITTED)
        raise


def _give_back_and_tell(core: PoolCore, tracing: Tracing, slot: Slot) -> None:
    event = tracing.made("release", slot.conn)  # nobody is told before the connection is back
    held = core.now() - slot.lent_at
    try:
        give_back(core, slot, is_told=True)
    except BaseException as error:
        tracing.end(event, error, seconds=held)
        raise
    tracing.end(event, seconds=held)


def take_back_from_ended(core: PoolCore, slot: Slot, lent_at: float) -> None:
    """The task that took the connection has ended. Called in the hub, where nothing may suspend."""
    if slot.lent_at != lent_at or slot.lent_by is not core:
        return
    slot.forget_holder = None
    task = None if slot.holder is None else slot.holder()
    if slot.conn._gate.last_user in (None, hash(task)):  # else another task goes on with it
        hub().spawn(_take_back, core, slot, lent_at, slot.describe_holder())


def _take_back(core: PoolCore, slot: Slot, lent_at: float, holder: str) -> None:
    if slot.lent_at != lent_at:
        return
    place = "its own call"  # getconn() is the task's function
    if slot.taken_at is not None:
        code, line = slot.taken_at
        place = f"{code.co_filename}, line {line} ({code.co_name})"
    slot.condemn()  # who has kept the connection mustn't use it beside its next borrower
    core.note_leak(slot.conn, f"{holder} ended without returning it")
    try:
        give_back(core, slot)
    finally:
        logger.warning(
            "pool %r: %s ended without returning the connection that it took in %s; it is taken back",
            core.options.name,
            holder,
            place,
        )


def says_server_goes(code: str | None) -> bool:
    """Whether the SQLSTATE says that the server is going, isn't the primary, or can't be reached."""
    return code is not None and (code in _EVICTING or code.startswith("08"))


def note_error(core: PoolCore, slot: Slot, error: BaseException) -> None:
    """Look whether the error that a block raised says that its connection shouldn't be lent again. Doesn't suspend."""
    code = getattr(error, "pgcode", None)
    if code is None or not isinstance(error, psycopg2.Error):
        return
    conn = slot.conn
    if code == READ_ONLY and not conn.closed and conn.readonly:
        return  # the user's own doing
    if says_server_goes(code):
        logger.warning("pool %r: evicting a connection after error %s: %s", core.options.name, code, conn)
        slot.condemn()
        core.suspect_all()
        if code == READ_ONLY:
            doubt_all(core)
        core.note_eviction(conn, f"error {code}")


# -- cleaning


def _clean_up(core: PoolCore, slot: Slot) -> None:
    """Bring a returned connection back to where it can be lent, or replace it.

    Suspends if there's work to do; but a `reset` is done by a task of the pool's own: it is none of the borrower's
    business, and he may be killed.
    """
    if slot.conn._has_uncertain_settings:
        slot.want_reset()
    with core.mutex:
        core.ledger.move(slot, RESETTING)
    if (core.options.only_rolls_back and not slot.needs_reset) or core.is_closed:
        _clean_or_replace(core, slot)
        return
    try:
        hub().spawn(_clean_or_replace, core, slot)
    except BaseException:
        replace(core, slot)
        raise


def _clean_or_replace(core: PoolCore, slot: Slot) -> None:
    try:
        is_clean = _clean(core, slot)
    except BaseException:
        # Killed while rolling back: nobody knows the connection's state now.
        replace(core, slot)
        raise
    else:
        if is_clean:
            core.pass_on(slot)
        else:
            replace(core, slot)
    finally:
        with core.mutex:
            core.note_rest()


def _note_bad(core: PoolCore, conn: Connection, reason: str) -> None:
    core.stats.returns_bad += 1
    core.note_eviction(conn, reason)


def _clean(core: PoolCore, slot: Slot) -> bool:
    conn, options = slot.conn, core.options
    status = conn.info.transaction_status
    if core.is_closed:
        return False
    if conn._gate.owner is not None and not isinstance(conn._gate.owner, Occupant):
        logger.warning("pool %r: closing connection returned while a task was waiting in it: %s", options.name, conn)
        _note_bad(core, conn, "it was returned while a task was waiting in it")
        return False
    if status == extensions.TRANSACTION_STATUS_UNKNOWN:
        logger.warning("pool %r: discarding closed connection: %s", options.name, conn)
        _note_bad(core, conn, "it was closed")
        if conn.closed == LOST:
            core.suspect_all()
        return False
    if status == extensions.TRANSACTION_STATUS_ACTIVE:
        logger.warning("pool %r: closing connection returned while a statement was running: %s", options.name, conn)
        _note_bad(core, conn, "it was returned while a statement was running")
        return False
    try:
        with DeadlineBlock(conn._gate, ROLLBACK_TIMEOUT):
            _roll_back(core, conn, status)
        if slot.expires_at <= core.now() or slot.true_generation != core.generation:
            logger.info("pool %r: discarding expired connection", options.name)
            return False
        if slot.is_doubted:
            slot.suspect()  # since the return looked like a sign of life
        if options.reset == "session" or slot.needs_reset:
            conn._put_back(slot.bare_settings, slot.bare_attachments)
        elif conn._has_altered_settings or conn.notices or conn.notifies:
            conn._put_back(slot.settings)
    except Exception as error:
        if is_interruption(error):
            raise
        logger.warning("pool %r: rollback failed: %s. Discarding connection %s", options.name, error, conn)
        _note_bad(core, conn, f"its rollback failed: {describe(error)}")
        return False
    needs_reset = slot.needs_reset
    slot.was_reset()
    return (options.only_rolls_back and not needs_reset) or _reset(core, conn, needs_reset)


def _roll_back(core: PoolCore, conn: Connection, status: int) -> None:
    """Out of all transactions and blocks. Suspends if there is a transaction."""
    if status != IDLE_STATUS:
        logger.warning("pool %r: rolling back returned connection: %s", core.options.name, conn)
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


def _reset(core: PoolCore, conn: Connection, needs_reset: bool) -> bool:
    options = core.options
    try:
        is_to_be_reset = needs_reset or not callable(options.reset)
        if is_to_be_reset:
            with DeadlineBlock(conn._gate, _RESET_TIMEOUT):
                is_to_be_reset = lends_sessions(find_mode(core, conn))
                if is_to_be_reset:
                    reset_session(conn)
        if is_to_be_reset and options.configure is not None:
            options.configure(conn)
        if callable(options.reset):
            with DeadlineBlock(conn._gate, _RESET_TIMEOUT):
                options.reset(conn)
    except Exception as error:
        if is_interruption(error):
            raise
        logger.warning("pool %r: error resetting connection: %s", options.name, error)
        _note_bad(core, conn, f"its reset failed: {describe(error)}")
        return False
    status = conn.info.transaction_status
    if status != IDLE_STATUS:
        logger.warning(
            "pool %r: connection left in status %s by reset function %r: discarded",
            options.name,
            status_name(status),
            options.reset,
        )
        _note_bad(core, conn, "its reset left a transaction open")
        return False
    return True


def reset_session(conn: Connection) -> None:
    """Take back what the session has changed at the server. Suspends for a round trip.

    What psycopg2 keeps has been put back before, the client encoding too: RESET ALL gives it the value that it had when
    the connection was made, and psycopg2 doesn't look.
    """
    with conn.cursor() as cur:
        conn._prepared.forget_all()
        execute_alone(conn, cur, _SESSION_RESET, None)
