"""COPY's text format: a row of Python values to a line and back."""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
from psycopg2 import extensions

_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r", ord("\b"): "\\b"}
_ESCAPES |= {ord("\v"): "\\v", ord("\f"): "\\f"}
_must_escape = re.compile(r"[\\\t\n\r\b\v\f]").search
_UNESCAPES = {b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r", b"\\": b"\\"}
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
# 'text', E'text', 'text'::type: what psycopg2's adapters make of most types
_LITERAL = re.compile(r"\s*(E?)'((?:[^']|'')*)'(?:::[\w\s.\"\[\]]+)?\s*", re.DOTALL)


def format_row(row: Sequence[Any], conn: Any) -> str:
    """The line for a row, its end included.

    Raises `psycopg2.ProgrammingError` for a value of a type that psycopg2 can't adapt, or whose adapter makes an
    expression of it, which COPY can't evaluate.
    """
    fields = []
    for value in row:
        if value is None:
            fields.append("\\N")
            continue
        formatter = _FORMATTERS.get(type(value))
        text = _text_of(value, conn) if formatter is None else formatter(value)
        fields.append(text if _must_escape(text) is None else text.translate(_ESCAPES))
    return "\t".join(fields) + "\n"


def _text_of(value: Any, conn: Any) -> str:
    formatter = _FORMATTERS.get(type(value))
    if formatter is not None:
        return formatter(value)
    if isinstance(value, list | tuple):
        return _array(value, conn)
    adapted: Any = extensions.adapt(value)
    if hasattr(adapted, "prepare"):
        adapted.prepare(conn)
    literal: str = adapted.getquoted().decode(extensions.encodings[conn.encoding])
    match = _LITERAL.fullmatch(literal)
    if match is not None:
        text = match[2].replace("''", "'")
        return text.replace("\\\\", "\\") if match[1] else text
    if re.fullmatch(r"\s*[-+]?[\w.+-]+\s*", literal):  # a number, a boolean
        return literal.strip()
    raise psycopg2.ProgrammingError(
        f"write_row() can't write a {type(value).__name__}: its SQL form is an expression; give its text instead"
    )


def _array(values: Sequence[Any], conn: Any) -> str:
    return "{" + ",".join([_element(value, conn) for value in values]) + "}"


def _element(value: Any, conn: Any) -> str:
    if value is None:
        return "NULL"
    text = _text_of(value, conn)
    if isinstance(value, list | tuple):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_FORMATTERS: dict[type, Callable[[Any], str]] = {
    str: str,
    int: str,
    bool: lambda value: "t" if value else "f",
    float: lambda value: repr(value).replace("inf", "Infinity").replace("nan", "NaN"),
    decimal.Decimal: str,
    bytes: lambda value: "\\x" + value.hex(),
    bytearray: lambda value: "\\x" + value.hex(),
    memoryview: lambda value: "\\x" + value.hex(),
    datetime.date: lambda value: value.isoformat(),
    datetime.time: lambda value: value.isoformat(),
    datetime.datetime: lambda value: value.isoformat(" "),
    datetime.timedelta: lambda value: f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds",
    uuid.UUID: str,
}


def parse_row(line: bytes, codec: str) -> tuple[str | None, ...]:
    """The values of a line, as text."""
    fields = line.rstrip(b"\n").split(b"\t")
    if b"\\" not in line:
        return tuple([field.decode(codec) for field in fields])
    return tuple([_parsed(field, codec) for field in fields])


def _parsed(field: bytes, codec: str) -> str | None:
    if field == b"\\N":
        return None
    if b"\\" in field:
        field = _ESCAPED.sub(lambda match: _UNESCAPES.get(match[1], match[1]), field)
    return field.decode(codec)
