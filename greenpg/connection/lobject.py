"""Large objects in green mode: psycopg2's `lobject`, over the server-side functions: libpq's own ones block."""

from __future__ import annotations

from typing import IO, Any, TypeVar, overload

import psycopg2
from psycopg2 import extensions

from ..errors import is_interruption
from ..errors.sqlstate import name_by_sqlstate
from .composing import compose
from .cursor import Cursor
from .guarded_connection import GuardedConnection
from .server_errors import text_codec

_connection = extensions.connection
_lobject = extensions.lobject
AnyLargeObject = TypeVar("AnyLargeObject", bound=extensions.lobject)
_INV_READ, _INV_WRITE = 0x40000, 0x20000

#: What is read or written by one statement. The server sends and takes it as hexadecimal text, twice as long.
CHUNK_BYTES = 512 * 1024


class LargeObject(_lobject):
    """psycopg2's large object; everything psycopg2 documents of it holds. Made by `Connection.lobject()`.

    All methods but `closed` suspend the caller. Reads and writes go by `CHUNK_BYTES`, a statement each, so that other
    tasks run in between. As psycopg2's, it is good until the transaction ends, and the server's errors are
    `psycopg2.OperationalError`s, whose `__cause__` has the exact class.
    """

    # psycopg2's own __init__ is never called: it would talk to the server, blocking.
    def __init__(
        self,
        conn: GuardedConnection,
        oid: int = 0,
        mode: str | None = "",
        new_oid: int = 0,
        new_file: str | None = None,
    ) -> None:
        self._fd = -1
        self._conn = conn
        self._oid = oid
        self._refuse_outside_of_transactions()
        self._flags, self._is_text = _parse_mode(mode or "")
        self._cursor = _connection.cursor(conn, None, Cursor)
        # whatever the program has registered for bytea
        extensions.register_type(psycopg2.BINARY, self._cursor)
        if oid == 0:
            self._flags = self._flags & ~_INV_READ | _INV_WRITE
            self._create(new_oid, new_file)
        elif self._flags:
            self._fd = self._call("lo_open(%s::oid, %s)", oid, self._flags)
        self._transaction: int = conn._transactions_ended

    def _create(self, new_oid: int, new_file: str | None) -> None:
        creation = "lo_create(%s::oid)" if new_oid else "lo_creat(%s)"
        argument = new_oid or _INV_READ | _INV_WRITE
        opening = f"SELECT o, pg_catalog.lo_open(o, {self._flags}) FROM pg_catalog.{creation} AS o"
        if new_file is None:
            self._oid, self._fd = self._row(opening, argument)
            return
        if self._conn.status == extensions.STATUS_READY:  # psycopg2 begins before it finds that there is no such file
            self._cursor.execute("SHOW server_version")
        with _open_file(new_file, "rb") as file:
            self._oid, self._fd = self._row(opening, argument)
            while data := file.read(CHUNK_BYTES):
                self._call("lowrite(%s, %s)", self._fd, psycopg2.Binary(data))
        self._call("lo_lseek64(%s, 0, 0)", self._fd)

    @property
    def oid(self) -> int:
        """The object's OID."""
        return self._oid

    @property
    def mode(self) -> str:
        """How it was opened: "r", "w" or "rw" with "t" (text) or "b" (bytes) behind; "n": not opened."""
        access = ("r" if self._flags & _INV_READ else "") + ("w" if self._flags & _INV_WRITE else "")
        return access + ("t" if self._is_text else "b") if access else "n"

    @property
    def closed(self) -> bool:
        """Whether it can't be read and written (any more). Doesn't suspend."""
        return self._fd < 0 or bool(self._conn.closed)

    def read(self, size: int = -1, /) -> Any:
        """At most `size` bytes, all that follows if it is negative; as str, unless opened with "b".

        Raises UnicodeDecodeError if text is cut within a character: read bytes where that can happen.
        """
        self._check_open()
        chunks = []
        left = size
        while left:
            wanted = CHUNK_BYTES if left < 0 else min(left, CHUNK_BYTES)
            chunk = bytes(self._call("loread(%s, %s)", self._fd, wanted))
            chunks.append(chunk)
            if len(chunk) < wanted:
                break
            left = left if left < 0 else left - wanted
        data = b"".join(chunks)
        return data.decode(text_codec(self._conn)) if self._is_text else data

    def write(self, data: str | bytes, /) -> int:
        """Write text or bytes. Returns how many bytes that is."""
        self._check_open()
        if isinstance(data, str):
            data = data.encode(text_codec(self._conn))
        elif not isinstance(data, bytes):
            raise TypeError(f"lobject.write requires a string; got {type(data).__name__} instead")
        written = 0
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = psycopg2.Binary(data[start : start + CHUNK_BYTES])
            written += self._call("lowrite(%s, %s)", self._fd, chunk)
        return written

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset in bytes, from the start, the present position (1) or the end (2). Returns the position."""
        self._check_open()
        return int(self._call("lo_lseek64(%s, %s, %s)", self._fd, offset, whence))

    def tell(self) -> int:
        """The present position, in bytes."""
        self._check_open()
        return int(self._call("lo_tell64(%s)", self._fd))

    def truncate(self, len: int = 0, /) -> None:
        """Set the size, in bytes; what is added is zero."""
        self._check_open()
        self._call("lo_truncate64(%s, %s)", self._fd, len)

    def close(self) -> None:
        """Close the object. Again, and after the end of the transaction, it does nothing."""
        if not self.closed and self._is_valid():
            fd, self._fd = self._fd, -1
            self._call("lo_close(%s)", fd)

    def unlink(self) -> None:
        """Close the object and remove it from the database. As psycopg2's, in a later transaction, too."""
        if self._conn.closed:
            raise psycopg2.InterfaceError("connection already closed")
        self.close()
        self._call("lo_unlink(%s::oid)", self._oid)

    def export(self, file_name: str, /) -> None:
        """Write the whole object to a file of this machine; the position stays."""
        self._refuse_outside_of_transactions()
        if self._conn.closed:
            raise psycopg2.OperationalError("connection pointer is NULL\n")  # libpq's, as psycopg2 gives it
        fd = self._call("lo_open(%s::oid, %s)", self._oid, _INV_READ)
        try:
            file = _open_file(file_name, "wb")
        except psycopg2.OperationalError as error:
            try:
                self._call("lo_close(%s)", fd)
            except psycopg2.Error as second:
                if is_interruption(second):
                    raise
            raise error
        with file:
            while data := bytes(self._call("loread(%s, %s)", fd, CHUNK_BYTES)):
                file.write(data)
        self._call("lo_close(%s)", fd)

    def __repr__(self) -> str:
        return f"<lobject object at {id(self):#x}; closed: {self.closed:d}>"

    # -- checks

    def _check_open(self) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("lobject already closed")
        self._refuse_outside_of_transactions()
        if not self._is_valid():
            raise psycopg2.ProgrammingError("lobject isn't valid anymore")

    def _is_valid(self) -> bool:
        """Whether the transaction in which it was opened still runs, as far as this side knows."""
        return self._transaction == int(self._conn._transactions_ended)

    def _refuse_outside_of_transactions(self) -> None:
        if self._conn.autocommit:
            raise psycopg2.ProgrammingError("can't use a lobject outside of transactions")

    # -- statements

    def _call(self, function: str, *args: Any) -> Any:
        (value,) = self._row(f"SELECT pg_catalog.{function}", *args)
        return value

    def _row(self, sql: str, *args: Any) -> tuple[Any, ...]:
        try:
            self._cursor.execute(sql, args)
        except psycopg2.Error as error:
            if error.pgcode is None or isinstance(error, psycopg2.OperationalError) or is_interruption(error):
                raise
            as_psycopg2_has_it = psycopg2.OperationalError(error.pgerror or str(error))
            as_psycopg2_has_it.__setstate__({"pgcode": error.pgcode, "pgerror": error.pgerror})  # type: ignore[no-untyped-call]
            raise as_psycopg2_has_it from error
        row: tuple[Any, ...] = self._cursor.fetchone()  # type: ignore[assignment]
        return row


