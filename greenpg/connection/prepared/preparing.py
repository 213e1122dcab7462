"""Executing a statement as a prepared one, where that does the same, or else in the ordinary way.

PREPARE takes a round trip of its own, once for each connection. It must not harm the transaction if the server refuses
it: before a transaction begins it's sent by itself, inside of one behind a savepoint. Then EXECUTE goes psycopg2's way:
the status, the row count and the rows are those of the statement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2
from psycopg2 import extensions

from ...driver import driver_status
from ...errors import is_interruption
from ..guarded_connection import GuardedConnection
from ..guarded_cursor import GuardedCursor, Params, Query
from ..lazy_begin import execute_alone
from ..server_errors import text_codec
from .argument_types import are_psycopg2s, types_of
from .statements import Key, Prepared, PreparedStatements, made
from .template import Template, template_of

logger = logging.getLogger("greenpg.connection")

_execute: Any = extensions.cursor.execute
_autocommit: Any = extensions.connection.autocommit.__get__  # type: ignore[attr-defined]
_READY = extensions.STATUS_READY
_IDLE, _INTRANS = extensions.TRANSACTION_STATUS_IDLE, extensions.TRANSACTION_STATUS_INTRANS

_SAVEPOINT = b"greenpg_prepare"

#: The statement's plan would give other columns than before; the server doesn't know of it (any more); it does already.
_PLAN_CHANGED, _UNKNOWN_STATEMENT, _KNOWN_ALREADY = "0A000", "26000", "42P05"

Execute = Callable[[Query, Params], None]


def execute_prepared(cur: GuardedCursor, query: Query, vars: Params, execute: Execute, threshold: int) -> None:
    """`execute(query, vars)`, prepared if it was executed `threshold` times before. Suspends."""
    conn = cur.connection
    prepared = conn._prepared
    if prepared.is_off or conn._gate.queue is not None:
        return execute(query, vars)
    # With arguments in a tuple the types tell: it's known only if it has a template with so many parameters.
    types = types_of(vars) if type(vars) is tuple and vars else None
    key: Key | None = (query, types)  # type: ignore[assignment]
    found = None if types is None or query.__class__ is not str else prepared.known.get(key)  # type: ignore[arg-type]
    if found is None:
        key = _key_of(conn, query, vars)
        found = None if key is None else _known_or_due(conn, prepared, key, vars, threshold)
        if found is None:
            return execute(query, vars)
    assert key is not None
    prepared.known.move_to_end(key)
    is_first = conn.get_transaction_status() == _IDLE  # nothing is lost if it fails
    begins = is_first and conn._driver_status == _READY
    try:
        return execute(found.execute, vars)
    except psycopg2.Error as error:
        code = error.pgcode
        if code not in (_PLAN_CHANGED, _UNKNOWN_STATEMENT) or is_interruption(error):
            raise
        if code == _UNKNOWN_STATEMENT:  # DEALLOCATE ALL was executed
            prepared.forget_all()
        prepared.forget(key)
        if not is_first or conn.closed or conn._gate.interruption is not None:
            raise  # a part of the transaction is lost
    if begins and not _autocommit(conn):
        with conn._gate.calling("rollback"):
            extensions.connection.rollback(conn)
    return execute(query, vars)


def _known_or_due(
    conn: GuardedConnection, prepared: PreparedStatements, key: Key, vars: Params, threshold: int
) -> Prepared | None:
    found = prepared.known.get(key)
    if found is not None or prepared.is_refused(key) or not prepared.is_due(key, threshold, conn.prepared_max):
        return found
    status = conn.get_transaction_status()
    if status == _INTRANS or (status == _IDLE and _can_be_alone(conn)):
        return _prepare(conn, prepared, key, vars)
    return None


def _can_be_alone(conn: GuardedConnection) -> bool:
    """Whether something can be executed without psycopg2's beginning a transaction for it."""
    has_word = conn._status_word is not None and driver_status.is_proven
    return bool(_autocommit(conn)) or conn._driver_status != _READY or has_word


