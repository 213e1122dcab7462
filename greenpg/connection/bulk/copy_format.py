"""COPY's text format: a row of Python values to a line and back."""

from __future__ import annotations

import datetime
import decimal
import functools
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..guarded_connection import GuardedConnection
from ..server_errors import text_codec

_CONTROLS = {"\t": "t", "\n": "n", "\r": "r", "\b": "b", "\v": "v", "\f": "f"}
_UNESCAPES = {name.encode(): character.encode() for character, name in _CONTROLS.items()}
# 'text', E'text', 'text'::type: what psycopg2's adapters make of most types
_LITERAL = re.compile(r"\s*(E?)'((?:[^']|'')*)'(?:::[\w\s.\"\[\]]+)?\s*", re.DOTALL)

# Of the client encodings in which a byte of a character can be a backslash: the characters of several bytes, as the
# server tells them from others when it looks for what to escape. (JOHAB's three bytes are the server's mistake.)
_MULTIBYTE = {
    "SJIS": rb"[\x80-\xa0\xe0-\xff].",
    "SHIFTJIS2004": rb"[\x80-\xa0\xe0-\xff].",
    "BIG5": rb"[\x80-\xff].",
    "GBK": rb"[\x80-\xff].",
    "UHC": rb"[\x80-\xff].",
    "GB18030": rb"[\x80-\xff](?:[0-9]..|[^0-9])",
    "JOHAB": rb"\x8f..|[\x80-\xff].",
}


class RowFormat:
    """The lines of a COPY in the text format, in the connection's client encoding at the time."""

    def __init__(self, conn: GuardedConnection) -> None:
        self._conn = conn
        self._codec = codec = text_codec(conn)
        multibyte = _MULTIBYTE.get(conn.encoding)
        prefix = b"" if multibyte is None else b"((?:%b)+)|" % multibyte
        self._unescape = re.compile(prefix + rb"\\(.)", re.DOTALL).sub
        self._unescaped = _unescaped if multibyte is None else _unescaped_multibyte
        # For Python the byte of the backslash is a yen sign in SHIFT_JIS_2004.
        self._backslash = b"\\".decode(codec)
        # What may be one for the server: in EUC_JP a yen sign has its byte, and full-width ones may be converted to it.
        self._backslashes = "\\" if conn.encoding == "UTF8" else "\\\xa5\uff3c"
        self._null = self._backslash + "N"
        self._escapes = str.maketrans(
            {character: self._backslash + name for character, name in _CONTROLS.items()}
            | {character: self._backslash + character for character in self._backslashes}
        )
        self._must_escape = re.compile(f"[\t\n\r\b\v\f{re.escape(self._backslashes)}]").search
        self._formatters = _FORMATTERS | dict.fromkeys(
            # not a method: it would refer to the connection in a circle
            (bytes, bytearray, memoryview),
            functools.partial(_hexadecimal, self._backslash),
        )

    def line(self, row: Sequence[Any]) -> str:
        """The line for a row, its end included.

        Raises `psycopg2.ProgrammingError` for a value of a type that psycopg2 can't adapt, or whose adapter makes an
        expression of it, which COPY can't evaluate.
        """
        fields = []
        for value in row:
            if value is None:
                fields.append(self._null)
                continue
            formatter = self._formatters.get(type(value))
            text = self._text_of(value) if formatter is None else formatter(value)
            fields.append(text if self._must_escape(text) is None else text.translate(self._escapes))
        return "\t".join(fields) + "\n"

    def row(self, line: bytes) -> tuple[str | None, ...]:
        """The values of a line, as text."""
        codec = self._codec
        if b"\\" not in line:
            return tuple([field.decode(codec) for field in line.rstrip(b"\n").split(b"\t")])
        return tuple([None if field is None else field.decode(codec) for field in self.fields(line)])

    def fields(self, line: bytes) -> list[bytes | None]:
        """The values of a line, as the server has sent them."""
        fields = line.rstrip(b"\n").split(b"\t")
        if b"\\" not in line:
            return list(fields)
        return [
            None if field == b"\\N" else self._unescape(self._unescaped, field) if b"\\" in field else field
            for field in fields
        ]

    def _text_of(self, value: Any) -> str:
        formatter = self._formatters.get(type(value))
        if formatter is not None:
            return formatter(value)
        if isinstance(value, list | tuple):
            return "{" + ",".join([self._element(element) for element in value]) + "}"
        adapted: Any = extensions.adapt(value)
        if hasattr(adapted, "prepare"):
            adapted.prepare(self._conn)
        literal: str = adapted.getquoted().decode(self._codec)
        match = _LITERAL.fullmatch(literal)
        if match is not None:
            text = match[2].replace("''", "'")
            return text.replace(self._backslash * 2, self._backslash) if match[1] else text
        if re.fullmatch(r"\s*[-+]?[\w.+-]+\s*", literal):  # a number, a boolean
            return literal.strip()
        raise psycopg2.ProgrammingError(
            f"write_row() can't write a {type(value).__name__}: its SQL form is an expression; give its text instead"
        )

    def _element(self, value: Any) -> str:
        """An element of an array."""
        if value is None:
            return "NULL"
        text = self._text_of(value)
        if isinstance(value, list | tuple):
            return text
        for character in self._backslashes + '"':
            text = text.replace(character, self._backslash + character)
        return '"' + text + '"'


def _hexadecimal(backslash: str, value: Any) -> str:
    return f"{backslash}x{value.hex()}"


def _unescaped(match: re.Match[bytes]) -> bytes:
    return _UNESCAPES.get(match[1], match[1])


def _unescaped_multibyte(match: re.Match[bytes]) -> bytes:
    return match[1] or _UNESCAPES.get(match[2], match[2])


_FORMATTERS: dict[type, Callable[[Any], str]] = {
    str: str,
    int: str,
    bool: lambda value: "t" if value else "f",
    float: lambda value: repr(value).replace("inf", "Infinity").replace("nan", "NaN"),
    decimal.Decimal: str,
    datetime.date: lambda value: value.isoformat(),
    datetime.time: lambda value: value.isoformat(),
    datetime.datetime: lambda value: value.isoformat(" "),
    datetime.timedelta: lambda value: f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds",
    uuid.UUID: str,
}
