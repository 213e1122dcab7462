"""One statement in a pipeline, and its answer when it has come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import psycopg2

from ... import libpq
from ...errors import PipelineAborted, set_attribute
from ...libpq.pipeline import Address, Rows
from ..server_errors import error_of

NO_RESULTS = "no results to fetch"
_FATAL = frozenset({b"FATAL", b"PANIC"})
_PASSED_OVER = "the statement was not executed: one before it in the pipeline has failed"


class HasStatements(Protocol):
    """A `Pipeline`."""

    @property
    def connection(self) -> Any: ...

    def wait_for(self, statement: PipelinedStatement) -> None: ...

    def note_failed(self, statement: PipelinedStatement) -> None: ...


class PipelinedStatement:
    """What a `PipelinedCursor` shows."""

    __slots__ = (
        "_failure",
        "_passed_over",
        "_queue",
        "casts",
        "command",
        "cursor",
        "index",
        "is_over",
        "is_told",
        "position",
        "query",
        "rowcount",
        "rows",
    )

    def __init__(self, index: int | None, query: bytes, cursor: Any, queue: HasStatements) -> None:
        #: Which statement of the block, from 0; None for greenpg's own BEGIN and COMMIT.
        self.index = index
        self.query = query
        #: Kept until it is answered, and if it has failed until its error is told: the cursor refers to this.
        self.cursor = cursor
        self._queue = queue
        self.is_over = False
        #: What the server called it, as b"INSERT 0 1".
        self.command = b""
        self.rowcount = -1
        self.rows: Rows | None = None
        #: The next row to be fetched, and what makes Python values of its columns' values.
        self.position = 0
        self.casts: list[Any] | None = None
        self._failure: libpq.Result | tuple[type[psycopg2.Error], str] | None = None
        self._passed_over = False
        #: Somebody has got its error.
        self.is_told = False

    def answer(self, address: Address, status: int) -> None:
        """Take the PGresult. Doesn't suspend."""
        self.is_over = True
        if status == libpq.TUPLES_OK:
            self.rows = rows = Rows(address)
            self.rowcount = rows.count
            self.cursor = None
        elif status == libpq.COMMAND_OK:
            self.command = command = libpq.command_of(address)
            self.rowcount = affected_rows(command)
            self.cursor = None
        elif status == libpq.PIPELINE_ABORTED:
            libpq.function("PQclear")(address)
            self._passed_over = self.is_told = True
            self.cursor = None
        elif status == libpq.EMPTY_QUERY:
            libpq.function("PQclear")(address)
            self._failure = psycopg2.ProgrammingError, "can't execute an empty query"
            self._queue.note_failed(self)
        else:
            self._failure = failure = libpq.copied_out(address)
            if "sqlstate" not in failure.diagnostics:  # libpq's own: it has lost the connection
                self.lose(failure.message.decode("utf-8", "replace"))
            self._queue.note_failed(self)

    def lose(self, reason: str) -> None:
        """The connection was lost before the answer."""
        self.is_over = True
        self._failure = psycopg2.OperationalError, reason

    @property
    def is_lost(self) -> bool:
        """Nobody knows what has become of it."""
        return isinstance(self._failure, tuple) and self._failure[0] is psycopg2.OperationalError

    @property
    def rowcount_is_known(self) -> bool:
        """It has been executed."""
        return self.is_over and self._failure is None and not self._passed_over

    @property
    def is_told_without_rows(self) -> bool:
        """Nothing of it is left to be fetched or raised."""
        return self.rows is None and (self.rowcount_is_known or (self._failure is not None and self.is_told))

    @property
    def is_fatal(self) -> bool:
        """The server ends the connection."""
        failure = self._failure
        return isinstance(failure, libpq.Result) and failure.diagnostics.get("severity_nonlocalized") in _FATAL

    @property
    def has_failed(self) -> bool:
        """By itself, not because one before it has."""
        return self._failure is not None

    def wait(self, cursor: Any) -> None:
        """For its answer. Suspends if that isn't there. Raises the statement's error if nobody has got it yet."""
        if not self.is_over:
            self._queue.wait_for(self)
        if not self.is_told and self._failure is not None:
            raise self.error(cursor)

    def wait_for_rows(self, cursor: Any) -> Rows:
        """The same; if there are no rows the statement's error, also once more, or that there are none."""
        self.wait(cursor)
        if self.rows is not None:
            return self.rows
        if self._failure is not None or self._passed_over:
            raise self.error(cursor)
        raise psycopg2.ProgrammingError(NO_RESULTS)

    def error(self, cursor: Any) -> psycopg2.Error:
        """Why it has no result; a new exception each time: a traceback refers to whatever was about."""
        self.is_told = True
        self.cursor = None
        if isinstance(self._failure, libpq.Result):
            error = error_of(self._failure, self._queue.connection, cursor)
        else:
            error_class, text = self._failure or (PipelineAborted, _PASSED_OVER)
            error = error_class(text)
        self._describe(error)
        return error

    def _describe(self, error: psycopg2.Error) -> None:
        if self.index is not None:
            set_attribute(error, "statement_index", self.index)
            add_note(error, f"pipeline: statement {self.index}, counted from 0")


def affected_rows(command: bytes) -> int:
    """The number in b"INSERT 0 1"; -1 where there is none."""
    count = command[command.rfind(b" ") + 1 :]
    return int(count) if count.isdigit() else -1


def add_note(error: BaseException, note: str) -> None:
    """Where exceptions can have notes, since Python 3.11."""
    add: Callable[[str], None] | None = getattr(error, "add_note", None)
    if add is not None:
        with contextlib.suppress(AttributeError):
            add(note)
