"""libpq's pipeline mode: the answers to many statements, read in their order, and the rows of one. Never waits."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from typing import Any, Protocol

from . import (
    COMMAND_OK,
    COPY_BOTH,
    COPY_IN,
    COPY_OUT,
    END,
    FATAL_ERROR,
    LOST,
    MORE,
    PIPELINE_ABORTED,
    PIPELINE_SYNC,
    TUPLES_OK,
    WAIT,
    function,
    has_function,
    libpq_handle,
)

_ABORTING = frozenset({FATAL_ERROR, PIPELINE_ABORTED})
_COPIES = frozenset({COPY_OUT, COPY_IN, COPY_BOTH})
_DONE = frozenset({COMMAND_OK, TUPLES_OK})


class Address(ctypes.c_void_p):
    """That of a PGresult, as libpq's functions take it without a conversion. False if it's NULL."""


class Statement(Protocol):
    """What an answer is for."""

    def answer(self, address: Address, status: int) -> None:
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

    def send_alone(self, statement: bytes) -> bool:
        """Both, in one call."""
        zero, pgconn = self._zero, self._pgconn
        return bool(self._send_query(pgconn, statement, zero, None, None, None, None, zero) and self._sync(pgconn))

    def request_answers(self) -> bool:
        """The server is to send what it has, without an end."""
        return bool(function("PQsendFlushRequest")(self._pgconn))


class PipelineReader:
    """Reads the answers."""

    _AT_ONCE = 100

    def __init__(self, pgconn: int | None, pending: Pending) -> None:
        self._pgconn = ctypes.c_void_p(pgconn)
        self._pending = pending
        handle = libpq_handle()
        self._is_busy, self._get_result, self._get_status = (
            handle[name] for name in ("PQisBusy", "PQgetResult", "PQresultStatus")
        )
        self._get_result.restype = Address
        self._clear = _readers()[-1]
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
            if status in _COPIES:
                self._clear(address)
                return LOST  # nothing in pipeline mode can end it
            self.is_aborted |= status in _ABORTING
            statement.answer(address, status)
            if status in _DONE and not get_result(pgconn):  # doesn't wait: libpq knows the end with the answer
                self._is_answered = False
                pending.popleft()
        return MORE


class Rows:
    """The rows of a PGresult, which it owns."""

    __slots__ = ("_address", "_readers", "columns", "count")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._readers = readers = _readers()
        self.count: int = readers[0](address)
        self.columns = range(readers[1](address))

    def __del__(self) -> None:
        self._readers[-1](self._address)

    def row(self, index: int) -> list[bytes | None]:
        """The values of a row as the server has sent them, in the text format."""
        _, _, get_value, is_null, _, _ = self._readers
        address = self._address
        row = [get_value(address, index, column) for column in self.columns]
        if b"" in row:
            return [
                None if value == b"" and is_null(address, index, column) else value for column, value in enumerate(row)
            ]
        return row

    def command(self) -> bytes:
        """As "SELECT 42"."""
        return function("PQcmdStatus")(self._address) or b""

    def type_oids(self) -> list[int]:
        """The columns' types."""
        type_oid, address = self._readers[4], self._address
        return [type_oid(address, column) for column in self.columns]

    def column(self, index: int) -> tuple[bytes, int, int, int, int, int]:
        """Name, type, size and modifier of a column; table and number of the table's column, 0 if there is none."""
        names = ("PQfname", "PQftype", "PQfsize", "PQfmod", "PQftable", "PQftablecol")
        return tuple(function(name)(self._address, index) for name in names)


@cache
def _readers() -> tuple[Any, ...]:
    """Called without declared types of arguments: the calls for each value are what a result costs."""
    handle = libpq_handle()
    names = ("PQntuples", "PQnfields", "PQgetvalue", "PQgetisnull", "PQftype", "PQclear")
    readers = tuple(handle[name] for name in names)
    readers[2].restype = ctypes.c_char_p  # a value in the text format has no zero bytes
    readers[4].restype = ctypes.c_uint
    readers[5].restype = None
    return readers
