"""BEGIN in front of a transaction's first statement, in the same message: one round trip less than psycopg2's own.

psycopg2 sends BEGIN, and waits for the answer, while its `status` is READY. Here it is told that the transaction has
begun, and gets "BEGIN;" and the statement to send in one message. Afterwards psycopg2 is in its transaction, as if it
had begun it: everything else (commit, named cursors, COPY, two-phase commit, cursors of any class) is its own.

Only where that is certainly faithful: one command of a kind that is known, run by a plain cursor's `execute()`. In all
other cases, and where the status can't be written (driver.py), psycopg2 begins by itself.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg2
from psycopg2 import extensions, sql

from .. import libpq
from ..driver import StatusWord, driver_status
from .guarded_connection import GuardedConnection
from .guarded_cursor import GuardedCursor, Params, Query
from .identity import ASK
from .server_errors import renumbered, text_codec

_connection: Any = extensions.connection
_execute = extensions.cursor.execute
_mogrify: Any = extensions.cursor.mogrify
#: Whether a connection is in autocommit, without asking who is inside.
is_autocommit: Any = _connection.autocommit.__get__
_isolation_level = _connection.isolation_level.__get__
_readonly = _connection.readonly.__get__
_deferrable = _connection.deferrable.__get__

_READY, _BEGIN = extensions.STATUS_READY, extensions.STATUS_BEGIN
_IDLE = extensions.TRANSACTION_STATUS_IDLE
_QUERY_CANCELED = "57014"

#: One command that isn't empty, doesn't begin or end a transaction, and isn't COPY. No comment before it: it may hide
#: anything.
_RIDES = re.compile(
    rb"\s*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE|SAVEPOINT|LOCK|DECLARE|FETCH|EXECUTE|EXPLAIN|CALL|DO"
    rb"|SET|SHOW|CREATE|ALTER|DROP|TRUNCATE|GRANT|REVOKE|COMMENT|REFRESH|NOTIFY|LISTEN|UNLISTEN)\b",
    re.IGNORECASE,
)
#: SET TRANSACTION has to come first.
_SETS = re.compile(rb"\s*SET\b", re.IGNORECASE)
_END_OF_COMMAND = b"; \t\r\n\f\v"

# The line break keeps LINE numbers of errors apart from the caret's column.
_PLAIN_BEGIN = b"BEGIN;\n"
_ISOLATION_LEVELS = {
    extensions.ISOLATION_LEVEL_READ_COMMITTED: b" ISOLATION LEVEL READ COMMITTED",
    extensions.ISOLATION_LEVEL_REPEATABLE_READ: b" ISOLATION LEVEL REPEATABLE READ",
    extensions.ISOLATION_LEVEL_SERIALIZABLE: b" ISOLATION LEVEL SERIALIZABLE",
    extensions.ISOLATION_LEVEL_READ_UNCOMMITTED: b" ISOLATION LEVEL READ UNCOMMITTED",
    None: b"",
}
_ACCESS_MODES = {True: b" READ ONLY", False: b" READ WRITE", None: b""}
_DEFERRABLE_MODES = {True: b" DEFERRABLE", False: b" NOT DEFERRABLE", None: b""}


class _Unadaptable:
    """psycopg2 refuses it before it sends anything."""


def execute_first(conn: GuardedConnection, cur: GuardedCursor, query: Query, vars: Params) -> None:
    """`psycopg2.extensions.cursor.execute(cur, query, vars)` on a connection that is READY and not in autocommit, with
    BEGIN in front of the statement where that can be done. Suspends.
    """
    word = conn._status_word
    if word is None or cur.closed or conn.get_transaction_status() != _IDLE:
        return _execute(cur, query, vars)
    if not driver_status.is_proven:
        return _prove_status(conn, cur, query, vars, word)
    statement = merged(conn, cur, query, vars)
    if statement is None:
        return _execute(cur, query, vars)
    has_begun = conn._driver_status != _READY  # an adapter may have used the connection
    is_one_command = b";" not in statement or b";" not in statement.rstrip(_END_OF_COMMAND)
    if has_begun or not is_one_command or not _RIDES.match(statement):
        return _execute(cur, statement)
    begin = begin_of(conn)
    if conn._wants_identity and not _SETS.match(statement):
        begin = b"%b %b;\n" % (begin.rstrip(), ASK)
    message = begin + statement
    word.value = _BEGIN  # which it will be in a moment
    try:
        _execute(cur, message)
    except BaseException as error:
        cur._hide_prefix(message, len(begin))
        if conn.closed:
            raise
        if conn.get_transaction_status() == _IDLE:
            word.value = _READY
            if not _has_run_nothing(conn, error):
                raise
        else:
            if isinstance(error, psycopg2.Error):
                _point_into_statement(conn, error, len(begin))
            raise
    else:
        cur._hide_prefix(message, len(begin))
        return None
    # Sent once more, after psycopg2's own BEGIN: the error is the true one, and the transaction in error, as it should
    # be.
    return _execute(cur, statement)


def merged(conn: GuardedConnection, cur: GuardedCursor, query: Query, vars: Params) -> bytes | None:
    """The statement as it is sent. None: psycopg2 is to find that it can't be."""
    if isinstance(query, sql.Composable):
        query = query.as_string(cur)
    if not query or not isinstance(query, str | bytes):
        return None
    try:
        return _mogrify(cur, query, vars)  # type: ignore[no-any-return]
    except BaseException as error:
        if isinstance(error, UnicodeEncodeError) and error.object is query:
            raise
        show_refused(cur)
        raise