def _key_of(conn: GuardedConnection, query: Query, vars: Params) -> Key | None:
    """None if it isn't to be prepared."""
    if conn.async_ or not isinstance(query, str | bytes) or (vars is not None and not vars):
        return None
    template = _template_of(conn, query, vars)
    if template is None:
        return None
    arguments = _arguments_of(template, vars)
    types = None if arguments is None else types_of(arguments)
    return None if types is None else (query, types)


def _template_of(conn: GuardedConnection, query: Any, vars: Params) -> Template | None:
    return template_of(query, text_codec(conn), vars is not None)


def _arguments_of(template: Template, vars: Any) -> list[Any] | tuple[Any, ...] | None:
    if vars is None:
        return ()
    if template.names is not None:
        if not isinstance(vars, Mapping) or not all(name in vars for name in template.names):
            return None
        return [vars[name] for name in template.names]
    if type(vars) not in (list, tuple) or len(vars) != template.how_many:
        return None  # psycopg2 says what is wrong
    return vars  # type: ignore[no-any-return]


def _prepare(conn: GuardedConnection, prepared: PreparedStatements, key: Key, vars: Params) -> Prepared | None:
    """The statement, or None where it can't be prepared; nothing has happened then."""
    template = _template_of(conn, key[0], vars)
    assert template is not None
    if not are_psycopg2s(_arguments_of(template, vars) or ()):
        prepared.refuse(key)
        return None
    statement = made(key, template)
    commands = [*(b"DEALLOCATE " + name for name in prepared.dropped), statement.prepare]
    trace: Any = getattr(conn, "_tracing", None)
    event = None if trace is None else trace.begin("prepare", conn, None, key[0], None)
    try:
        code = _send(conn, commands)
        if code == _KNOWN_ALREADY:  # of a PREPARE whose answer was lost, or a pooler's other client's
            code = _send(conn, [])
    except BaseException as error:
        if event is not None:
            trace.end(event, error)
        raise
    if event is not None:
        trace.end(event)
    prepared.dropped.clear()
    if code == _BEHIND_A_POOLER:
        prepared.is_off = True
        logger.info("nothing is prepared on %s: a pooler is in front of the server", conn)
        return None
    if code == _UNKNOWN_STATEMENT:  # of a DEALLOCATE: somebody has dropped all of them
        prepared.forget_all()
        return None
    if code is not None:
        prepared.refuse(key)
        return None
    prepared.add(key, statement, conn.prepared_max)
    return statement


_BEHIND_A_POOLER = "pooler"


def _send(conn: GuardedConnection, commands: list[bytes]) -> str | None:
    """None if they were executed; else the SQLSTATE, and the transaction is as it was before. Suspends."""
    cur: Any = extensions.cursor(conn)
    is_inside = conn.get_transaction_status() == _INTRANS
    if is_inside:
        commands = [b"SAVEPOINT " + _SAVEPOINT, *commands, b"RELEASE SAVEPOINT " + _SAVEPOINT]
    # A pooler has process numbers of its own.
    message = b"\n;\n".join([*commands, b"SELECT pg_catalog.pg_backend_pid()"])
    try:
        with conn._gate.calling("execute"):
            if is_inside or conn._driver_status != _READY:
                _execute(cur, message)
            else:
                execute_alone(conn, cur, message, None)
        return None if cur.fetchone()[0] == conn.get_backend_pid() else _BEHIND_A_POOLER
    except psycopg2.Error as error:
        if is_interruption(error) or error.pgcode is None or conn.closed:
            raise
        code = str(error.pgcode)
    if is_inside:
        with conn._gate.calling("execute"):
            _execute(cur, b"ROLLBACK TO SAVEPOINT " + _SAVEPOINT + b"; RELEASE SAVEPOINT " + _SAVEPOINT)
    return code
