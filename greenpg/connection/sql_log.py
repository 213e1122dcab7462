"""`SqlLog`: statements, slow statements and notices in the standard `logging`.

Connections without a log have plain cursors and never ask whether to log: attaching one gives the connection other
cursor classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from .connection import Connection
from .cursor import Cursor
from .guarded_cursor import Params, Query

sql_logger = logging.getLogger("greenpg.sql")
notice_logger = logging.getLogger("greenpg.notices")


class SqlLog:
    """Logs what connections do. Attach it by calling it with a connection, or as a pool's `configure`:

        ConnectionPool(dsn, configure=greenpg.SqlLog(slower_than=0.5))

    - `statements` (True): each statement with its time and row count at level DEBUG, a failing one with its error.
    - `slower_than` (None: never): statements that take longer than that, in seconds, at level WARNING.
    - `parameters` (False): whether the parameters are shown, as the server got them; they may be somebody's secrets.
    - `notices` (True): the server's notices, after the statement that raised them, each once, at level INFO.
    - `logger` ("greenpg.sql"), `notice_logger` ("greenpg.notices"): the standard loggers to use.

    Logging takes place in the task that runs the statement, after it; the time includes waiting for the server.
    A pool's report of a leak (`leak_after`) names the last statement of a connection that has a log.
    For other formats override `before()`, `after()`, `failed()` and `notice()`.
    Its methods don't suspend, unless a handler of the loggers does.
    """

    def __init__(
        self,
        *,
        statements: bool = True,
        slower_than: float | None = None,
        parameters: bool = False,
        notices: bool = True,
        logger: logging.Logger = sql_logger,
        notice_logger: logging.Logger = notice_logger,
    ) -> None:
        if slower_than is not None and not slower_than >= 0:
            raise ValueError(f"slower_than must be a number of seconds, not {slower_than!r}")
        self.statements = statements
        self.slower_than = slower_than
        self.parameters = parameters
        self.notices = notices
        self.logger = logger
        self.notice_logger = notice_logger

    def __call__(self, conn: Connection) -> None:
        """Log what cursors do that are made on this connection from now on. Doesn't suspend."""
        conn._attach_log(self, LoggedStatements)
        if self.notices:
            conn.notices = NoticeList(conn.notices)

    def detach(self, conn: Connection) -> None:
        """Log this connection no longer. Doesn't suspend."""
        conn._attach_log(None)
        conn.notices = list(conn.notices)

    def before(self, cursor: Cursor, statement: Query, parameters: Params | Iterable[Params]) -> None:
        """Called before a statement is sent."""

    def after(self, cursor: Cursor, statement: Query, parameters: Params | Iterable[Params], seconds: float) -> None:
        """Called when a statement has succeeded."""
        if self.slower_than is not None and seconds > self.slower_than:
            level, prefix = logging.WARNING, "slow statement: "
        elif self.statements:
            level, prefix = logging.DEBUG, ""
        else:
            return
        if self.logger.isEnabledFor(level):
            self.logger.log(
                level,
                "%s%.1f ms, %d rows: %s",
                prefix,
                seconds * 1000.0,
                cursor.rowcount,
                self.shown(cursor, statement, parameters),
            )

    def failed(
        self,
        cursor: Cursor,
        statement: Query,
        parameters: Params | Iterable[Params],
        seconds: float,
        error: BaseException,
    ) -> None:
        """Called when a statement has raised."""
        if self.statements and self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug(
                "%.1f ms, %s: %s: %s",
                seconds * 1000.0,
                type(error).__name__,
                str(error).strip().partition("\n")[0],
                self.shown(cursor, statement, parameters),
            )

    def notice(self, text: str) -> None:
        """Called for each notice of the server."""
        self.notice_logger.info("%s", text)

    def shown(self, cursor: Cursor, statement: Query, parameters: Params | Iterable[Params]) -> str:
        """The statement's text for the log; with its parameters only if they are to be shown."""
        if self.parameters and parameters is not None and cursor.query:
            return str(cursor.query.decode(errors="replace"))
        if hasattr(statement, "as_string"):  # psycopg2.sql
            return str(statement.as_string(cursor))
        return statement.decode(errors="replace") if isinstance(statement, bytes) else str(statement)

    def log_notices(self, conn: Connection) -> None:
        """Log the connection's notices since the last time. Called after each statement; those of a COMMIT stay until
        the next one, or until this is called."""
        if isinstance(conn.notices, NoticeList):
            for text in conn.notices.take_new():
                self.notice(text.strip())


class NoticeList(list[str]):
    """psycopg2's list of notices (it keeps the last 50) that knows which ones are new."""

    def __init__(self, notices: Iterable[str] = ()) -> None:
        super().__init__(notices)
        self._new: list[str] = []

    def append(self, notice: str) -> None:
        # psycopg2 calls this with the connection's lock held: a log handler that suspended here could stop the program.
        super().append(notice)
        self._new.append(notice)

    def take_new(self) -> list[str]:
        new, self._new = self._new, []
        return new


class LoggedStatements(Cursor):
    """Goes on top of a cursor whose connection has a log."""

    connection: Connection

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        self._log("execute", query, vars, prepare=prepare)

    def executemany(self, query: Query, vars_list: Iterable[Params], *, returning: bool = False) -> None:
        self._log("executemany", query, vars_list, returning=returning)

    def callproc(self, procname: str | bytes, parameters: Params = None) -> None:
        self._log("callproc", procname, parameters)

    def _log(self, name: str, statement: Any, parameters: Any, **options: Any) -> Any:
        call = getattr(super(), name)
        log: SqlLog | None = self.connection._sql_log
        if log is None:  # detached since the cursor was made
            return call(statement, parameters, **options)
        self.connection._note_statement(statement)
        log.before(self, statement, parameters)
        started = time.monotonic()
        try:
            result = call(statement, parameters, **options)
        except BaseException as error:
            log.failed(self, statement, parameters, time.monotonic() - started, error)
            raise
        else:
            log.after(self, statement, parameters, time.monotonic() - started)
            return result
        finally:
            log.log_notices(self.connection)
