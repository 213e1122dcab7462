"""What greenpg is compared with. Each pool has a module here, with the class `Pool(dsn, size)`; see base.py.

    with open_pool("psycopg_pool", dsn, 10) as pool:
        return pool.measure("one_statement", tasks=100, loops=100)

The others are drivers, or ways to use one, of which one connection is measured: `open_connection("psycopg3", dsn)`.

Nothing of a peer is imported before its own process asks for it: what it imports must find a monkey-patched program.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    label: str
    """The name in tables and pictures."""
    module: str | None
    """None: it's no pool."""
    needs: tuple[str, ...]
    """The modules that have to be installed; their versions are reported."""
    color: str
    is_green: bool = True
    """Is its program monkey-patched by gevent?"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For its class."""


PEERS = {
    "greenpg": Peer("greenpg", "greenpg_pool", ("greenpg", "psycopg2", "gevent"), "#12924c"),
    "greenpg-multiplex": Peer(
        "greenpg, multiplex=2",
        "greenpg_pool",
        ("greenpg", "psycopg2", "gevent"),
        "#0b5c30",
        options={"multiplex": 2},
    ),
    "psycogreen": Peer(
        "psycogreen + semaphore and list (unfair)", "semaphore_pool", ("psycogreen", "psycopg2", "gevent"), "#e0982f"
    ),
    "greenpg-as-psycogreen": Peer(
        "the same program, with greenpg's patch_psycopg()",
        "semaphore_pool",
        ("greenpg", "psycopg2", "gevent"),
        "#5aa469",
        options={"patched_by": "greenpg.compat.psycogreen"},
    ),
    "psycopg_pool": Peer("psycopg_pool, gevent", "psycopg3_pool", ("psycopg_pool", "psycopg", "gevent"), "#3f78b5"),
    "sqlalchemy": Peer(
        "SQLAlchemy QueuePool, psycogreen",
        "sqlalchemy_pool",
        ("sqlalchemy", "psycogreen", "psycopg2", "gevent"),
        "#c0504d",
    ),
    "django-db-geventpool": Peer(
        "django-db-geventpool",
        "django_geventpool",
        ("django_db_geventpool", "django", "psycogreen", "psycopg2", "gevent"),
        "#7f6bb0",
    ),
    "asyncpg": Peer("asyncpg, asyncio", "asyncpg_pool", ("asyncpg",), "#8cc0d9", is_green=False),
    "asyncpg-uvloop": Peer(
        "asyncpg, uvloop", "asyncpg_pool", ("asyncpg", "uvloop"), "#2f9fb3", is_green=False, options={"is_uvloop": True}
    ),
    "asyncpg-uvloop-no-reset": Peer(
        "asyncpg, uvloop, without reset",
        "asyncpg_pool",
        ("asyncpg", "uvloop"),
        "#b06a9a",
        is_green=False,
        options={"is_uvloop": True, "resets": False},
    ),
    "psycopg2-threads": Peer(
        "psycopg2 in native threads", "psycopg2_threads", ("psycopg2",), "#8a8a8a", is_green=False
    ),
    "psycopg2-bare": Peer(
        "psycopg2 alone: one connection, no pool", "bare_psycopg2", ("psycopg2",), "#bdbdbd", is_green=False
    ),
    "psycopg2": Peer("psycopg2, blocking", None, ("psycopg2", "gevent"), "#bdbdbd"),
    "psycopg2-psycogreen": Peer("psycopg2, psycogreen", None, ("psycogreen", "psycopg2", "gevent"), "#e0982f"),
    "django-psycogreen": Peer(
        "Django's own engine, psycogreen, no pool", None, ("django", "psycogreen", "psycopg2", "gevent"), "#e0982f"
    ),
    "psycopg2-batch": Peer("execute_batch, psycogreen", None, ("psycogreen", "psycopg2", "gevent"), "#a6761d"),
    "psycopg2-values": Peer("execute_values, psycogreen", None, ("psycogreen", "psycopg2", "gevent"), "#6d5a4f"),
    "psycopg3": Peer("psycopg 3, gevent", None, ("psycopg", "gevent"), "#3f78b5"),
    "sqlalchemy-pre-ping": Peer(
        "SQLAlchemy QueuePool, pre-ping",
        "sqlalchemy_pool",
        ("sqlalchemy", "psycogreen", "psycopg2", "gevent"),
        "#c0504d",
        options={"pre_ping": True},
    ),
    "sqlalchemy-psycopg3": Peer(
        "SQLAlchemy QueuePool, psycopg 3", "sqlalchemy_sessions", ("sqlalchemy", "psycopg", "gevent"), "#3f78b5"
    ),
    "psycopg2-connections": Peer("psycopg2 alone, no pool", None, ("psycopg2",), "#bdbdbd", is_green=False),
    "psycogreen-queues": Peer("psycogreen, queues", None, ("psycogreen", "psycopg2", "gevent"), "#e0982f"),
    "psycopg-queues": Peer("psycopg 3 under gevent, queues", None, ("psycopg", "gevent"), "#3f78b5"),
    "asyncpg-queues": Peer("asyncpg, uvloop, queues", None, ("asyncpg", "uvloop"), "#2f9fb3", is_green=False),
}

_DISTRIBUTIONS = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]"}


def missing(name: str) -> str | None:
    """What to do before this peer can be measured; None: nothing. A peer that isn't listed here needs nothing."""
    absent = [module for module in _needs(name) if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    packages = " ".join(repr(_DISTRIBUTIONS.get(module, module.replace("_", "-"))) for module in absent)
    return f"not installed: pip install {packages}"


def _needs(name: str) -> tuple[str, ...]:
    return PEERS[name].needs if name in PEERS else ()


def needs(names: list[str]) -> list[str]:
    """The modules that these peers need."""
    return [module for name in names for module in _needs(name)]


def label(name: str) -> str:
    return PEERS[name].label if name in PEERS else name


def color(name: str) -> str:
    return PEERS[name].color if name in PEERS else "#555555"


def open_pool(name: str, dsn: str, size: int) -> closing:
    """The peer with `size` open connections; for a `with` block, in a process of its own."""
    peer = PEERS[name]
    if peer.is_green:
        from gevent import monkey

        monkey.patch_all()
    module = importlib.import_module(f"{__name__}.{peer.module}")
    return closing(module.Pool(dsn, size, **peer.options))


def open_connection(name: str, dsn: str) -> closing:
    """One connection of a green peer, without a pool; for a `with` block, in a process of its own."""
    from gevent import monkey

    monkey.patch_all()
    drivers = PEERS[name].needs
    if "psycopg" in drivers:
        import psycopg

        return closing(psycopg.connect(dsn))
    import psycopg2

    if "greenpg" in drivers:
        import greenpg

        greenpg.patch()
    elif "psycogreen" in drivers:
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
    return closing(psycopg2.connect(dsn))
