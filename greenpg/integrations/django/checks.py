"""What `manage.py check --database default`, and `migrate`, say of the engine."""

from __future__ import annotations

from typing import Any

from django.core.checks import Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.validation import BaseDatabaseValidation

from ...connection.patching import is_patched
from ...errors import PatchError
from ...hubs import monkey_patched_hub
from .green import ensure_green
from .pools import pool_options


class DatabaseValidation(BaseDatabaseValidation):
    """Django's, and greenpg's."""

    def check(self, **kwargs: Any) -> list[Any]:
        """The findings. Suspends: it connects."""
        found = [*super().check(**kwargs), *_check_program(self.connection.alias)]
        try:
            options = pool_options(self.connection.settings_dict)
            self.connection.get_connection_params()
        except ImproperlyConfigured as error:
            return [*found, Error(str(error), obj=self.connection.alias, id="greenpg.E001")]
        if options is not None:
            found += _check_size(self.connection, options["max_size"])
        elif monkey_patched_hub() is not None and not is_patched():
            found.append(
                Warning(
                    "The program is monkey-patched, but psycopg2 isn't: each query would stop all tasks.",
                    hint="Call greenpg.patch() at startup, or let the engine have a pool, which does so.",
                    obj=self.connection.alias,
                    id="greenpg.W001",
                )
            )
        return found


def _check_program(alias: str) -> list[Any]:
    try:
        ensure_green()
    except PatchError as error:
        return [Error(str(error), obj=alias, id="greenpg.E002")]
    return []


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
