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
    def is_after_executemany(self):
        """The value is of a cursor that has been used so."""
        return f"{self.key.partition('.')[0]}.executemany" in self.history

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
    return is_large and it.key.startswith("raises.") and it.theirs in (None, "None", NOTHING)


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
        "a lost connection has many words, and libpq's blocking functions have others",
        lambda it: (
            it.key in ("raises.str", "raises.args", "raises.pgerror", "raises.pgcode")
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
]

#: Not meant. Whoever mends one takes its rule out; `--strict` leaves them all out.
KNOWN = [
    Rule(
        "COPY of a cursor that is none of greenpg's: made by a function, or from its class",
        lambda it: "cannot be used with an asynchronous callback" in it.error_text,
        ends=True,
    ),
    Rule(
        "execute('COPY ...') by such a cursor: the connection is stuck",
        lambda it: "COPY" in it.history and "another command is already in progress" in it.error_text,
        ends=True,
    ),
    Rule(
        "an error of psycopg2's, or whatever is thrown into a cursor that is none of greenpg's, closes the connection",
        lambda it: "kill(" in it.step and it.seen.get("conn.closed") == 2,
        ends=True,
    ),
    Rule(
        "executemany() that fails: the cursor is left as after the row before the page",
        lambda it: (
            (it.is_after_executemany and it.attribute in _OF_CURSORS)
            or (it.key == "log" and "executemany" in it.history)
        ),
    ),
    Rule(
        "scroll() after executemany(): psycopg2 counts the rows that were inserted for rows of a result",
        lambda it: "executemany" in it.history and ".scroll(" in it.step,
        ends=True,
    ),
    Rule(
        "executemany(): its arguments are looked at before the cursor's state",
        lambda it: "executemany('SELECT 1', 5)" in it.history or "executemany('SELECT 1', None)" in it.history,
        ends=True,
    ),
    Rule(
        "an error by which the connection is lost isn't its cursor's; and the cursor keeps what it showed before",
        lambda it: it.seen.get("conn.closed") and it.attribute in _OF_CURSORS,
    ),
    Rule(
        "large objects in a transaction that was begun by hand on a connection in autocommit",
        lambda it: "outside of transactions" in str(it.theirs),
        ends=True,
    ),
    Rule(
        "executemany() from a generator that ends the transaction, and its rows before one that can't be adapted",
        lambda it: any(
            text in it.history
            for text in ("conn.commit()) for", "conn.rollback()) for", "(3,), (4", "Unadaptable()), (4", "1 / 0 for")
        ),
        ends=True,
    ),
    Rule(
        "a large object from a file that isn't there: the transaction is not begun",
        lambda it: "/nonexistent/x" in it.step,
        ends=True,
    ),
    Rule(
        "COPY and another command in one copy_expert()",
        lambda it: "TO STDOUT; SELECT 1" in it.history,
        ends=True,
    ),
    Rule(
        "set_client_encoding() and tpc_prepare() show a notice that psycopg2 throws away",
        lambda it: it.key == "conn.notices" and ("set_client_encoding" in it.history or "tpc_" in it.history),
    ),
    Rule(
        "COPY into a file that raises: the cursor has counted the rows",
        lambda it: "BadFile" in it.history and it.attribute == "rowcount",
    ),
    Rule(
        "unlink() of a large object whose transaction is over fails, but closes it",
        lambda it: ".unlink()" in it.history and it.attribute == "closed",
    ),
    Rule(
        "a connection that was lost is closed for quote_ident() and new cursors, too",
        lambda it: it.seen.get("conn.closed") == 2 and str(it.seen.get("raises.class")).endswith("InterfaceError"),
        ends=True,
    ),
    Rule(
        "executemany() on a closed cursor asks its generator for a row",
        lambda it: (
            "executemany" in it.step
            and ("InterfaceError" in str(it.theirs) or "cursor already closed" in it.error_text)
        ),
        ends=True,
    ),
]