def show_refused(cur: Any) -> None:
    """Do what execute() does to the cursor before it refuses the arguments. Doesn't suspend."""
    try:
        _execute(cur, b"%s", (_Unadaptable(),))
    except psycopg2.Error:
        pass


def _has_run_nothing(conn: GuardedConnection, error: BaseException) -> bool:
    """The server is idle after an error in a message that began with BEGIN: has it refused the whole message?

    It has if it couldn't parse it. A message that was cancelled, before or in BEGIN, is not to be sent again.
    """
    if not isinstance(error, psycopg2.Error) or conn._gate.interruption is not None:
        return False
    return error.pgcode not in (None, _QUERY_CANCELED)


def begin_of(conn: GuardedConnection) -> bytes:
    """The BEGIN that psycopg2 would send."""
    isolation_level, readonly, deferrable = _isolation_level(conn), _readonly(conn), _deferrable(conn)
    if isolation_level is readonly is deferrable is None:
        return _PLAIN_BEGIN
    return b"".join(
        [
            b"BEGIN",
            _ISOLATION_LEVELS[isolation_level],
            _ACCESS_MODES[readonly],
            _DEFERRABLE_MODES[deferrable],
            b";\n",
        ]
    )


def _prove_status(
    conn: GuardedConnection, cur: extensions.cursor, query: Query, vars: Params, word: StatusWord
) -> None:
    """psycopg2 begins by itself once, to see whether its status is where it is thought to be."""
    try:
        _execute(cur, query, vars)
    finally:
        if not conn.closed:
            driver_status.prove(conn, word)


def _point_into_statement(conn: GuardedConnection, error: psycopg2.Error, prefix_length: int) -> None:
    """Make the error point into the user's statement, which begins in the second line of what was sent."""
    if driver_status.move_error_back(error, prefix_length):
        text, pgerror = (renumbered(text.encode(), 1).decode() for text in (str(error), error.pgerror or ""))
        driver_status.replace_text(error, text, pgerror)
        libpq.overwrite_error_message(conn.pgconn_ptr, pgerror.encode(text_codec(conn), "replace"))


def execute_alone(conn: GuardedConnection, cur: GuardedCursor, query: Query, vars: Params) -> None:
    """`cur.execute(query, vars)` as if in autocommit: committed by itself, in one round trip. Suspends.

    The connection is READY, and psycopg2 would put nothing but BEGIN in front. The process's first takes three more.
    """
    if is_autocommit(conn):
        return cur.execute(query, vars)
    word = conn._status_word
    if word is None or not (driver_status.is_proven or _prove_alone(conn, word)):
        return _execute_in_autocommit(conn, cur, query, vars)
    word.value = _BEGIN  # so psycopg2 begins nothing
    try:
        return cur.execute(query, vars)
    finally:
        if conn.get_transaction_status() == _IDLE:  # and so not closed
            word.value = _READY


def _prove_alone(conn: GuardedConnection, word: StatusWord) -> bool:
    with conn.cursor(None, extensions.cursor) as prover:
        _prove_status(conn, prover, b"SELECT 1", None, word)
    conn.rollback()
    return driver_status.is_proven


def _execute_in_autocommit(conn: GuardedConnection, cur: GuardedCursor, query: Query, vars: Params) -> None:
    conn.set_session(autocommit=True)  # a pool puts it back if the statement has begun a transaction
    try:
        cur.execute(query, vars)
    finally:
        if conn.get_transaction_status() == _IDLE:
            conn._set_session(autocommit=False)
