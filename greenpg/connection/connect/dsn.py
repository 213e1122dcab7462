"""Connection strings: checked, and without their secrets."""

from __future__ import annotations

import re
from typing import Any

import psycopg2
from psycopg2 import extensions


def checked_dsn(dsn: str | None, **kwargs: Any) -> str:
    """The DSN that psycopg2 would use. Raises ProgrammingError if it is malformed, without its password in the text."""
    try:
        return str(extensions.make_dsn(dsn, **kwargs))
    except psycopg2.ProgrammingError as error:
        text = _without_secrets(str(error).strip(), dsn, kwargs)
    raise psycopg2.ProgrammingError(
        f"{text} (a connection string is a URI, postgresql://user@host/dbname, or keywords, 'host=... dbname=...')"
    )


def masked_dsn(dsn: str) -> str:
    """The DSN with its password masked, for messages."""
    try:
        parameters = extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return "<malformed connection string>"
    for secret in ("password", "sslpassword"):
        if secret in parameters:
            parameters[secret] = "***"
    return str(extensions.make_dsn(**parameters))


def _without_secrets(text: str, dsn: str | None, kwargs: dict[str, Any]) -> str:
    # libpq quotes parts of a malformed URI, the password among them.
    if dsn:
        text = text.replace(dsn, "<the connection string>")
        for secret in re.findall(r"//[^/@]*?:([^@/]+)@|password\s*=\s*('[^']*'|\S+)", dsn):
            for part in filter(None, secret):
                text = text.replace(part, "***")
    if kwargs.get("password"):
        text = text.replace(str(kwargs["password"]), "***")
    return text
