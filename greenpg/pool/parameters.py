"""What a pool's parameters must be like, said once and clearly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psycopg2 import extensions

from ..connection.connect.dsn import checked_dsn
from .sessions import reset_session

#: Keywords that greenpg or psycopg2 take for themselves; the others go into the connection string.
NOT_FOR_LIBPQ = frozenset({"autocommit", "cursor_factory"})
_REFUSED = {
    "connection_factory": "use the pool's connection_class parameter",
    "async": "a pool's connections are made green by greenpg.patch()",
    "async_": "a pool's connections are made green by greenpg.patch()",
}


def check_sizes(min_size: int, max_size: int | None) -> tuple[int, int]:
    """The sizes, max_size filled in. ValueError if they make no sense."""
    if max_size is None:
        max_size = min_size
    if min_size < 0:
        raise ValueError(f"min_size can't be negative: {min_size}")
    if max_size < 1:
        raise ValueError(f"max_size must be at least 1, not {max_size}: a pool without connections can't lend any")
    if max_size < min_size:
        raise ValueError(f"max_size ({max_size}) can't be less than min_size ({min_size})")
    return min_size, max_size


def check_not_negative(**values: float) -> None:
    """ValueError if one of them is negative, or not a number."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} can't be negative: {value!r}")


def resetter(reset: Callable[[Any], object] | str | None) -> Callable[[Any], object] | None:
    """What a pool's `reset` means: a function to be called on returned connections, None if nothing is to be done."""
    if reset is None or reset == "rollback":
        return None
    if reset == "session":
        return reset_session
    if callable(reset):
        return reset
    raise ValueError(f'reset must be "rollback", "session" or a function, not {reset!r}')


def check_connecting(conninfo: object, kwargs: object, connection_class: object) -> None:
    """Find typing errors when the pool is made rather than in the background. Callables are seen at each connect."""
    if not isinstance(connection_class, type) or not issubclass(connection_class, extensions.connection):
        raise TypeError(
            f"connection_class must be a class derived from psycopg2.extensions.connection, not {connection_class!r}"
        )
    if callable(conninfo) or callable(kwargs):
        return
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo must be a string, or a callable that returns one, not {type(conninfo).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping, or a callable that returns one, not {type(kwargs).__name__}")
    checked_dsn(conninfo, **for_libpq(kwargs or {}))


def for_libpq(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that go into the connection string. TypeError for those that a pool can't take."""
    for name, advice in _REFUSED.items():
        if name in kwargs:
            raise TypeError(f"{name!r} can't be among a pool's kwargs: {advice}")
    return {name: value for name, value in kwargs.items() if name not in NOT_FOR_LIBPQ}
