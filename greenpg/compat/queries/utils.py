"""URIs: to make and to read them."""

from __future__ import annotations

import getpass
import platform
import urllib.parse
from typing import Any

import psycopg2

from ...connection.connect.dsn import UNCLEAR

PYPY = platform.python_implementation() == "PyPy"

_TEXTS = frozenset({"dbname", "user", "password", "host"})


def get_current_user() -> str:
    """The user of the operating system."""
    try:
        import pwd
        from os import getuid

        return str(pwd.getpwuid(getuid())[0])
    except (ImportError, KeyError):
        return getpass.getuser()


def uri(
    host: str = "localhost",
    port: int | None = 5432,
    dbname: str = "postgres",
    user: str = "postgres",
    password: str | None = None,
) -> str:
    """The connection URI for these values. A host that begins with a slash is the directory of a Unix socket.

    Doesn't suspend.
    """
    login = _quote(user) + (f":{_quote(password)}" if password else "")
    return f"postgresql://{login}@{_quote(host)}{f':{port}' if port else ''}/{_quote(dbname)}"


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def urlparse(url: str) -> urllib.parse.ParseResult:
    """The parts of a URI, as they are written there."""
    return urllib.parse.urlparse(url)


def uri_to_kwargs(uri: str) -> dict[str, Any]:
    """Keywords for `psycopg2.connect`; user and database default to the user of the operating system."""
    if "://" not in uri:
        raise psycopg2.ProgrammingError("a session needs a connection URI, like postgresql://user@host:5432/dbname")
    unquote = urllib.parse.unquote
    try:
        parsed = urlparse(uri)
        port = parsed.port
    except ValueError:  # which quotes what may be a part of the password
        parsed, port = None, None
    if parsed is None:
        raise psycopg2.ProgrammingError(UNCLEAR)
    kwargs: dict[str, Any] = {
        "host": unquote(parsed.hostname or ""),
        "port": port,
        "dbname": unquote(parsed.path[1:]) or get_current_user(),
        "user": unquote(parsed.username or "") or get_current_user(),
        "password": unquote(parsed.password or "") or None,
    }
    for name, values in urllib.parse.parse_qs(parsed.query).items():
        typed = [int(value) if value.isdigit() and name not in _TEXTS else value for value in values]
        kwargs[name] = typed[0] if len(typed) == 1 else typed
    return kwargs
