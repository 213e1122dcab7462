"""Connection strings: checked, and without their secrets.

libpq reads some otherwise than people do: in "postgresql://app:pa/ss@db/app" it finds the host "app". Whatever may be a
part of a secret for that reason is neither connected to nor shown.
"""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2 import extensions

#: Parameters that are not shown.
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")

#: What libpq finds wrong, in its words; what else it says quotes the connection string.
_FAULTS = (
    'missing "=" after a keyword',
    "invalid connection option",
    "unterminated quoted string",
    "invalid percent-encoded token",
    "forbidden value %00",
    "end of string reached when looking for matching",
    "IPv6 host address may not be empty",
    "unexpected character",
    "extra key/value separator",
    "missing key/value separator",
    "invalid URI query parameter",
)

UNCLEAR = (
    "the connection string isn't clear: what libpq finds for the host or the port can't be one. In a URI, write the "
    'special characters of a user\'s name or password percent-encoded ("@" as %40, "/" as %2F, ":" as %3A, "?" as %3F)'
)


def checked_dsn(dsn: str | None, **kwargs: Any) -> str:
    """The DSN that psycopg2 would use. Raises ProgrammingError if it is malformed, or its host or port can't be one;
    nothing of it is in the text."""
    try:
        made = str(extensions.make_dsn(dsn, **kwargs))
        parameters = extensions.parse_dsn(made)
    except psycopg2.ProgrammingError as error:
        fault = _fault_of(str(error), kwargs)
    else:
        if leads_somewhere(parameters):
            return made
        raise psycopg2.ProgrammingError(UNCLEAR)
    raise psycopg2.ProgrammingError(
        f"invalid dsn: {fault} (a connection string is a URI, postgresql://user@host/dbname, or keywords, "
        "'host=... dbname=...', whose values with spaces are quoted, password='two words')"
    )


def leads_somewhere(parameters: dict[str, str]) -> bool:
    """Whether host and port can be such; otherwise they are parts of a password."""
    hosts = parameters.get("host", "").split(",")
    ports = parameters.get("port", "").split(",")
    return not any("@" in host[1:] and host[0] != "/" for host in hosts) and all(
        not port or port.isdigit() for port in ports
    )


def masked_dsn(dsn: str) -> str:
    """The DSN with its secrets masked, for messages."""
    try:
        parameters = extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return "<malformed connection string>"
    if not leads_somewhere(parameters) or "@" in parameters.get("dbname", ""):
        return "<connection string that isn't clear>"
    for secret in SECRETS:
        if secret in parameters:
            parameters[secret] = "***"
    return str(extensions.make_dsn(**parameters))


def _fault_of(text: str, kwargs: dict[str, Any]) -> str:
    for name in kwargs:
        if f'"{name}"' in text:
            return f'invalid connection option "{name}"'
    if 'missing "=" after' in text:
        return _FAULTS[0]
    return next((fault for fault in _FAULTS if fault in text), "it can't be parsed")
