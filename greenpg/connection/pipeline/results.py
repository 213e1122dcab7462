"""Python values, rows and descriptions out of a pipeline's answers, as psycopg2 makes them. Doesn't suspend."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from psycopg2 import extensions

from ...libpq.pipeline import Rows
from ..guarded_cursor import GuardedCursor
from ..server_errors import text_codec

_NUMERIC = 1700
_MODIFIER_HEAD = 4
_global_types: dict[int, Any] = extensions.string_types
_default: Any = extensions.UNICODE


def casts_of(rows: Rows, cursor: GuardedCursor) -> list[Any]:
    """A typecaster for each column: the cursor's, the connection's, or psycopg2's."""
    own, connections = cursor.string_types, cursor.connection.string_types
    if not own and not connections:
        return [_for_null(_global_types.get(oid, _default)) for oid in rows.type_oids()]
    registries = [types for types in (own, connections, _global_types) if types]
    return [
        _for_null(next((types[oid] for types in registries if oid in types), _default))  # as psycopg2 looks for them
        for oid in rows.type_oids()
    ]


#: By the typecaster's id: itself, so that it stays the one of that id, and what is called in its place.
_callable: dict[int, tuple[Any, Any]] = {}


def _for_null(cast: Any) -> Any:
    """The typecaster, or what calls the Python function it was made of for NULL, too: it doesn't when called by us."""
    found = _callable.get(id(cast))
    if found is None:
        function = next((each for each in gc.get_referents(cast) if isinstance(each, Callable)), None)  # type: ignore[arg-type]
        if function is None or isinstance(function, type(_default)):  # C, or an array's base
            made = cast
        else:

            def made(value: bytes | None, cursor: Any) -> Any:
                return function(None, cursor) if value is None else cast(value, cursor)

        if len(_callable) > 1000:  # some programs make typecasters by the request
            _callable.clear()
        found = _callable[id(cast)] = cast, made
    return found[1]


def made_row(values: list[bytes | None], casts: list[Any], cursor: GuardedCursor) -> Any:
    """A tuple, or what the cursor's `row_factory` makes."""
    factory: Any = cursor.row_factory
    if factory is None:
        return tuple([cast(value, cursor) for cast, value in zip(casts, values, strict=True)])
    row = factory(cursor)
    for index, (cast, value) in enumerate(zip(casts, values, strict=True)):
        row[index] = cast(value, cursor)
    return row


def description_of(rows: Rows, cursor: GuardedCursor) -> tuple[extensions.Column, ...]:
    """psycopg2's `cursor.description`."""
    codec = text_codec(cursor.connection)
    return tuple(_column(rows.column(index), codec) for index in rows.columns)


def _column(column: tuple[bytes, int, int, int, int, int], codec: str) -> extensions.Column:
    name, oid, size, modifier, table, table_column = column
    if modifier > 0:
        modifier -= _MODIFIER_HEAD
    precision = scale = None
    internal_size = size
    if modifier > 0:
        internal_size = modifier >> 16 if oid == _NUMERIC else modifier
    if oid == _NUMERIC:  # 65535 where there is no modifier, as psycopg2 has it
        precision, scale = (modifier >> 16) & 0xFFFF, modifier & 0xFFFF
    made: Any = extensions.Column
    return made(  # type: ignore[no-any-return]
        name.decode(codec), oid, None, internal_size, precision, scale, None, table or None, table_column or None
    )
