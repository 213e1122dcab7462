"""The transaction blocks that a connection is in, and what may not be done inside of one."""

from __future__ import annotations

from typing import Protocol

import psycopg2
from psycopg2 import extensions

_READY = extensions.STATUS_READY


class Blocks(list[object]):
    """The open blocks of one connection, the innermost last."""

    __slots__ = ()

    def leave(self, block: object) -> bool:
        """False if it isn't the innermost; it is left all the same."""
        if self and self[-1] is block:
            self.pop()
            return True
        if block in self:
            self.remove(block)
        return False


class HasBlocks(Protocol):
    """A `GuardedConnection`, which is made of this file."""

    _driver_status: int

    @property
    def _blocks(self) -> Blocks: ...


def forbid_inside(conn: HasBlocks, name: str) -> None:
    """ProgrammingError if the connection is in a transaction block, which ends its transaction by itself."""
    if conn._blocks:
        raise psycopg2.ProgrammingError(
            f"{name}() is not possible inside a transaction block: leave the block to commit, raise an exception "
            "(greenpg.Rollback for one that goes no further) to roll back"
        )


def forbid_autocommit_inside(conn: HasBlocks, name: str) -> None:
    """ProgrammingError for turning autocommit on or off in a transaction block: it would end to be one."""
    if conn._blocks:
        raise psycopg2.ProgrammingError(f"{name} cannot be used inside a transaction block")


def forbid_inside_transaction(conn: HasBlocks, name: str, sets_autocommit: bool = False) -> None:
    """ProgrammingError for what makes psycopg2 roll a block's transaction back in silence, or puts it in autocommit."""
    if conn._blocks and (sets_autocommit or conn._driver_status != _READY):
        raise psycopg2.ProgrammingError(f"{name} cannot be used inside a transaction block")
