"""A transaction whose BEGIN rides in front of its first statement: one round trip less than psycopg2's own.

psycopg2 sends BEGIN by itself, and waits for the answer. Where greenpg owns the transaction the connection is in
autocommit underneath, and the first `execute()` sends "BEGIN;" and the statement in one message. What can't be done
faithfully in this way (a server-side cursor, tpc_begin, session settings, COPY first) is left to psycopg2's own BEGIN.

Turning autocommit on and off costs more than the rest of a ride, so a pool leaves it on between rides, hidden from the
user, until somebody wants the connection for other things: `hide_autocommit()`, `show_autocommit()`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from ..errors.sqlstate import name_by_sqlstate
from .server_errors import Diagnostics, diagnostics_of, renumbered, with_diagnostics

if TYPE_CHECKING:
    from .connection import Connection

_connection: Any = extensions.connection
_cursor = extensions.cursor
_get_status = _connection.status.__get__
_set_autocommit = _connection.autocommit.__set__
_get_autocommit = _connection.autocommit.__get__
_statusmessage: Any = _cursor.statusmessage.__get__

_IDLE = extensions.TRANSACTION_STATUS_IDLE
_INERROR = extensions.TRANSACTION_STATUS_INERROR

#: A command that ends the transaction (or looks like one): if it's one of several, an error after it would leave the
#: same state as one before BEGIN.
_END_OF_TRANSACTION = re.compile(rb"(\A|;|\n|\*/)\s*(commit|end|rollback|abort|prepare\s+transaction)\b", re.IGNORECASE)

#: What leaves nothing to be executed: white space, comments and semicolons.
_NOTHING = re.compile(rb"(\s|;|--[^\n]*(\n|\Z)|/\*.*?\*/)*", re.DOTALL)

_ISOLATION_LEVELS = {
    extensions.ISOLATION_LEVEL_READ_UNCOMMITTED: "READ UNCOMMITTED",
    extensions.ISOLATION_LEVEL_READ_COMMITTED: "READ COMMITTED",
    extensions.ISOLATION_LEVEL_REPEATABLE_READ: "REPEATABLE READ",
    extensions.ISOLATION_LEVEL_SERIALIZABLE: "SERIALIZABLE",
}


class Characteristics:
    """Isolation level, readonly and deferrable of one transaction. None leaves them at the connection's default."""

    __slots__ = ("_deferrable", "_isolation_level", "_readonly", "begin")

    def __init__(self, isolation_level: int | str | None, readonly: bool | None, deferrable: bool | None) -> None:
        self._isolation_level = _checked_isolation_level(isolation_level)
        self._readonly = readonly
        self._deferrable = deferrable
        words = ["BEGIN"]
        if self._isolation_level is not None:
            words.append(f"ISOLATION LEVEL {self._isolation_level}")
        if readonly is not None:
            words.append("READ ONLY" if readonly else "READ WRITE")
        if deferrable is not None:
            words.append("DEFERRABLE" if deferrable else "NOT DEFERRABLE")
        # The line break keeps LINE numbers of errors apart from the caret's column.
        self.begin = " ".join(words).encode() + b";\n"

    def apply(self, conn: Any) -> tuple[Any, Any, Any]:
        """Set them on the connection, for psycopg2's own BEGIN. Returns what was set."""
        before = conn.isolation_level, conn.readonly, conn.deferrable
        _connection.set_session(conn, self._isolation_level, self._readonly, self._deferrable)
        return before


def _checked_isolation_level(level: int | str | None) -> str | None:
    if isinstance(level, int) and level in _ISOLATION_LEVELS:
        return _ISOLATION_LEVELS[level]
    if isinstance(level, str) and level.upper() in _ISOLATION_LEVELS.values():
        return level.upper()
    if level is None:
        return None
    names = ", ".join(map(repr, _ISOLATION_LEVELS.values()))
    raise ValueError(f"unknown isolation level {level!r}: use one of {names}, or psycopg2's ISOLATION_LEVEL constants")


_DEFAULT = Characteristics(None, None, None)


def hide_autocommit(conn: Any) -> bool:
    """Turn autocommit on underneath, where it's off. Doesn't suspend.

    False, and nothing is changed, if the connection has session settings: they make psycopg2 talk to the server when
    autocommit changes. The connection must not be in a transaction.
    """
    if conn._has_session_settings:
        return False
    if not _get_autocommit(conn):
        _set_autocommit(conn, True)
        conn._hides_autocommit = True
    return True


def show_autocommit(conn: Any) -> None:
    """Take `hide_autocommit()` back, where it has been done. Doesn't suspend."""
    if conn._hides_autocommit:
        conn._hides_autocommit = False
        if not conn.closed:
            _set_autocommit(conn, False)


