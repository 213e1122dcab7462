"""Floor 1: ctypes onto the very libpq that psycopg2 runs on. Nothing in here waits.

The library is found through psycopg2's extension module: dlsym on its handle looks into what it was linked with, be it
the copy in the binary wheel or a shared libpq. Another copy (`ctypes.util.find_library("pq")`) must never touch
psycopg2's connections: the layout of their memory is its own affair.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from psycopg2 import _psycopg as _c_module
from psycopg2 import extensions

from ..errors import LibpqUnavailable

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
    "PQsetErrorVerbosity": (_int, [_pointer, _int]),
    "PQisnonblocking": (_int, [_pointer]),
    "PQsetnonblocking": (_int, [_pointer, _int]),
    "PQconsumeInput": (_int, [_pointer]),
    "PQsendQuery": (_int, [_pointer, _text]),
    "PQflush": (_int, [_pointer]),
    "PQsocket": (_int, [_pointer]),
    "PQgetssl": (_pointer, [_pointer]),
    "PQisBusy": (_int, [_pointer]),
    "PQputCopyData": (_int, [_pointer, _text, _int]),
    "PQputCopyEnd": (_int, [_pointer, _text]),
    "PQgetResult": (_pointer, [_pointer]),
    "PQclear": (None, [_pointer]),
    "PQresultStatus": (_int, [_pointer]),
    "PQresultErrorMessage": (_text, [_pointer]),
    "PQresultErrorField": (_text, [_pointer, _int]),
    "PQcmdStatus": (_text, [_pointer]),
    "PQcmdTuples": (_text, [_pointer]),
    "PQgetCancel": (_pointer, [_pointer]),
    "PQcancel": (_int, [_pointer, _pointer, _int]),
    "PQfreeCancel": (None, [_pointer]),
    "PQntuples": (_int, [_pointer]),
    "PQnfields": (_int, [_pointer]),
    "PQfname": (_text, [_pointer, _int]),
    "PQftable": (ctypes.c_uint, [_pointer, _int]),
    "PQftablecol": (_int, [_pointer, _int]),
    "PQftype": (ctypes.c_uint, [_pointer, _int]),
    "PQfsize": (_int, [_pointer, _int]),
    "PQfmod": (_int, [_pointer, _int]),
    # a value in the text format has no zero bytes
    "PQgetvalue": (_text, [_pointer, _int, _int]),
    "PQgetisnull": (_int, [_pointer, _int, _int]),
    # since libpq 14
    "PQenterPipelineMode": (_int, [_pointer]),
    "PQexitPipelineMode": (_int, [_pointer]),
    "PQpipelineSync": (_int, [_pointer]),
    "PQsendFlushRequest": (_int, [_pointer]),
    "PQsendQueryParams": (_int, [_pointer, _text, _int, _pointer, _pointer, _pointer, _pointer, _int]),
    # since libpq 17
    "PQsendPipelineSync": (_int, [_pointer]),
    "PQcancelCreate": (_pointer, [_pointer]),
    "PQcancelStart": (_int, [_pointer]),
    "PQcancelPoll": (_int, [_pointer]),
    "PQcancelSocket": (_int, [_pointer]),
    "PQcancelErrorMessage": (_text, [_pointer]),
    "PQcancelReset": (None, [_pointer]),
    "PQcancelFinish": (None, [_pointer]),
    # not libpq's, but found by the same way
    "recv": (ctypes.c_ssize_t, [_int, _pointer, ctypes.c_size_t, _int]),
    "poll": (_int, [_pointer, ctypes.c_ulong, _int]),
    "SSL_peek": (_int, [_pointer, _pointer, _int]),
}

#: What PQcancelPoll (and PQconnectPoll) return.
POLLING_FAILED, POLLING_READING, POLLING_WRITING, POLLING_OK = range(4)

#: Some of what PQresultStatus returns.
EMPTY_QUERY, COMMAND_OK, TUPLES_OK, COPY_OUT, COPY_IN, FATAL_ERROR, COPY_BOTH = 0, 1, 2, 3, 4, 7, 8
PIPELINE_SYNC, PIPELINE_ABORTED = 10, 11

#: What a reader says: ask again, wait until the socket is readable, no more data, the connection is lost.
MORE, WAIT, END, LOST = range(4)

#: psycopg2's names for the fields of an error, and PQresultErrorField's codes.
DIAGNOSTICS = {
    "column_name": "c",
    "constraint_name": "n",
    "context": "W",
    "datatype_name": "d",
    "internal_position": "p",
    "internal_query": "q",
    "message_detail": "D",
    "message_hint": "H",
    "message_primary": "M",
    "schema_name": "s",
    "severity": "S",
    "severity_nonlocalized": "V",
    "source_file": "F",
    "source_function": "R",
    "source_line": "L",
    "sqlstate": "C",
    "statement_position": "P",
    "table_name": "t",
}


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


def current_host(pgconn: int | None) -> tuple[str, str, str]:
    """Host, IP address and port of the server to which the connection is, or is being, made. Empty where unknown."""
    host, address, port = (function(name)(pgconn) or b"" for name in ("PQhost", "PQhostaddr", "PQport"))
    return host.decode(), address.decode(), port.decode()


def overwrite_error_field(result: int, name: str, value: bytes) -> None:
    """Write another value over a field of an error, which must be set, and at least as long."""
    find = _handles()[0]["PQresultErrorField"]
    find.restype, find.argtypes = _pointer, [_pointer, _int]  # an address, not a copy
    ctypes.memmove(find(result, ord(DIAGNOSTICS[name])), value + b"\0", len(value) + 1)


def overwrite_error_message(pgconn: int | None, message: bytes) -> None:
    """Write another message over the connection's last one, which must be at least as long."""
    find = _handles()[0]["PQerrorMessage"]
    find.restype, find.argtypes = _pointer, [_pointer]
    address = find(pgconn)
    if len(message) <= len(ctypes.string_at(address)):
        ctypes.memmove(address, message + b"\0", len(message) + 1)


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


