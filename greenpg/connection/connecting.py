"""Making connections."""

from __future__ import annotations

import re
from typing import Any

import psycopg2
from psycopg2 import extensions
from psycopg2._psycopg import _connect as _c_connect

from .composing import compose
from .connection import Connection

_psycopg2_connect: Any = _c_connect  # psycopg2's own, whatever patch() puts in its place


def connect(dsn: str | None = None, connection_factory: Any = None, cursor_factory: Any = None, **kwargs: Any) -> Any:
    """A new connection, with `psycopg2.connect`'s parameters and errors. Suspends the caller.

    It is a `greenpg.Connection`, and of the class `connection_factory` as well where one is named. Other tasks run
    while it connects if `greenpg.patch()` was called before; otherwise it blocks as psycopg2 does.
    """
    asynchronous = {key: kwargs.pop(key) for key in ("async", "async_") if key in kwargs}
    conn = raw_connect(checked_dsn(dsn, **kwargs), connection_factory, **asynchronous)
    if cursor_factory is not None:
        conn.cursor_factory = cursor_factory
    return conn


def raw_connect(dsn: str, connection_factory: Any = None, **asynchronous: Any) -> Any:
    """What stands in for `psycopg2._connect` while patched."""
    factory = Connection if connection_factory is None else compose(connection_factory, Connection)
    return _psycopg2_connect(dsn, connection_factory=factory, **asynchronous)


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
