"""Has Django's PostgreSQL backend take psycopg2, where psycopg 3, which it prefers, is installed as well."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured

_BACKEND = "django.db.backends.postgresql.base"
_CHOICE = "django.db.backends.postgresql.psycopg_any"
_NOT_THERE: Any = object()


def choose_psycopg2() -> None:
    """Load Django's backend with psycopg 3 out of sight. ImproperlyConfigured if it has been loaded with psycopg 3."""
    if _CHOICE not in sys.modules:
        psycopg3 = sys.modules.get("psycopg", _NOT_THERE)
        sys.modules["psycopg"] = None  # type: ignore[assignment]  # the import system's way to say that there is none
        try:
            importlib.import_module(_CHOICE)
            importlib.import_module(_BACKEND)
        finally:
            if psycopg3 is _NOT_THERE:
                del sys.modules["psycopg"]
            else:
                sys.modules["psycopg"] = psycopg3
    if sys.modules[_CHOICE].is_psycopg3:
        raise ImproperlyConfigured(
            "psycopg 3 is installed beside psycopg2, and Django has taken it, before it came to the engine "
            "greenpg.integrations.django: something imports Django's PostgreSQL backend earlier, as "
            "django.contrib.postgres does. Name 'greenpg.integrations.django' first in INSTALLED_APPS, or uninstall "
            "psycopg"
        )
