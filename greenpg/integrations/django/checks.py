"""What `manage.py check --database default`, and `migrate`, say of the engine."""

from __future__ import annotations

from typing import Any

from django.core.checks import Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.validation import BaseDatabaseValidation
from psycopg2.extensions import make_dsn

from ...diagnosis.doctor import doctor
from ...diagnosis.findings import ADVICE, ERROR
from .pools import pool_options

#: What Django gives to psycopg2 that isn't libpq's.
_NOT_LIBPQS = ("cursor_factory", "connection_factory")


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
        if self.connection.primary_alias is not None:
            return found  # the primary's check has asked
        return [*found, *_ask_the_doctor(self.connection, has_pool=options is not None)]


def _ask_the_doctor(wrapper: Any, has_pool: bool) -> list[Any]:
    """Errors and warnings of `greenpg.doctor()`, as Django's: of the program, and of the server of this alias."""
    pools = [wrapper.pool] if has_pool else []
    report = doctor(None if has_pool else make_dsn(**_libpq_parameters(wrapper)), pools=pools, seconds=0)
    return [
        (Error if finding.level == ERROR else Warning)(
            f"{finding.what}: {finding.why}", hint=finding.remedy, obj=wrapper.alias, id=f"greenpg.{finding.code}"
        )
        for finding in report.findings
        if finding.level != ADVICE
    ]


def _libpq_parameters(wrapper: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = wrapper.get_connection_params()
    return {name: value for name, value in parameters.items() if name not in _NOT_LIBPQS and value is not None}
