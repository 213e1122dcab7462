"""`get_pool()`: pools that the modules of a program share, by name or by where they connect to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..connection.connect.credentials import Conninfo
from ..connection.connect.dsn import masked_dsn
from ..hubs import hub
from .pool import ConnectionPool

P = ParamSpec("P")
Pool = TypeVar("Pool", bound=ConnectionPool[Any])


class _Entry:
    """A pool, and what it was asked for with."""

    __slots__ = ("options", "pool")

    def __init__(self, pool: ConnectionPool[Any], options: dict[str, Any]) -> None:
        self.pool = pool
        self.options = options


_entries: dict[str, _Entry] = {}
_mutexes: list[Any] = []  # one, made at the first use: patch() may come after the import


def _takes_the_options_of(
    pool_class: Callable[P, Pool],
) -> Callable[[Callable[..., object]], Callable[Concatenate[str, P], Pool]]:
    """For type checkers: the function has the parameters of the class, after its own first one."""
    return lambda function: function  # type: ignore[return-value]


@_takes_the_options_of(ConnectionPool)
def get_pool(name_or_uri: str, /, conninfo: Conninfo | None = None, **options: Any) -> ConnectionPool[Any]:
    """The pool of that name or connection string; made at the first call, the same one ever after.

    - `get_pool("postgresql://app@db/app", max_size=10)`: one pool for each connection string.
    - `get_pool("orders", "postgresql://app@db/orders", max_size=10)`: with a name of its own. After that,
      `get_pool("orders")` is enough.

    `options` are `ConnectionPool`'s. Whoever names some must name those that the pool was made with, or gets a
    ValueError that says what differs; who names none gets the pool as it is. LookupError for a name that is not known
    yet. A pool that has been closed is made anew, with the options of this call, or else those that it had. Doesn't
    suspend; any task of any native thread may call it.
    """
    if not isinstance(name_or_uri, str):
        raise TypeError(f"a pool's name, or a connection string, must be a string, not {name_or_uri!r}")
    is_name = "=" not in name_or_uri and "://" not in name_or_uri
    if conninfo is not None:
        options["conninfo"] = conninfo
    elif not is_name:
        options["conninfo"] = name_or_uri
    is_bare = options.keys() <= ({"conninfo"} if not is_name else set())
    with _mutex():
        entry = _entries.get(name_or_uri)
        if entry is None and "conninfo" not in options and "kwargs" not in options:
            raise LookupError(_unknown(name_or_uri))
        is_gone = entry is not None and entry.pool.closed and entry.pool._core.was_opened
        if entry is not None and not is_bare and not is_gone:
            _check_same(name_or_uri, entry.options, options)
        if entry is None or is_gone:
            if entry is not None and is_bare:
                options = entry.options
            entry = _entries[name_or_uri] = _Entry(_make(name_or_uri, is_name, options), dict(options))
    if entry.options.get("open") and not entry.pool._core.was_opened:
        entry.pool.open()
    return entry.pool


def forget_pool(name_or_uri: str, /) -> ConnectionPool[Any] | None:
    """Let the next `get_pool()` make a new pool. Returns the one there was, still open, or None. Doesn't suspend."""
    with _mutex():
        entry = _entries.pop(name_or_uri, None)
    return None if entry is None else entry.pool


def close_pools(timeout: float = 5.0) -> None:
    """Close and forget all pools that `get_pool()` has made. Suspends as `ConnectionPool.close()` does."""
    with _mutex():
        entries = list(_entries.values())
        _entries.clear()
    for entry in entries:
        entry.pool.close(timeout)


def _mutex() -> Any:
    if not _mutexes:
        _mutexes.append(hub().mutex())  # should two threads come at once, both take the first
    return _mutexes[0]


def _make(name: str, is_name: bool, options: dict[str, Any]) -> ConnectionPool[Any]:
    """The pool, not open: opening starts tasks, which must wait until the mutex is free."""
    named: dict[str, Any] = {"name": name} if is_name else {}
    return ConnectionPool(**(named | options | {"open": None if options.get("open") else options.get("open")}))


def _check_same(name_or_uri: str, made_with: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = [key for key in sorted(made_with.keys() | asked.keys()) if made_with.get(key) != asked.get(key)]
    if differing:
        raise ValueError(
            f"the pool {_shown(name_or_uri)} was made with other options: "
            + "; ".join(f"{key} {_option(key, made_with)}, now {_option(key, asked)}" for key in differing)
            + ". Name no options to get it as it is, or take another name"
        )


def _option(key: str, options: dict[str, Any]) -> str:
    if key not in options:
        return "not given"
    if key == "kwargs":  # there may be a password in it
        return "given"
    value = options[key]
    return repr(masked_dsn(value) if key == "conninfo" and isinstance(value, str) else value)


def _unknown(name: str) -> str:
    known = ", ".join(sorted(map(_shown, _entries))) or "none"
    return f"there is no pool {name!r} yet: the first get_pool() must say where it connects to. Known pools: {known}"


def _shown(name_or_uri: str) -> str:
    return repr(masked_dsn(name_or_uri) if "=" in name_or_uri or "://" in name_or_uri else name_or_uri)
