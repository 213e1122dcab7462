"""Blocks that need one and the same connection until their end."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from ...connection.connection import Connection
from .lease import Lease

B = TypeVar("B")


class LeasedBlock(Generic[B]):
    """`with` something of a connection, that is leased until the end of the block at least."""

    __slots__ = ("_block", "_call", "_lease", "_make")

    def __init__(self, lease: Lease, call: str, make: Callable[[Connection], Any]) -> None:
        self._lease = lease
        self._call = call
        self._make = make

    def __enter__(self) -> B:
        lease = self._lease
        with lease.calling(self._call) as conn:
            self._block = self._make(conn)
            value: B = self._block.__enter__()
            lease.hold()
        return value

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        lease = self._lease
        try:
            lease.enter(self._call)
        except BaseException:
            lease.let_go()
            if exc is None:
                raise
            return None  # the block's own exception says why
        error: BaseException | None = None
        try:
            is_settled: bool | None = self._block.__exit__(exc_type, exc, traceback)
            return is_settled
        except BaseException as raised:
            error = raised
            raise
        finally:
            lease.let_go()
            try:
                lease.leave(error, is_committed=exc is None)
            finally:
                del error  # no circle through its traceback


class Session:
    """What `with conn.sticky()` needs of a connection: that it is kept, and reset afterwards."""

    __slots__ = ("_conn", "_lease")

    def __init__(self, lease: Lease, conn: Connection) -> None:
        self._lease = lease
        self._conn = conn

    def __enter__(self) -> Connection:
        self._lease.expect_state()
        return self._conn

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        """The lease does the rest."""
