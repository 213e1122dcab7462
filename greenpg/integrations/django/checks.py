"""What `manage.py check --database default`, and `migrate`, say of the engine."""

from __future__ import annotations

from typing import Any

from django.core.checks import Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.validation import BaseDatabaseValidation

from ...connection.patching import is_patched
from ...hubs import hub, monkey_patched_hub
from .pools import pool_options


class DatabaseValidation(BaseDatabaseValidation):
    """Django's, and greenpg's."""

    def check(self, **kwargs: Any) -> list[Any]:
        """The findings. Suspends: it connects."""
        found = [*super().check(**kwargs)]
        try:
            options = pool_options(self.connection.settings_dict)
            self.connection.get_connection_params()
        except ImproperlyConfigured as error:
            return [*found, Error(str(error), obj=self.connection.alias, id="greenpg.E001")]
        if options is not None:
            found += _check_size(self.connection, options["max_size"])
        return [*found, *_check_program(self.connection.alias)]


def _check_program(alias: str) -> list[Any]:
    found = monkey_patched_hub()
    if found is None or (is_patched() and hub().name == found.name):
        return []
    return [
        Warning(
            f"The program is monkey-patched for {found.name}, psycopg2 isn't: each query stops all tasks.",
            hint='Call greenpg.patch() at startup, without "threads", or let the engine have a pool, which does so.',
            obj=alias,
            id="greenpg.W001",
        )
    ]


def _check_size(wrapper: Any, max_size: int) -> list[Any]:
    with wrapper.temporary_connection() as cursor:
        cursor.execute(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        (most,) = cursor.fetchone()
    if max_size <= most:
        return []
    return [
        Warning(
            f"The pool may open {max_size} connections in each process, the server takes {most} in all.",
            hint="Lower OPTIONS['pool']['max_size']: the sum over all processes has to be less than max_connections.",
            obj=wrapper.alias,
            id="greenpg.W002",
        )
    ]
