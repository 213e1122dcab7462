"""Differences that are meant, and those that are known and not yet mended. Each has its reason; there are no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOTHING = "(nothing)"
_OF_CURSORS = ("cursor", "query", "statusmessage", "rowcount", "rownumber", "description")


@dataclass
class Differing:
    """One value that differs."""

    step: str
    #: All steps so far, this one included.
    history: str
    key: str
    theirs: Any
    ours: Any
    #: All that greenpg shows at this point.
    seen: dict[str, Any]

    @property
    def attribute(self):
        return self.key.rpartition(".")[2]

    @property
    def error_text(self):
        return str(self.seen.get("raises.str"))


@dataclass(frozen=True)
class Rule:
    why: str
    applies: Callable[[Differing], bool]
    #: From here on the sides are in different states: the rest of the program says nothing.
    ends: bool = False


def _adds_diagnostics(it):
    is_large = "lobject" in it.step or "l0." in it.step or "l1." in it.step
    is_exact = it.key in ("raises.class", "raises.str", "raises.args") and "LockNotAvailable" in str(
        it.seen.get("raises.class")
    )
    return is_large and it.key.startswith("raises.") and (it.theirs in (None, "None", NOTHING) or is_exact)


#: Meant: greenpg tells more than psycopg2, or works where psycopg2 is stuck.
MEANT = [
    Rule(
        "psycopg2 forgets the server's word for a COPY",
        lambda it: it.attribute == "statusmessage" and it.theirs == "''" and str(it.ours).startswith("'COPY "),
    ),
    Rule("errors of large objects have a SQLSTATE and diagnostics with greenpg", _adds_diagnostics),
    Rule(
        "libpq adds a line that hides the server's",
        lambda it: (
            it.key in ("raises.str", "raises.args") and "query to initialize large object functions" in str(it.theirs)
        ),
    ),
    Rule(
        "the error that a file raised is the cause of COPY's",
        lambda it: it.key == "raises.cause" and it.theirs == NOTHING,
    ),
    Rule(
        "a connection in one of greenpg's blocks shows STATUS_BEGIN before the first statement",
        lambda it: it.key == "conn.status" and it.theirs == 1 and it.ours == 2 and "transaction(conn)" in it.step,
    ),
    Rule(
        "greenpg's blocks have words of their own",
        lambda it: it.key in ("raises.str", "raises.args") and "the transaction was in error, so" in it.error_text,
    ),
    Rule(
        "libpq keeps the last error of a large object that it couldn't read from a file",
        lambda it: "error_message" in it.step and "could not open file" in str(it.theirs),
    ),
    Rule(
        "a lost connection has many words, and libpq's blocking functions have others",
        lambda it: (
            (it.key in ("raises.str", "raises.args", "raises.pgerror", "raises.pgcode") or "error_message" in it.step)
            and it.seen.get("conn.closed") == 2
        ),
    ),
    Rule(
        "the connection is lost in the message that carries BEGIN and the first statement",
        lambda it: it.attribute == "status" and it.seen.get("conn.closed") == 2,
    ),
    Rule(
        "psycopg2 is stuck in a COPY that execute() has begun",
        lambda it: (
            (it.key == "conn.get_transaction_status()" and it.theirs == 1)
            or (
                "COPY" in it.step
                and "InFailedSqlTransaction" in str(it.theirs)
                and "can't execute COPY" in it.error_text
            )
        ),
        ends=True,
    ),
    Rule(
        "psycopg2 throws away the notices that come with its own BEGIN, COMMIT and ROLLBACK",
        lambda it: it.key == "conn.notices" and "transaction in progress" in str(it.ours),
    ),
    Rule(
        "blocking psycopg2 leaves a notification that comes with a COMMIT for its next execute()",
        lambda it: it.key == "conn.notifies" and it.ours[: len(it.theirs)] == it.theirs,
    ),
    Rule(
        "after a failed executemany() libpq's last error is the one by which the cursor was made to show the row",
        lambda it: "error_message" in it.step and "current transaction is aborted" in str(it.ours),
    ),
    Rule(
        "psycopg2 reads nothing, without an error, from a large object whose transaction is prepared",
        lambda it: ".read(" in it.step and "tpc_prepare" in it.history and it.ours == NOTHING,
        ends=True,
    ),
    Rule(
        "unlink() of a large object whose connection is closed: psycopg2 leaves it to libpq to find out",
        lambda it: ".unlink()" in it.step and it.error_text == "'connection already closed'",
    ),
    Rule(
        "a pool discards a connection whose server says that it is read-only: it may be a standby now",
        lambda it: "lent()" in it.step and "ReadOnlySqlTransaction" in str(it.seen.get("raises.class")),
        ends=True,
    ),
    Rule(
        "of a COPY and another command in one copy_expert() psycopg2 throws the other's result away",
        lambda it: "TO STDOUT; SELECT 1" in it.history,
        ends=True,
    ),
    Rule(
        "one of greenpg's blocks is a savepoint in a `with conn:`, which plain psycopg2 can't see",
        lambda it: "conn.__enter__()" in it.history and "transaction(conn)" in it.step,
        ends=True,
    ),
    Rule(
        "executemany() that is interrupted: the cursor shows the row before; to show the very row would take one more "
        "round trip, for which nobody who interrupts wants to wait",
        lambda it: (
            "executemany" in it.history
            and "kill(" in it.history
            and (it.attribute in (*_OF_CURSORS, "log") or ".scroll(" in it.step)
        ),
    ),
]

#: Of psycopg2's green mode, and out of greenpg's reach; `--strict` leaves them out. Whoever mends one takes it away.
KNOWN = [
    Rule(
        "COPY of a cursor that was made from its class, or is of psycopg2's own class: no code of greenpg's is called",
        lambda it: "cannot be used with an asynchronous callback" in it.error_text,
        ends=True,
    ),
    Rule(
        "what is thrown into such a cursor can only come out of the wait callback, and psycopg2 closes the connection",
        lambda it: (
            "kill(" in it.step
            and (it.seen.get("conn.closed") == 2 or ("lent()" in it.step and "plain_function" in it.history))
        ),
        ends=True,
    ),
    Rule(
        "an error by which the connection is lost isn't its cursor's, which keeps what it showed before: psycopg2 has "
        "closed the connection before it looks at the cursor",
        lambda it: it.seen.get("conn.closed") and it.attribute in _OF_CURSORS,
    ),
    Rule(
        "such a connection is closed for quote_ident() and new cursors, too",
        lambda it: it.seen.get("conn.closed") == 2 and str(it.seen.get("raises.class")).endswith("InterfaceError"),
        ends=True,
    ),
]
