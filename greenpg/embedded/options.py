"""Values on their way to PostgreSQL: settings for the server, connection strings for libpq."""

from __future__ import annotations

import re
from collections.abc import Mapping

Setting = bool | int | float | str

_OWN_SETTINGS = {"port", "listen_addresses", "unix_socket_directories", "hba_file", "data_directory", "config_file"}


def as_options(settings: Mapping[str, Setting]) -> list[str]:
    """`name=value` for each setting. They become arguments of the server: there is no shell or file to quote for."""
    return [f"{_checked_name(name)}={_as_text(name, value)}" for name, value in settings.items()]


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)*", name):
        raise ValueError(f"{name!r} is not the name of a setting")
    if name.lower() in _OWN_SETTINGS:
        raise ValueError(f"the setting {name!r} is the embedded server's own: see the parameters of Server")
    return name


def _as_text(name: str, value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, int | float | str):
        raise TypeError(f"the value of the setting {name!r} is neither bool, int, float nor str: {value!r}")
    if "\0" in str(value):
        raise ValueError(f"the value of the setting {name!r} has a NUL in it")
    return str(value)


def quoted(value: str) -> str:
    """A value as libpq reads it in a connection string."""
    if re.fullmatch(r"[\w./-]+", value, re.ASCII):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
