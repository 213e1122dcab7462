"""libpq's pipeline mode: the answers to many statements, read in their order, and the rows of one. Never waits."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any, Protocol

from . import (
    COPY_BOTH,
    COPY_IN,
    COPY_OUT,
    END,
    FATAL_ERROR,
    LOST,
    MORE,
    PIPELINE_ABORTED,
    PIPELINE_SYNC,
    WAIT,
    function,
    has_function,
    libpq_handle,
)

_ABORTING = frozenset({FATAL_ERROR, PIPELINE_ABORTED})
_COPIES = frozenset({COPY_OUT, COPY_IN, COPY_BOTH})


class Statement(Protocol):
    """What an answer is for."""

    def answer(self, address: int, status: int) -> None:
        """The PGresult, which it is to free, and its status."""


#: Statements that were sent, in their order; None for a Sync.
Pending = deque[Any]


def is_supported() -> bool:
    """Whether the libpq that psycopg2 runs on has a pipeline mode (since 14)."""
    return has_function("PQenterPipelineMode")


class PipelineWriter:
    """Puts statements into libpq's buffer, which sends it at 64 kB by itself, or else at a PQflush."""

    def __init__(self, pgconn: int | None) -> None:
        self._pgconn = ctypes.c_void_p(pgconn)
        self._send_query: Any = libpq_handle()["PQsendQueryParams"]
        # Before libpq 17 a Sync is always flushed.
        self._sync = function("PQsendPipelineSync" if has_function("PQsendPipelineSync") else "PQpipelineSync")
        self._zero = ctypes.c_int(0)

    def enter(self) -> bool:
        """The connection, which is at rest, goes into pipeline mode."""
        return bool(function("PQenterPipelineMode")(self._pgconn))

    def leave(self) -> bool:
        """And out of it, all answers having been read."""
        return bool(function("PQexitPipelineMode")(self._pgconn))

    def send(self, statement: bytes) -> bool:
        """One command, in the extended protocol, without parameters: whatever is in it, it has one answer."""
        zero = self._zero
        return bool(self._send_query(self._pgconn, statement, zero, None, None, None, None, zero))

    def sync(self) -> bool:
        """The end of what fails together."""
        return bool(self._sync(self._pgconn))

    def request_answers(self) -> bool:
        """The server is to send what it has, without an end."""
        return bool(function("PQsendFlushRequest")(self._pgconn))


class PipelineReader:
    """Reads the answers."""

    _AT_ONCE = 100

    def __init__(self, pgconn: int | None, pending: Pending) -> None:
        self._pgconn = pgconn
        self._pending = pending
        self._is_busy, self._get_result = function("PQisBusy"), function("PQgetResult")
        self._get_status, self._clear = function("PQresultStatus"), function("PQclear")
        #: The first of what is pending has had its answer, but not the end of it.
        self._is_answered = False
        #: Since the last Sync a statement has failed, so that the server passes over all others up to the next one.
        self.is_aborted = False

    def read(self) -> int:
        """Hand out answers that are there, some at once. END: none is missing. LOST: a COPY came."""
        pending, pgconn, is_busy, get_result = self._pending, self._pgconn, self._is_busy, self._get_result
        get_status = self._get_status
        has_read_nothing = False
        for _ in range(self._AT_ONCE):
            if not pending:
                return END
            if is_busy(pgconn):
                return WAIT
            address = get_result(pgconn)
            if not address:
                if self._is_answered:
                    self._is_answered = False
                    pending.popleft()
                elif has_read_nothing:
                    return WAIT
                has_read_nothing = True
                continue
            has_read_nothing = False
            status = get_status(address)
            statement = pending[0]
            if statement is None:
                self._clear(address)
                if status == PIPELINE_SYNC:
                    pending.popleft()
                    self.is_aborted = False
                continue
            if self._is_answered:  # of a connection that is lost
                self._clear(address)
                continue
            self._is_answered = True
            if status in _ABORTING:
                self.is_aborted = True
            elif status in _COPIES:
                self._clear(address)
                return LOST  # nothing in pipeline mode can end it
            statement.answer(address, status)
        return MORE


class Rows:
    """The rows of a PGresult, which it owns."""

    __slots__ = ("_address", "_get_value", "_is_null", "_pointer", "columns", "count")

    def __init__(self, address: int) -> None:
        self._address = address
        self._pointer = ctypes.c_void_p(address)
        self._get_value, self._is_null = _readers()
        self.count: int = function("PQntuples")(address)
        self.columns = range(function("PQnfields")(address))

    def __del__(self) -> None:
        function("PQclear")(self._address)

    def row(self, index: int) -> list[bytes | None]:
        """The values of a row as the server has sent them, in the text format."""
        get_value, pointer = self._get_value, self._pointer
        row = [get_value(pointer, index, column) for column in self.columns]
        if b"" in row:
            is_null = self._is_null
            return [
                None if value == b"" and is_null(pointer, index, column) else value for column, value in enumerate(row)
            ]
        return row

    def command(self) -> bytes:
        """As "SELECT 42"."""
        return function("PQcmdStatus")(self._address) or b""

    def type_oids(self) -> list[int]:
        """The columns' types."""
        type_oid = function("PQftype")
        return [type_oid(self._address, column) for column in self.columns]

    def column(self, index: int) -> tuple[bytes, int, int, int, int, int]:
        """Name, type, size and modifier of a column; table and number of the table's column, 0 if there is none."""
        names = ("PQfname", "PQftype", "PQfsize", "PQfmod", "PQftable", "PQftablecol")
        return tuple(function(name)(self._address, index) for name in names)


_bound: list[Any] = []


def _readers() -> list[Any]:
    """Called without declared types: a call for each value is what a result costs."""
    if not _bound:
        handle = libpq_handle()
        get_value, is_null = handle["PQgetvalue"], handle["PQgetisnull"]
        get_value.restype = ctypes.c_char_p  # a value in the text format has no zero bytes
        _bound.extend((get_value, is_null))
    return _bound
