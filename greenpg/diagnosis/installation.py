"""What is installed: two psycopg2s, a libpq with a fault, a psycopg2 in which BEGIN can't ride."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import psycopg2 as _psycopg2
from psycopg2 import extensions

import greenpg

from ..driver import driver_status
from .findings import ADVICE, ERROR, WARNING, Finding

psycopg2: Any = _psycopg2

#: The first releases of libpq that read on when TLS has more of an answer than the socket.
_TLS_MENDED = {17: 170010, 18: 180004}


def check_installation(facts: dict[str, Any]) -> Iterator[Finding]:
    """Which packages and libraries there are. Doesn't suspend."""
    libpq = extensions.libpq_version()
    facts["greenpg"] = greenpg.__version__
    facts["python"] = platform.python_version()
    facts["psycopg2"] = str(psycopg2.__version__)
    facts["libpq"] = _version_text(libpq)
    yield from _check_packages()
    yield from check_libpq(libpq)
    facts["begin_rides"] = driver_status.reason is None
    if driver_status.reason is not None:
        yield Finding(
            "begin_separate",
            ADVICE,
            f"psycopg2 begins each transaction in a round trip of its own: {driver_status.reason}",
            "A transaction of one statement takes 3 round trips instead of 2.",
            "Unset GREENPG_BEGIN if it is set, else use a CPython and a psycopg2 that greenpg knows.",
        )


def _check_packages() -> Iterator[Finding]:
    installed = {}
    for name in ("psycopg2", "psycopg2-binary"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(installed) == 2:
        yield Finding(
            "two_psycopg2",
            WARNING,
            "psycopg2 and psycopg2-binary are both installed: "
            + ", ".join(f"{name} {version}" for name, version in installed.items()),
            "Both write the same files: which one runs depends on the order in which they were installed, and removing "
            "one breaks the other.",
            "pip uninstall psycopg2 psycopg2-binary, then install one of them (greenpg asks for psycopg2-binary).",
        )


def check_libpq(version: int) -> Iterator[Finding]:
    """`version` as libpq numbers itself: 170004 is 17.4."""
    if version < _TLS_MENDED.get(version // 10000, 0 if version >= 190000 else 170010):
        yield Finding(
            "libpq_tls",
            ERROR,
            f"psycopg2 runs on libpq {_version_text(version)}, which loses the rests of TLS records",
            "When TLS has read more of an answer than libpq asked for, a green wait for the rest never ends. "
            "CockroachDB, YugabyteDB and proxies that end TLS send records that long.",
            "pip install 'psycopg2-binary>=2.9.13', or build psycopg2 with libpq 17.10, 18.4 or later.",
        )


def _version_text(version: int) -> str:
    return f"{version // 10000}.{version % 10000}"
