"""Every exception of greenpg's own. They are psycopg2's too, so that existing `except` clauses catch them."""

from __future__ import annotations

import psycopg2

__all__ = ["ConnectionInUse", "LibpqUnavailable", "PatchError", "PoolClosed", "PoolTimeout", "TooManyRequests"]


class PatchError(RuntimeError):
    """`greenpg.patch()` can't do what was asked."""


class ConnectionInUse(psycopg2.ProgrammingError):
    """A task called a connection in which another task is waiting for the server.

    The connection and the other task's statement are unharmed. Fields: `operation`, what was called; `owner`, a
    description of the task that is waiting.
    """

    def __init__(self, operation: str, owner: str) -> None:
        super().__init__(
            f"{operation}() refused: {owner} is waiting for the server on this connection. "
            "Give each task a connection of its own (greenpg.ConnectionPool), or let them take turns"
        )
        self.operation = operation
        self.owner = owner

    def __reduce__(self) -> tuple[type[ConnectionInUse], tuple[str, str]]:
        return type(self), (self.operation, self.owner)


class LibpqUnavailable(psycopg2.NotSupportedError):
    """Something needs a function of libpq that greenpg can't call through the installed psycopg2."""


class PoolClosed(psycopg2.OperationalError):
    """A connection was asked of a pool that is closed, or not open yet."""


class PoolTimeout(psycopg2.OperationalError):
    """No connection became free in time. The text says what the pool's connections were doing."""


class TooManyRequests(psycopg2.OperationalError):
    """`max_waiting` requests are waiting for a connection already."""
