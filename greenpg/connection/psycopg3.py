"""Says so when Django is about to take psycopg 3 in a program that has patched psycopg2.

Django prefers psycopg 3 where both are installed, and nothing of greenpg's would reach it. It chooses when its
PostgreSQL backend is imported, which may be long after `patch()`: so that import is watched for.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings

_CHOICE = "django.db.backends.postgresql.psycopg_any"


class _Watch:
    """A finder of the import system that finds nothing, and leaves when it has seen the one import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == _CHOICE:
            stop_watching()
            # greenpg's engine for Django hides psycopg 3 for that moment, by a None there.
            if sys.modules.get("psycopg", ...) is not None and importlib.util.find_spec("psycopg") is not None:
                _warn()


_watch = _Watch()


def watch_for_django() -> None:
    """Warn (RuntimeWarning) now or when Django's backend is imported, if it takes psycopg 3. Doesn't suspend."""
    if _CHOICE not in sys.modules:
        sys.meta_path.insert(0, _watch)
    elif getattr(sys.modules[_CHOICE], "is_psycopg3", False):
        _warn()


def stop_watching() -> None:
    """`unpatch()`. Again is harmless."""
    if _watch in sys.meta_path:
        sys.meta_path.remove(_watch)


def _warn() -> None:
    warnings.warn(
        "psycopg 3 is installed beside psycopg2, and Django takes it: greenpg.patch() has no effect on Django's "
        'connections. Use the engine "greenpg.integrations.django", which takes psycopg2, or uninstall psycopg',
        RuntimeWarning,
        stacklevel=3,
    )
