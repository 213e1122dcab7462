"""The types of a statement's arguments, as the server would find them in the text that psycopg2 merges. No I/O.

What has no type here is never prepared: AsIs, tuples, Composables, what the program has adapters of its own for.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from psycopg2 import _psycopg, extensions, extras

#: To be found from where it stands, as a quoted constant's.
_UNKNOWN = "unknown"

#: psycopg2 writes their constants with a cast, which gives a column its name.
CAST = frozenset({"date", "timestamp", "timestamptz", "time", "interval", "bytea", "uuid", "float8", "decimal"})

_INT4, _INT8 = 2**31, 2**63


def _of_int(value: int) -> str:
    return "int4" if -_INT4 <= value < _INT4 else "int8" if -_INT8 <= value < _INT8 else "numeric"


def _of_float(value: float) -> str:
    return "numeric" if math.isfinite(value) else "float8"  # 1.5 is a numeric in SQL


def _of_decimal(value: Decimal) -> str:
    text = str(value)
    if not value.is_finite():
        return "decimal"  # another name of numeric, since psycopg2 writes a cast here
    return _of_int(int(text)) if text.lstrip("-").isdigit() else "numeric"


def _of_datetime(value: datetime.datetime) -> str:
    return "timestamp" if value.tzinfo is None else "timestamptz"


def _of_time(value: datetime.time) -> str | None:
    return "time" if value.tzinfo is None else None


def _of_list(values: list[Any]) -> str | None:
    if not values:
        return _UNKNOWN
    classes = set(map(type, values))
    if classes == {str}:
        return "text[]"
    if classes == {int}:
        largest = max(map(_of_int, values), key=("int4", "int8", "numeric").index)
        return f"{largest}[]"
    return None


#: By the argument's very class: what the server takes it for, and psycopg2's adapter, which makes it look so.
_TYPES: dict[type, tuple[str | Callable[[Any], str | None], Any]] = {
    int: (_of_int, extensions.Int),
    str: (_UNKNOWN, extensions.QuotedString),
    float: (_of_float, extensions.Float),
    bool: ("bool", extensions.Boolean),
    type(None): (_UNKNOWN, extensions.NoneAdapter),
    Decimal: (_of_decimal, _psycopg.Decimal),
    bytes: ("bytea", extensions.Binary),
    bytearray: ("bytea", extensions.Binary),
    memoryview: ("bytea", extensions.Binary),
    datetime.date: ("date", _psycopg.adapters[(datetime.date, _psycopg.ISQLQuote)]),
    datetime.datetime: (_of_datetime, _psycopg.adapters[(datetime.datetime, _psycopg.ISQLQuote)]),
    datetime.time: (_of_time, _psycopg.adapters[(datetime.time, _psycopg.ISQLQuote)]),
    datetime.timedelta: ("interval", _psycopg.adapters[(datetime.timedelta, _psycopg.ISQLQuote)]),
    uuid.UUID: ("uuid", extras.UUID_adapter),
    list: (_of_list, _psycopg.List),
}


def types_of(arguments: Iterable[Any]) -> tuple[str, ...] | None:
    """None if one of them has none."""
    types = []
    for value in arguments:
        kind: Any
        if type(value) is int:  # the usual ones first
            kind = "int4" if -_INT4 <= value < _INT4 else _of_int(value)
        elif type(value) is str:
            kind = _UNKNOWN
        elif (found := _TYPES.get(type(value))) is None:
            return None
        else:
            kind = found[0]
            if not isinstance(kind, str):
                kind = kind(value)
                if kind is None:
                    return None
        types.append(kind)
    return tuple(types)


def are_psycopg2s(arguments: Iterable[Any]) -> bool:
    """Whether psycopg2's own adapters are in force for them: the program may have others."""
    adapters = extensions.adapters
    classes = {type(value) for value in arguments}
    for value in arguments:
        if type(value) is list:
            classes.update(map(type, value))
    return all(adapters.get((each, extensions.ISQLQuote)) is _TYPES[each][1] for each in classes)
