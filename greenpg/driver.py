"""Floor 1: the places in psycopg2's own C structures that no Python attribute reaches. Nothing in here waits.

`connection.status` and `cursor.rowcount`, read only in Python, are C numbers; their member descriptors tell where. The
PGresult of an exception follows the three attributes of `psycopg2.Error` that have descriptors. Nothing is touched
where a psycopg2 or a Python lays them out in another way: `DriverStatus.reason` says what was found then.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import sysconfig
from typing import Any, Protocol

import psycopg2
from psycopg2 import extensions

from . import libpq

logger = logging.getLogger("greenpg.connection")

#: Set to "separate" in the environment, psycopg2 begins transactions by itself, in a round trip of its own.
BEGIN_VARIABLE = "GREENPG_BEGIN"

_connection: Any = extensions.connection
_READY, _BEGIN = extensions.STATUS_READY, extensions.STATUS_BEGIN
_POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
_T_INT, _T_LONG, _T_OBJECT = 1, 2, 6


class _MemberDefinition(ctypes.Structure):  # CPython's PyMemberDef
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class _MemberDescriptor(ctypes.Structure):  # CPython's PyMemberDescrObject; the head of free-threaded builds is longer
    _fields_ = (
        ("ob_refcnt", ctypes.c_ssize_t),
        ("ob_type", ctypes.c_void_p),
        ("d_type", ctypes.c_void_p),
        ("d_name", ctypes.c_void_p),
        ("d_qualname", ctypes.c_void_p),
        ("d_member", ctypes.POINTER(_MemberDefinition)),
    )


class _Unexpected(Exception):
    """Something isn't where it should be."""


def _offset(owner: type, name: str, member_type: int) -> int:
    descriptor = owner.__dict__.get(name)
    if type(descriptor).__name__ != "member_descriptor":
        raise _Unexpected(f"{owner.__name__}.{name} is a {type(descriptor).__name__}, not a member of a C structure")
    member = _MemberDescriptor.from_address(id(descriptor)).d_member.contents
    if member.name != name.encode() or member.type != member_type:
        raise _Unexpected(f"{owner.__name__}.{name} is a member of another kind")
    if not 0 < member.offset < owner.__basicsize__:
        raise _Unexpected(f"{owner.__name__}.{name} lies outside of its object")
    return int(member.offset)


def _check_implementation() -> None:
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise _Unexpected("this isn't CPython with a GIL")


class _Layout:
    """Where things are; found when the module is imported, without a connection."""

    def __init__(self) -> None:
        if os.environ.get(BEGIN_VARIABLE) == "separate":
            raise _Unexpected(f"{BEGIN_VARIABLE}=separate is set in the environment")
        _check_implementation()
        self.status = _offset(_connection, "status", _T_INT)
        pgerror, pgcode, self.cursor = (
            _offset(psycopg2.Error, name, _T_OBJECT) for name in ("pgerror", "pgcode", "cursor")
        )
        # pgerror, pgcode, cursor, a decoder, and the PGresult
        self.result = self.cursor + 2 * _POINTER_BYTES
        places = [pgcode - pgerror, self.cursor - pgcode, psycopg2.Error.__basicsize__ - self.result]
        if places != [_POINTER_BYTES] * 3:
            raise _Unexpected("psycopg2.Error is laid out in another way")


#: psycopg2's status in its place, to be written.
StatusWord = ctypes.c_int


class HasDriverStatus(Protocol):
    """A connection that shows psycopg2's own `status`."""

    _driver_status: int


class DriverStatus:
    """Whether psycopg2's `status` can be written; known for certain once it has been seen on a connection."""

    def __init__(self) -> None:
        #: Why it can't be; None if it can.
        self.reason: str | None = None
        #: psycopg2's own BEGIN has been seen to set it.
        self.is_proven = False
        try:
            self._layout: _Layout | None = _Layout()
        except _Unexpected as unexpected:
            self._layout = None
            self._give_up(str(unexpected))

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        logger.info("psycopg2 begins each transaction in a round trip of its own: %s", reason)

    def word_of(self, conn: HasDriverStatus) -> StatusWord | None:
        """The `status` of a connection that is at rest, to be kept with it and written. None where it can't be had."""
        if self._layout is None or self.reason is not None:
            return None
        word = ctypes.c_int.from_address(id(conn) + self._layout.status)
        if word.value != conn._driver_status:
            self._give_up(f"connection.status is {conn._driver_status}, {word.value} was found in its place")
            return None
        return word

    def prove(self, conn: HasDriverStatus, word: StatusWord) -> None:
        """Called when psycopg2 has begun a transaction by itself on a connection whose status was READY before."""
        if word.value == conn._driver_status == _BEGIN:
            self.is_proven = True
        elif conn._driver_status == _BEGIN:
            self._give_up(f"connection.status is {conn._driver_status}, {word.value} was found in its place")

    def move_error_back(self, error: psycopg2.Error, characters: int) -> bool:
        """Count its position in the statement from so many characters later. False if it has none.

        `diag` reads the PGresult that the exception owns, so the number is put right in there.
        """
        assert self._layout is not None
        position = error.diag.statement_position
        if position is None:
            return False
        result = ctypes.c_void_p.from_address(id(error) + self._layout.result).value
        if result is not None:
            libpq.overwrite_error_field(result, "statement_position", b"%d" % (int(position) - characters))
        return True

    def replace_text(self, error: psycopg2.Error, text: str, pgerror: str) -> None:
        """Replace what the exception says."""
        assert self._layout is not None
        cursor = error.cursor
        error.args = (text,)
        error.__setstate__({"pgerror": pgerror, "pgcode": error.pgcode})  # type: ignore[no-untyped-call]
        if cursor is not None:  # __setstate__() has taken it away
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(cursor))
            ctypes.c_void_p.from_address(id(error) + self._layout.cursor).value = id(cursor)


def _rowcount_offset() -> int | None:
    try:
        _check_implementation()
        return _offset(extensions.cursor, "rowcount", _T_LONG)
    except _Unexpected:
        return None


_rowcount: Any = extensions.cursor.rowcount.__get__
_ROWCOUNT = _rowcount_offset()


def set_rowcount(cursor: Any, rowcount: int) -> bool:
    """Write psycopg2's own `rowcount`, which its C code sums up in executemany(). False where that isn't possible."""
    if _ROWCOUNT is None:
        return False
    word = ctypes.c_long.from_address(id(cursor) + _ROWCOUNT)
    if word.value != _rowcount(cursor):
        return False
    word.value = rowcount
    return True


driver_status = DriverStatus()
