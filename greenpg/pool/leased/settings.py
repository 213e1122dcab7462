"""What a `LeasedConnection` has set, read as psycopg2 reads it; applied to each connection that it leases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psycopg2 import extensions

from ...connection.session_settings import SessionSettings
from ...connection.transaction import ISOLATION_LEVELS

#: psycopg2's numbers.
_LEVELS = {name: number for number, name in ISOLATION_LEVELS.items()}

Overrides = dict[str, Any]


def _isolation_level(value: Any) -> int | None:
    if isinstance(value, bytes):
        value = value.decode()
    if value is None or (isinstance(value, str) and value.lower() == "default"):
        return None
    if isinstance(value, str):
        if value.upper() not in _LEVELS:
            raise ValueError(f"bad value for isolation_level: '{value}'")
        return _LEVELS[value.upper()]
    if not 1 <= int(value) <= 4:
        raise ValueError("isolation_level must be between 1 and 4")
    return int(value)


def _on_off(value: Any) -> bool | None:
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        if value.lower() != "default":
            raise ValueError(f"the only string accepted is 'default'; got {value}")
        return None
    return None if value is None else bool(value)


def _encoding(value: Any) -> str:
    name = "".join(filter(str.isalnum, str(value))).upper()  # psycopg2's own way
    known = {"".join(filter(str.isalnum, key)).upper(): key for key in extensions.encodings}
    if name not in known:
        raise LookupError(f"unknown encoding: {value}")
    return name


_READERS: dict[str, Callable[[Any], Any]] = {
    "isolation_level": _isolation_level,
    "readonly": _on_off,
    "deferrable": _on_off,
    "autocommit": bool,
    "encoding": _encoding,
}


def read(name: str, value: Any) -> Any:
    """The value as the attribute shows it. Raises what psycopg2 does if it makes no sense."""
    reader = _READERS.get(name)
    return value if reader is None else reader(value)


def apply(overrides: Mapping[str, Any], found: SessionSettings, conn: Any) -> None:
    """Make a connection that was just leased what they say. Suspends only for another client encoding, and where
    psycopg2 tells the server: isolation level, readonly and deferrable of a connection in autocommit."""
    wanted = found._replace(**overrides)
    if wanted[:-2] != found[:-2]:  # but for the lists of messages
        wanted.put_back(conn)
