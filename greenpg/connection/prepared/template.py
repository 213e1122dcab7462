"""A query with psycopg2's placeholders as a prepared statement's text, where that means the same. No I/O."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ..sql_text import BLANKS, has_several_commands, tokens, without_comments
from .argument_types import CAST

_PREPARABLE = re.compile(rb"\s*\(*\s*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|WITH|TABLE)\b", re.IGNORECASE)
_PERCENT = re.compile(rb"%(?:(?P<percent>%)|(?P<plain>s)|\((?P<name>[^)]*)\)s|(?P<other>))")
_DOLLAR = re.compile(rb"\$\d")

#: A number by itself names a column there, a parameter doesn't.
_BY = re.compile(rb"\b(?:ORDER|GROUP|PARTITION)\s+BY\b", re.IGNORECASE)
_END_OF_BY = re.compile(
    rb"[()]|\b(?:LIMIT|OFFSET|FETCH|FOR|HAVING|WINDOW|RETURNING|UNION|INTERSECT|EXCEPT|ROWS|RANGE|GROUPS)\b",
    re.IGNORECASE,
)


class Template(NamedTuple):
    """What becomes of a query."""

    #: Of its text; a number is that of a parameter, from 1.
    parts: tuple[bytes | int, ...]
    #: As b"(%s, %s)", to be merged by psycopg2 for EXECUTE; b"" if there are none.
    arguments: bytes
    #: Of the placeholders, in the order of their first use; None where they have no names.
    names: tuple[str, ...] | None
    how_many: int

    def text(self, types: tuple[str, ...]) -> bytes:
        """With $1 for the first parameter."""
        return b"".join([part if isinstance(part, bytes) else _parameter(part, types) for part in self.parts])


def _parameter(number: int, types: tuple[str, ...]) -> bytes:
    type_ = types[number - 1]
    return f"${number}::{type_}".encode() if type_ in CAST else b"$%d" % number


@lru_cache(maxsize=1000)
def template_of(query: str | bytes, codec: str, has_arguments: bool) -> Template | None:
    """None for what isn't to be prepared."""
    try:
        statement = query.encode(codec) if isinstance(query, str) else query
    except UnicodeEncodeError:
        return None
    statement = statement.rstrip(b";" + BLANKS)
    if not _PREPARABLE.match(statement) and not _PREPARABLE.match(without_comments(statement)):
        return None
    if has_several_commands(statement):
        return None
    return _with_parameters(statement, codec) if has_arguments else Template((statement,), b"", None, 0)


def _with_parameters(statement: bytes, codec: str) -> Template | None:
    quoted = [(start, end) for start, end, token in tokens(statement) if token not in (b"(", b")", b";")]
    if _DOLLAR.search(statement):
        return None
    parts: list[bytes | int] = []
    names: list[bytes] = []
    plain = position = 0
    for match in _PERCENT.finditer(statement):
        start = match.start()
        parts.append(statement[position:start])
        position = match.end()
        if match["percent"]:
            parts.append(b"%")
            continue
        if match["other"] is not None or any(begin <= start < end for begin, end in quoted):
            return None
        if _is_column_number(statement, start):
            return None
        if match["name"] is None:
            plain += 1
            number = plain
        else:
            if match["name"] not in names:
                names.append(match["name"])
            number = names.index(match["name"]) + 1
        parts.append(number)
    parts.append(statement[position:])
    if names and plain:
        return None
    count = plain or len(names)
    placeholders = [b"%%(%s)s" % name for name in names] or [b"%s"] * plain
    arguments = b"(" + b", ".join(placeholders) + b")" if count else b""
    known = tuple(name.decode(codec) for name in names) if names else None
    return Template(tuple(parts), arguments, known, count)


def _is_column_number(statement: bytes, position: int) -> bool:
    begin = None
    for match in _BY.finditer(statement, 0, position):
        begin = match.end()
    return begin is not None and not _END_OF_BY.search(statement, begin, position)
