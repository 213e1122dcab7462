"""What has become of a transaction whose COMMIT was not answered: the server is asked, perhaps another one than before.

`pg_xact_status()` alone could lie: what a server had not written, or not sent to the standby that took over, is
forgotten, and its transaction ids are given out again. So a transaction writes a small WAL record of its own first
thing, and remembers where that is. After a crash or a promotion the server knows the id if its recovery came that far
(`pg_last_wal_replay_lsn()` stays what it was at the end of it); if not, the COMMIT, which came later, is lost as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg2

COMMITTED, ROLLED_BACK, UNKNOWN = "committed", "rolled back", "unknown"

_LOOK = """\
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery()
        THEN pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END,
    pg_catalog.pg_last_wal_replay_lsn()::text,
    pg_catalog.pg_last_wal_replay_lsn() >= %s::pg_catalog.pg_lsn,
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_xact_status(%s::text::pg_catalog.xid8) END,
    pg_catalog.pg_sleep(%s)"""
_IN_THE_FUTURE = "22023"  # invalid_parameter_value: an id that has not been given out
_PAUSE = 0.05


class TransactionIdentity(NamedTuple):
    """By what a transaction is found again."""

    xid: str
    #: Where its first WAL record ends.
    lsn: str
    #: The server's timeline, in eight hexadecimal digits.
    timeline: str
    #: How far the server's last recovery went; "" if it had none.
    replayed: str


def settle(identity: TransactionIdentity, fetchone: Callable[[str, Any], Any], timeout: float) -> str:
    """COMMITTED or ROLLED_BACK; UNKNOWN if nobody can tell, or the transaction is still in progress after `timeout`
    seconds. Suspends; raises what `fetchone` raises."""
    give_up_at = time.monotonic() + timeout
    pause = 0.0
    while True:
        try:
            timeline, replayed, has_replayed, status, _ = fetchone(_LOOK, (identity.lsn, identity.xid, pause))
        except psycopg2.Error as error:
            if error.pgcode != _IN_THE_FUTURE:
                raise
            return ROLLED_BACK
        if timeline is None:
            return UNKNOWN  # a standby: the primary may know more
        outcome = _outcome(identity, timeline, replayed or "", bool(has_replayed), status)
        if outcome is not None:
            return outcome
        if time.monotonic() >= give_up_at:
            return UNKNOWN
        pause = _PAUSE


def _outcome(
    identity: TransactionIdentity, timeline: str, replayed: str, has_replayed: bool, status: str | None
) -> str | None:
    """None: it is in progress."""
    is_same = timeline == identity.timeline and replayed in (identity.replayed, "")
    if not is_same and replayed and not has_replayed:
        return ROLLED_BACK  # a recovery has not come as far as the transaction's first record
    if status == "aborted":
        return ROLLED_BACK
    if status == "in progress":
        return None if is_same else ROLLED_BACK  # another one, which has got the id
    steps = int(timeline, 16) - int(identity.timeline, 16)
    is_known = is_same or (has_replayed and steps in (0, 1))
    return COMMITTED if status == "committed" and is_known else UNKNOWN
