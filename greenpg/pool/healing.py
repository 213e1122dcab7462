"""Finds dead connections before they're lent: by a look at the socket, which costs no round trip, and by pings."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import psycopg2

from ..connection.lazy_begin import execute_alone
from ..errors import is_interruption
from ..hubs import hub
from .ledger import Slot
from .opening import Backoff
from .returning import discard
from .waiting import timeout_error, wait_in_line

if TYPE_CHECKING:
    from .pool import ConnectionPool

logger = logging.getLogger("greenpg.pool")

#: How often a socket may have had something to read (notices, notifications) before it's taken to be at its end.
_MOST_READS = 10

#: SQLSTATEs after which a connection isn't lent again: the server is going, or it isn't the primary any more.
_EVICTING = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25006"})


def ensure_healthy(pool: ConnectionPool, slot: Slot, now: float, timeout: float) -> Slot:
    """The slot if its connection works, else the next one that does. Suspends for pings and for the next one.

    Raises what `getconn()` raises; the slot at hand is passed on or given up then.
    """
    deadline = now + timeout
    backoff: Backoff | None = None
    while not _is_healthy(pool, slot):
        pool._stats.connections_lost += 1
        was_fresh = slot.opened_at >= now
        discard(pool, slot)
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            pool._stats.requests_errors += 1
            raise timeout_error(pool, timeout)
        if was_fresh:  # new ones fail the check as well: don't open one after the other
            backoff = backoff or Backoff(timeout)
            hub().sleep(min(backoff.next_delay(time.monotonic()) or 0.0, remaining))
        with pool._mutex:
            next_slot = pool._ledger.take()
        slot = next_slot or wait_in_line(pool, max(deadline - time.monotonic(), 0.001))
    return slot


def _is_healthy(pool: ConnectionPool, slot: Slot) -> bool:
    conn = slot.conn
    try:
        if not is_alive(conn):
            logger.warning("pool %r: discarding a connection that the server has closed: %s", pool.name, conn)
            pool._suspect_all()
            return False
        if slot.is_suspect or time.monotonic() - slot.trusted_until > pool.check_idle:
            ping(conn)
            slot.is_suspect = False
        if pool._check is not None:
            pool._check(conn)
    except Exception as error:
        if is_interruption(error):
            discard(pool, slot)
            raise
        logger.warning("pool %r: discarding a connection that failed its check: %s", pool.name, str(error).strip())
        return False
    except BaseException:
        discard(pool, slot)
        raise
    return True


def is_alive(conn: Any) -> bool:
    """Whether the socket says nothing to the contrary. Doesn't suspend, and costs no round trip."""
    if conn.closed:
        return False
    try:
        fd = conn.fileno()
        for _ in range(_MOST_READS):
            if not hub().is_readable(fd):
                return True
            conn.poll()  # a notice or notification, or the end
    except psycopg2.Error:
        pass
    return False


def ping(conn: Any) -> None:
    """Raise if the connection doesn't work. Suspends for a round trip; leaves no transaction behind."""
    with conn.cursor() as cur:
        execute_alone(conn, cur, "SELECT 1", None)


def note_error(pool: ConnectionPool, conn: Any, error: BaseException) -> None:
    """Look whether the error that a block raised says that its connection shouldn't be lent again. Doesn't suspend."""
    code = getattr(error, "pgcode", None)
    if code is None or not isinstance(error, psycopg2.Error):
        return
    if code == "25006" and not conn.closed and conn.readonly:
        return  # the user's own doing
    if code in _EVICTING or code.startswith("08"):
        logger.warning("pool %r: evicting a connection after error %s: %s", pool.name, code, conn)
        conn._slot.expires_at = 0.0
        pool._suspect_all()


def check_idle_connections(pool: ConnectionPool) -> None:
    """`pool.check()`. Suspends."""
    checked: set[Slot] = set()
    while True:
        with pool._mutex:
            slot = next((slot for slot in pool._ledger.idle if slot not in checked), None)
            if slot is None:
                break
            checked.add(slot)
            pool._ledger.start_reset(slot)
        try:
            is_good = slot.expires_at > time.monotonic() and _pings(pool, slot)
        except BaseException:
            discard(pool, slot)
            raise
        if is_good:
            pool._pass_on(slot)
        else:
            discard(pool, slot)
    with pool._mutex:
        if not pool.closed:
            pool._grow()
    pool._opener.start_workers()


def _pings(pool: ConnectionPool, slot: Slot) -> bool:
    try:
        ping(slot.conn)
    except Exception as error:
        if is_interruption(error):
            raise
        pool._stats.connections_lost += 1
        logger.warning("pool %r: discarding broken connection: %s", pool.name, str(error).strip())
        return False
    slot.is_suspect = False
    return True
