"""Errors of `executemany()`: psycopg2's, with the row that is to blame."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import psycopg2

from ... import libpq
from ...errors import set_attribute
from ..guarded_cursor import GuardedCursor
from ..server_errors import error_of, moved_back, text_codec

#: Between the statements of a page. The newline before ends a comment. The one after lets each statement begin a line:
#: the line that libpq quotes in an error is the user's then, only its number is not.
SEPARATOR = b"\n;\n"

# Errors of the whole message, found before the server looks for statements in it: invalid characters.
_OF_THE_MESSAGE = frozenset({"22021", "22P05"})


def error_of_page(
    failure: libpq.Result, page: list[bytes], succeeded: int, first_row: int, cursor: GuardedCursor
) -> tuple[psycopg2.Error, bytes | None]:
    """The error for a page's failure, after so many of its statements have succeeded, and the statement that is to
    blame, if it is known. Doesn't suspend."""
    conn = cursor.connection
    codec = text_codec(conn)
    row: int | None = succeeded
    offset = offset_lines = 0
    position = failure.diagnostics.get("statement_position")
    if position is not None:
        # The server reads all statements of a message before it runs the first: it needn't be the next one.
        row, offset, offset_lines = _locate(page, int(position), codec)
        failure = moved_back(failure, offset, offset_lines)
    elif succeeded == 0 and failure.diagnostics.get("sqlstate", b"").decode() in _OF_THE_MESSAGE and len(page) > 1:
        row = None
    error = error_of(failure, conn, cursor)
    if conn.closed == 0:
        try:
            conn.poll()  # takes in the server's notices; after a FATAL error, marks the connection as closed
        except psycopg2.Error:
            pass
    cursor._note_rowcount(-1)
    if row is None:
        _add_note(error, f"executemany(): one of the rows {first_row} to {first_row + len(page) - 1} (from 0)")
        set_attribute(error, "row_index", None)
        return error, None
    note_row(error, first_row + row)
    return error, page[row] if row < len(page) else None


def note_row(error: BaseException, row: int) -> None:
    """Say which row it was."""
    set_attribute(error, "row_index", row)
    _add_note(error, f"executemany(): row {row}, counted from 0")


def _add_note(error: BaseException, note: str) -> None:
    add_note: Callable[[str], None] | None = getattr(error, "add_note", None)  # since Python 3.11
    if add_note is not None:
        with contextlib.suppress(AttributeError):  # a frozen dataclass
            add_note(note)


def _locate(page: list[bytes], position: int, codec: str) -> tuple[int, int, int]:
    """(row of the page, characters and lines before it) for a position, counted in characters from 1."""
    characters = lines = 0
    for row, statement in enumerate(page):
        text = statement.decode(codec, "replace")
        end = characters + len(text) + len(SEPARATOR)
        if position <= end or row == len(page) - 1:
            break
        characters = end
        lines += len(re.findall("\r\n|\r|\n", text)) + SEPARATOR.count(b"\n")
    return row, characters, lines
