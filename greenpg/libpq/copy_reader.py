"""`CopyReader`: the data of a COPY TO, out of libpq."""

from __future__ import annotations

import ctypes

from ..errors import LibpqUnavailable
from . import END, LOST, MORE, WAIT, function, libpq_handle


class CopyReader:
    """Takes the data of a COPY TO out of libpq, never blocking.

    The cost of a COPY TO is the calls for each row. PQgetlineAsync copies a row into memory of ours: one call, where
    PQgetCopyData needs three (it, the copy, PQfreemem). Called without declared types, with arguments made before.
    """

    BLOCK_BYTES = 128 * 1024
    _ROWS = 1000

    def __init__(self, pgconn: int | None) -> None:
        handle = libpq_handle()
        try:
            self._getline = handle["PQgetlineAsync"]
        except AttributeError:
            raise LibpqUnavailable("the libpq that psycopg2 runs on has no PQgetlineAsync()") from None
        self._pgconn = ctypes.c_void_p(pgconn)
        self._consume_input = function("PQconsumeInput")
        self._memory = ctypes.create_string_buffer(self.BLOCK_BYTES)
        self._view = memoryview(self._memory).cast("B")
        self._start = ctypes.addressof(self._memory)
        self._target = ctypes.c_void_p(self._start)
        self._begun_row = b""

    def read_block(self) -> tuple[bytes, int]:
        """What is there, `BLOCK_BYTES` at most, and what to do next. A row may be cut anywhere."""
        getline, pgconn, target = self._getline, self._pgconn, self._target
        position = target.value = self._start
        end = position + self.BLOCK_BYTES
        has_read = False
        while True:
            length = getline(pgconn, target, end - position)
            if length > 0:
                has_read = False
                position += length
                if position == end:
                    state = MORE
                    break
                target.value = position
            else:
                state = self._state_after(length, has_read)
                if state != MORE:
                    break
                has_read = True
        return self._view[: position - self._start].tobytes(), state

    def read_rows(self) -> tuple[list[bytes], int]:
        """The same, row by row: one for each row that the server has sent, complete, in COPY's format."""
        getline, pgconn, target, view, limit = self._getline, self._pgconn, self._target, self._view, self.BLOCK_BYTES
        target.value = self._start
        rows: list[bytes] = []
        total = 0
        has_read = False
        while True:
            length = getline(pgconn, target, limit)
            if length > 0:
                has_read = False
                row = view[:length].tobytes()
                if length == limit:  # the row goes on
                    self._begun_row += row
                    continue
                if self._begun_row:
                    row, self._begun_row = self._begun_row + row, b""
                rows.append(row)
                total += length
                if total > limit or len(rows) >= self._ROWS:
                    return rows, MORE
            else:
                state = self._state_after(length, has_read)
                if state != MORE:
                    if state != WAIT and self._begun_row:  # it was as long as the memory, exactly
                        rows.append(self._begun_row)
                        self._begun_row = b""
                    return rows, state
                has_read = True

    def _state_after(self, length: int, has_read: bool) -> int:
        if length < 0:
            return END
        if has_read:
            return WAIT
        return MORE if self._consume_input(self._pgconn) else LOST