class Ride:
    """One transaction of greenpg's, from before its first statement to its end. At most one on a connection."""

    __slots__ = (
        "_characteristics",
        "_conn",
        "_session_before",
        "_was_autocommit",
        "is_native",
        "is_pending",
        "session_reset",
    )

    def __init__(self, conn: Connection, characteristics: Characteristics = _DEFAULT) -> None:
        self._conn = conn
        self._characteristics = characteristics
        self._session_before: tuple[Any, Any, Any] | None = None
        #: Nothing has been sent yet.
        self.is_pending = True
        #: The transaction is psycopg2's own.
        self.is_native = False
        #: Set by a pool that wants it: statements that are sent along with its end, as a transaction of their own.
        self.session_reset = ""

    def start(self) -> None:
        """Nothing is sent. The connection must not be in a transaction. Doesn't suspend."""
        conn = self._conn
        self._was_autocommit = _get_autocommit(conn)
        conn._ride = self
        if conn._has_session_settings:  # see hide_autocommit()
            self.go_native()
        elif not self._was_autocommit:
            _set_autocommit(conn, True)

    def go_native(self) -> None:
        """Leave this transaction to psycopg2. Suspends if it has begun."""
        if self.is_native:
            return
        conn = self._conn
        if conn._hides_autocommit:
            self._was_autocommit = conn._hides_autocommit = False
        _set_autocommit(conn, False)
        self.is_native = True
        if self.is_pending:
            self.is_pending = False
            if self._characteristics is not _DEFAULT:
                self._session_before = self._characteristics.apply(conn)
        else:
            # psycopg2 has to begin, too, for its own state. The server doesn't mind, but says so.
            count = len(conn.notices)
            conn._control("SELECT")
            del conn.notices[count:]

    def execute_first(self, cur: Any, query: Any, vars: Any) -> bool:
        """`cur.execute(query, vars)`, with BEGIN in front. Suspends. False: it's left to psycopg2, nothing was sent."""
        conn = self._conn
        statement = cur.mogrify(query, vars)
        if not statement:
            _cursor.execute(cur, statement)  # raises; nothing is sent
        if b";" in statement and _END_OF_TRANSACTION.search(statement):
            self.go_native()
            return False
        message = self._characteristics.begin + statement
        conn._call = "execute"
        try:
            _cursor.execute(cur, message)
            cur._hide_prefix(statement)
            self.is_pending = False
            if _statusmessage(cur) == "BEGIN" and _NOTHING.fullmatch(statement):
                raise psycopg2.ProgrammingError("can't execute an empty query")
            return True
        except psycopg2.Error as error:
            if self.is_pending and not conn.closed:
                cur._hide_prefix(statement)
                error = self._true_error(cur, statement, error)
            name_by_sqlstate(error)
            raise error from None
        finally:
            conn._call = None
            if conn._interruption is not None:
                conn._raise_interruption()

    def _true_error(self, cur: Any, statement: bytes, error: psycopg2.Error) -> psycopg2.Error:
        """The error that psycopg2 would have raised, with the transaction in the state that it would have left."""
        conn = self._conn
        self.is_pending = conn.get_transaction_status() == _IDLE
        if not self.is_pending:
            _correct_position(error, len(self._characteristics.begin))
        elif error.pgcode is not None and conn._interruption is None:
            # The server could not parse the message and has run nothing of it, BEGIN included. So it's safe to send it
            # again, after a BEGIN: the transaction is in error then, as it should be, and the error is the true one.
            try:
                conn._control(self._characteristics.begin)
                self.is_pending = False
                _cursor.execute(cur, statement)
            except psycopg2.Error as true_error:
                return true_error
        return error

    def end(self, commit: bool) -> None:
        """Commit, or roll back. Suspends if anything was sent.

        Raises `psycopg2.errors.InFailedSqlTransaction` if a transaction in error, which the server can only roll back,
        was to be committed.
        """
        conn = self._conn
        try:
            if not conn.closed:
                self._end(conn, commit)
        finally:
            conn._ride = None
            if self.is_native or not self._was_autocommit:
                self._restore(conn)

    def _end(self, conn: Connection, commit: bool) -> None:
        status = conn.get_transaction_status()
        if status == _IDLE and not self.is_native:
            conn._is_session_clean = self.is_pending and bool(self.session_reset)
            return
        is_failed = status == _INERROR
        name = "commit" if commit and not is_failed else "rollback"
        if self.is_native:
            conn._end_transaction(name)
        elif not self.session_reset:
            conn._end_transaction(name, statement=name)
        else:
            statement = f"{name};BEGIN ISOLATION LEVEL READ COMMITTED;{self.session_reset};COMMIT"
            conn._is_session_clean = conn._end_transaction(name, statement=statement)
        if commit and is_failed:
            raise psycopg2.errors.InFailedSqlTransaction(
                "the transaction was in error, so it has been rolled back instead of committed: an error of a "
                "statement in it was not let out of the block"
            )

    def _restore(self, conn: Connection) -> None:
        if conn.closed or _get_status(conn) != extensions.STATUS_READY:
            return
        if self._session_before is not None:
            _connection.set_session(conn, *("DEFAULT" if value is None else value for value in self._session_before))
        if _get_autocommit(conn) != self._was_autocommit:
            _set_autocommit(conn, self._was_autocommit)


def _correct_position(error: psycopg2.Error, prefix_length: int) -> None:
    """Make the error point into the user's statement: it stands in the second line of what was sent."""
    fields = diagnostics_of(error)
    position = fields.get("statement_position")
    if position is None:
        return
    fields["statement_position"] = str(int(position) - prefix_length)
    diagnostics, cursor = Diagnostics(fields), error.cursor
    text, pgerror = (renumbered(text.encode(), 1).decode() for text in (str(error), error.pgerror or ""))
    error.__class__ = with_diagnostics(type(error))  # type: ignore[arg-type]
    error._diag, error._cursor = diagnostics, cursor  # type: ignore[attr-defined]
    error.args = (text,)
    error.__setstate__({"pgerror": pgerror, "pgcode": error.pgcode})  # type: ignore[no-untyped-call]