def libpq_handle() -> Any:
    """The library, for functions that are called without declared types, the GIL held."""
    return _handles()[0]


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


@dataclass(frozen=True)
class Result:
    """A PGresult without rows, copied out of libpq's memory."""

    status: int
    #: As "COPY 42", and the 42 of it; -1 where there is none.
    command: bytes = b""
    rows_affected: int = -1
    #: The message with its severity, and `DIAGNOSTICS`.
    message: bytes = b""
    diagnostics: dict[str, bytes] = field(default_factory=dict)


def next_result(pgconn: int | None) -> Result | None:
    """PQgetResult: None when the statement is through. Blocks unless PQisBusy has said that it won't.

    While a COPY is under way it gives, each time, a result with the status COPY_IN or COPY_OUT.
    """
    address = function("PQgetResult")(pgconn)
    return copied_out(address) if address else None


def command_of(address: int | _pointer) -> bytes:
    """What the server called the command, as b"INSERT 0 1"; frees the PGresult."""
    try:
        return function("PQcmdStatus")(address) or b""
    finally:
        function("PQclear")(address)


def copied_out(address: int | _pointer) -> Result:
    """The PGresult's status, counts and error; frees it."""
    try:
        status = function("PQresultStatus")(address)
        if status != FATAL_ERROR:
            return Result(
                status,
                command=function("PQcmdStatus")(address) or b"",
                rows_affected=int(function("PQcmdTuples")(address) or -1),
            )
        error_field = function("PQresultErrorField")
        diagnostics = {name: error_field(address, ord(code)) for name, code in DIAGNOSTICS.items()}
        return Result(
            status,
            message=function("PQresultErrorMessage")(address) or b"",
            diagnostics={name: value for name, value in diagnostics.items() if value is not None},
        )
    finally:
        function("PQclear")(address)


def copy_in_progress(pgconn: int | None) -> int | None:
    """COPY_IN, COPY_OUT or COPY_BOTH while that is under way, else None. Not for use while a result may be pending:
    it would be lost. Never blocks."""
    if function("PQisBusy")(pgconn):
        return None
    result = next_result(pgconn)
    return result.status if result is not None and result.status in (COPY_IN, COPY_OUT, COPY_BOTH) else None
