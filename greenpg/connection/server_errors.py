"""psycopg2's exceptions for errors that come by other ways than psycopg2's own calls."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import psycopg2
from psycopg2 import _psycopg, extensions

from .. import libpq
from ..errors.sqlstate import SQLSTATE_CLASSES

_classes_by_sqlstate: dict[str, type[psycopg2.Error]] = _psycopg.sqlstate_errors


class Diagnostics:
    """What `psycopg2.extensions.Diagnostics` says, read beforehand: psycopg2 makes its own from a PGresult only."""

    def __init__(self, fields: dict[str, str]) -> None:
        for name in libpq.DIAGNOSTICS:
            setattr(self, name, fields.get(name))


def text_codec(conn: extensions.connection) -> str:
    """Python's name for the connection's client encoding."""
    return extensions.encodings[conn.encoding]


def error_of(
    result: libpq.Result, conn: extensions.connection, cursor: extensions.cursor | None = None
) -> psycopg2.Error:
    """The exception that psycopg2 would raise for a result with the status FATAL_ERROR."""
    codec = text_codec(conn)
    fields = {name: value.decode(codec, "replace") for name, value in result.diagnostics.items()}
    pgerror = result.message.decode(codec, "replace")
    message = pgerror
    for severity in ("ERROR:  ", "FATAL:  ", "PANIC:  "):
        message = message.removeprefix(severity)
    sqlstate = fields.get("sqlstate")
    error: psycopg2.Error = with_diagnostics(_class_of(sqlstate))(message)
    error.__setstate__({"pgerror": pgerror, "pgcode": sqlstate})  # type: ignore[no-untyped-call]
    error._diag, error._cursor = Diagnostics(fields), cursor  # type: ignore[attr-defined]
    return error


def diagnostics_of(error: psycopg2.Error) -> dict[str, str]:
    """The fields of its `diag` that the server has set."""
    fields = {name: getattr(error.diag, name) for name in libpq.DIAGNOSTICS}
    return {name: value for name, value in fields.items() if value is not None}


def moved_back(result: libpq.Result, characters: int, lines: int) -> libpq.Result:
    """The error with its position counted from so many characters and lines later in the statement."""
    diagnostics = dict(result.diagnostics)
    diagnostics["statement_position"] = b"%d" % (int(diagnostics["statement_position"]) - characters)
    return replace(result, message=renumbered(result.message, lines), diagnostics=diagnostics)


def renumbered(message: bytes, lines: int) -> bytes:
    """The message, the line that libpq quotes in it numbered `lines` less, and the caret still under its place.

    The quotation is two lines, as "LINE 12: SELECT nonsense" and the caret. "LINE" may be translated.
    """

    def renumber(match: re.Match[bytes]) -> bytes:
        label, number, line, blanks, caret = match.groups()
        new_number = b"%d" % (int(number) - lines)
        return label + new_number + line + blanks[len(number) - len(new_number) :] + caret

    return re.sub(rb"(?m)^([^\d\n]{1,30})(\d+)(.*\n)( +)(\^)$", renumber, message, count=1)


def _class_of(sqlstate: str | None) -> Any:
    if sqlstate is None:
        return psycopg2.DatabaseError
    return _classes_by_sqlstate.get(sqlstate) or SQLSTATE_CLASSES.get(sqlstate[:2], psycopg2.DatabaseError)


@cache
def with_diagnostics(base: Any) -> Any:
    """The class, with a `diag` and a `cursor` that psycopg2's C code hasn't set."""

    def reduce(self: Any) -> tuple[Any, ...]:
        return base, self.args, {"pgerror": self.pgerror, "pgcode": self.pgcode}

    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce__": reduce,
        "diag": property(lambda self: self._diag),
        "cursor": property(lambda self: self._cursor),
    }
    return type(base.__name__, (base,), namespace)
