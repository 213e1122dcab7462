"""Floor 1: ctypes onto the very libpq that psycopg2 runs on. Nothing in here waits.

The library is found through psycopg2's extension module: dlsym on its handle looks into what it was linked with, be it
the copy in the binary wheel or a shared libpq. Another copy (`ctypes.util.find_library("pq")`) must never touch
psycopg2's connections: the layout of their memory is its own affair.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from psycopg2 import _psycopg as _c_module
from psycopg2 import extensions

from .errors import LibpqUnavailable

_psycopg: Any = _c_module  # the type stubs don't know all of it

_pointer = ctypes.c_void_p
_int = ctypes.c_int
_text = ctypes.c_char_p

#: name -> result and argument types. A PGconn*, PGresult*, PGcancel* and PGcancelConn* is an address.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "PQlibVersion": (_int, []),
    "PQfinish": (None, [_pointer]),
    "PQconnectStart": (_pointer, [_text]),
    "PQconninfo": (_pointer, [_pointer]),
    "PQconninfoFree": (None, [_pointer]),
    "PQhost": (_text, [_pointer]),
    "PQhostaddr": (_text, [_pointer]),
    "PQport": (_text, [_pointer]),
    "PQgetCancel": (_pointer, [_pointer]),
    "PQcancel": (_int, [_pointer, _pointer, _int]),
    "PQfreeCancel": (None, [_pointer]),
    # since libpq 17
    "PQcancelCreate": (_pointer, [_pointer]),
    "PQcancelStart": (_int, [_pointer]),
    "PQcancelPoll": (_int, [_pointer]),
    "PQcancelSocket": (_int, [_pointer]),
    "PQcancelErrorMessage": (_text, [_pointer]),
    "PQcancelFinish": (None, [_pointer]),
}

#: What PQcancelPoll (and PQconnectPoll) return.
POLLING_FAILED, POLLING_READING, POLLING_WRITING, POLLING_OK = range(4)


@cache
def version() -> int:
    """The version of the library in use, as 170004 for 17.4. Raises `errors.LibpqUnavailable` if it can't be found."""
    return int(function("PQlibVersion")())


@cache
def function(name: str) -> Callable[..., Any]:
    """A function that never blocks, called with the GIL held.

    Raises `errors.LibpqUnavailable` when the library has no such function, or is not the one psycopg2 was built for.
    """
    return _bound(_handles()[0], name)


@cache
def blocking_function(name: str) -> Callable[..., Any]:
    """A function that may block: other native threads run meanwhile. Raises as `function()` does."""
    return _bound(_handles()[1], name)


def has_function(name: str) -> bool:
    """Whether the library has it: older ones have less."""
    try:
        function(name)
    except LibpqUnavailable:
        return False
    return True


class _ConninfoOption(ctypes.Structure):
    _fields_ = (
        ("keyword", _text),
        ("envvar", _text),
        ("compiled", _text),
        ("val", _text),
        ("label", _text),
        ("dispchar", _text),
        ("dispsize", _int),
    )


def connection_options(dsn: str) -> dict[str, str]:
    """All options that a connection with this DSN would have, those from the environment and the service file included.

    libpq offers no way to ask for them without connecting, but it settles them before it finds a value to be
    nonsense. Reads the service file; doesn't connect.
    """
    nonsense = extensions.make_dsn(dsn, ssl_min_protocol_version="nonsense")
    conn = function("PQconnectStart")(nonsense.encode())
    try:
        first = function("PQconninfo")(conn)
        options = {}
        try:
            address = first
            while address:
                option = _ConninfoOption.from_address(address)
                if option.keyword is None:
                    break
                if option.val is not None:
                    options[option.keyword.decode()] = option.val.decode()
                address += ctypes.sizeof(_ConninfoOption)
        finally:
            function("PQconninfoFree")(first)
        options.pop("ssl_min_protocol_version", None)
        return options
    finally:
        function("PQfinish")(conn)


def current_host(pgconn: int) -> tuple[str, str, str]:
    """Host, IP address and port of the server to which the connection is, or is being, made. Empty where unknown."""
    host, address, port = (function(name)(pgconn) or b"" for name in ("PQhost", "PQhostaddr", "PQport"))
    return host.decode(), address.decode(), port.decode()


def text_buffer(size: int) -> Any:
    """Memory for a message that a function writes; `.value` is the message, as bytes."""
    return ctypes.create_string_buffer(size)


def _bound(handle: Any, name: str) -> Callable[..., Any]:
    result_type, argument_types = _SIGNATURES[name]
    try:
        bound = handle[name]  # a new object for each handle[name], unlike handle.name
    except AttributeError:
        raise LibpqUnavailable(
            f"the libpq that psycopg2 {_psycopg.__version__} runs on has no {name}(): install psycopg2-binary, or "
            "build psycopg2 against a newer shared libpq"
        ) from None
    bound.restype = result_type
    bound.argtypes = argument_types
    return bound  # type: ignore[no-any-return]


@cache
def _handles() -> tuple[Any, Any]:
    try:
        path = _psycopg.__file__
        handles = ctypes.PyDLL(path), ctypes.CDLL(path)
        found = int(_bound(handles[0], "PQlibVersion")())
    except (OSError, AttributeError) as error:
        raise LibpqUnavailable(f"can't find the libpq that psycopg2 runs on: {error}") from error
    expected = extensions.libpq_version()
    if found != expected:
        raise LibpqUnavailable(
            f"psycopg2 runs on libpq {expected}, but the one found through {path} is {found}: refusing to mix them"
        )
    return handles
