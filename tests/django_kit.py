"""Django in the process of the tests: the settings of django_site, and databases of a test's own."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

pytest.importorskip("django")


def set_up(dsn):
    """Django with django_site's settings, its tables made. Again is harmless."""
    from django.apps import apps

    if apps.ready:
        return
    os.environ["DJANGO_SETTINGS_MODULE"] = "django_site.settings"
    os.environ["DJANGO_SITE_DSN"] = dsn
    import django
    from django.core.management import call_command
    from django.db import connection

    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    connection.close()


class Databases:
    """Aliases of Django's that lead to the server of the tests, each with pools of its own."""

    def __init__(self):
        self._aliases = []

    def make(self, alias="other", *, pool=None, options=None, **settings):
        """The alias, with these OPTIONS["pool"] (default: 3 connections, 5 s), other OPTIONS, and further settings."""
        from django.db import connections

        default = connections.settings["default"]
        pool = (
            {"max_size": 3, "timeout": 5, **pool}
            if isinstance(pool, dict)
            else {"max_size": 3}
            if pool is None
            else pool
        )
        connections.settings[alias] = {
            **default,
            "OPTIONS": {"application_name": f"django-{alias}", "pool": pool, **(options or {})},
            **settings,
        }
        self._aliases.append(alias)
        return alias

    def close(self):
        from django.db import connections

        from greenpg.integrations.django.pools import close_pools

        for alias in self._aliases:
            with contextlib.suppress(Exception):
                connections[alias].close()
            close_pools(lambda key, _, alias=alias: key[0] == alias)
            with contextlib.suppress(AttributeError):
                del connections[alias]
            connections.settings.pop(alias, None)


def execute(alias, sql, *args):
    """The first value."""
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(sql, args)
        return cursor.fetchone()[0]


def states(admin, alias):
    """Of the alias's connections, as the server sees them."""
    with admin.cursor() as cursor:
        cursor.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", (f"django-{alias}",))
        return [state for (state,) in cursor.fetchall()]


TESTS = os.path.dirname(os.path.abspath(__file__))
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
