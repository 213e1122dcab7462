"""The pools behind the engine: one for each alias and set of parameters, made at the first query of a process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ...hubs import hub
from ...pool.pool import ConnectionPool
from .clusters import close_whole

#: What `OPTIONS["pool"]` stands for where it says nothing else. Django expects to be told at once if it can't connect.
DEFAULTS: Mapping[str, Any] = {"min_size": 0, "max_size": 10, "fail_fast": True}

#: The engine's own business.
_NOT_OPTIONS = {"self", "conninfo", "kwargs", "open", "close_returns"}
#: And beside the pool's own: how long a connection is borrowed for, see `leases_by_transaction()`.
_LEASE = "lease"
_KNOWN = sorted(set(inspect.signature(ConnectionPool).parameters) - _NOT_OPTIONS | {_LEASE})

Key = tuple[str, str]

_pools: dict[Key, ConnectionPool] = {}
_last_keys: dict[str, tuple[tuple[dict[str, Any], dict[str, Any], tuple[Any, ...]], Key]] = {}


def pool_options(settings_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """`ConnectionPool`'s parameters, as the settings of a database say. None: without a pool.

    ImproperlyConfigured, saying what to write instead, for what makes no sense.
    """
    asked = settings_dict["OPTIONS"].get("pool", True)
    if asked is False or asked is None:
        return None
    if asked is not True and not isinstance(asked, Mapping):
        raise ImproperlyConfigured(
            f'OPTIONS["pool"] must be a dict of the pool\'s parameters, True for its defaults, or False, not {asked!r}'
        )
    options = {} if asked is True else dict(asked)
    if unknown := sorted(options.keys() - set(_KNOWN)):
        raise ImproperlyConfigured(
            f'OPTIONS["pool"] has {", ".join(map(repr, unknown))}, which a pool doesn\'t know. '
            f"It knows {', '.join(_KNOWN)}"
        )
    if options.get(_LEASE, "request") not in ("request", "transaction"):
        raise ImproperlyConfigured(
            f'"lease" of OPTIONS["pool"] must be "request", or "transaction": then a connection goes back after each '
            f"transaction, and without one after each query. It is {options[_LEASE]!r}"
        )
    options.pop(_LEASE, None)
    if settings_dict.get("CONN_MAX_AGE", 0) != 0:
        raise ImproperlyConfigured(
            "Pooling doesn't support persistent connections: it's the pool that keeps them. Set CONN_MAX_AGE to 0; how "
            'long the pool keeps one is said by "max_idle" and "max_lifetime" of OPTIONS["pool"], in seconds'
        )
    if "max_size" not in options:
        options["max_size"] = max(DEFAULTS["max_size"], options.get("min_size") or 0)
    return {**DEFAULTS, **options}


def key_of(alias: str, parameters: dict[str, Any], options: dict[str, Any], own: tuple[Any, ...]) -> Key:
    """What a pool is known by. Doesn't suspend.

    Each request asks, and a text is dear: the last one of each alias is remembered.
    """
    last = _last_keys.get(alias)
    if last is not None and last[0] == (parameters, options, own):
        return last[1]
    key = (alias, repr((sorted(parameters.items()), sorted(options.items()), own)))
    _last_keys[alias] = (dict(parameters), dict(options), own), key
    return key


def leases_by_transaction(settings_dict: Mapping[str, Any]) -> bool:
    """Whether a task has a connection for as long as a transaction, or else a query, lasts; not until its end."""
    options = settings_dict["OPTIONS"].get("pool")
    return isinstance(options, Mapping) and options.get(_LEASE) == "transaction"


def find_pool(key: Key, make: Callable[[], ConnectionPool]) -> ConnectionPool:
    """The pool of that key, made if there is none. Doesn't suspend."""
    pool = _pools.get(key)
    if pool is None:
        for other, unused in list(_pools.items()):
            if other[0] == key[0] and _is_unused(unused):
                # The alias leads elsewhere now: a test database, a new password.
                _pools.pop(other, None)
                hub().spawn(close_whole, unused)
        pool = _pools.setdefault(key, make())
    return pool


def is_known(pool: ConnectionPool) -> bool:
    """Whether it's still one of those that are lent from."""
    return pool in _pools.values()


def close_pools(wanted: Callable[[Key, ConnectionPool], bool]) -> None:
    """Close and forget them; the next query makes new ones. Suspends for what is just being connected."""
    for key, pool in list(_pools.items()):
        if wanted(key, pool):
            _pools.pop(key, None)
            close_whole(pool)


def _is_unused(pool: ConnectionPool) -> bool:
    stats = pool.get_stats()
    return stats["pool_size"] == stats["pool_available"] and not stats["requests_waiting"]