def _open_file(name: str, mode: str) -> IO[bytes]:
    try:
        return open(name, mode)
    except OSError as error:
        raise psycopg2.OperationalError(f'could not open file "{name}": {error.strerror}\n') from error


def _parse_mode(mode: str) -> tuple[int, bool]:
    """The server's flags, and whether it is text."""
    rest = mode
    flags = _INV_READ
    for prefix, meaning in (("rw", _INV_READ | _INV_WRITE), ("r", _INV_READ), ("w", _INV_WRITE), ("n", 0)):
        if rest.startswith(prefix):
            rest = rest[len(prefix) :]
            flags = meaning
            break
    if rest not in ("", "t", "b"):
        raise ValueError(f"bad mode for lobject: '{mode}'")
    return flags, rest != "b"


class LargeObjectMixin(GuardedConnection):
    """`lobject()`, for `Connection`."""

    @overload  # type: ignore[override]  # the class of the large object is more exact here
    def lobject(
        self, oid: int = 0, mode: str | None = "", new_oid: int = 0, new_file: str | None = None
    ) -> LargeObject: ...
    @overload
    def lobject(
        self,
        oid: int = 0,
        mode: str | None = "",
        new_oid: int = 0,
        new_file: str | None = None,
        *,
        lobject_factory: type[AnyLargeObject],
    ) -> AnyLargeObject: ...
    @overload
    def lobject(
        self,
        oid: int,
        mode: str | None,
        new_oid: int,
        new_file: str | None,
        lobject_factory: type[AnyLargeObject],
    ) -> AnyLargeObject: ...
    def lobject(
        self,
        oid: int = 0,
        mode: str | None = "",
        new_oid: int = 0,
        new_file: str | None = None,
        lobject_factory: Any = _lobject,
    ) -> Any:
        """A large object of the database, as psycopg2's: an existing one, or with `oid` 0 a new one. Suspends.

        It is a `greenpg` `LargeObject`, and of the class `lobject_factory` as well where one is named. Raises
        `psycopg2.OperationalError` if there is none with that OID, or one already with `new_oid`; ProgrammingError
        outside of a transaction.
        """
        self._gate.make_way("lobject")
        try:
            # psycopg2 checks the arguments and the state. Without a wait callback it does it all.
            return _connection.lobject(self, oid, mode, new_oid, new_file, lobject_factory)
        except psycopg2.DatabaseError as error:
            if not isinstance(error, psycopg2.ProgrammingError) or "asynchronous callback" not in str(error):
                name_by_sqlstate(error)
                raise error
        if self.status == extensions.STATUS_PREPARED:
            raise psycopg2.ProgrammingError("lobject cannot be used with a prepared two-phase transaction")
        lobject = compose(lobject_factory, LargeObject)(self, oid, mode, new_oid, new_file)
        if not isinstance(lobject, _lobject):
            raise TypeError("lobject factory must be subclass of psycopg2.extensions.lobject")
        return lobject
