"""Who may be inside of a connection's gate without being a task that waits there."""

from __future__ import annotations

from typing import Any

from ..errors import ConnectionInherited, ConnectionReturned


class Occupant:
    """Who has a connection to himself without being a task that waits in it: a `with cur.copy()` block between its
    calls, for example."""

    def make_way(self, operation: str) -> None:
        """Somebody wants to use the connection meanwhile: raise the error for him, or vacate the gate."""
        raise NotImplementedError

    def let_go(self) -> bool:
        """`close()` asks whether it may close the connection now; False if a task waits inside."""
        raise NotImplementedError


class Queue(Occupant):
    """Who has a connection to himself during a block, and takes the statements: a `with conn.pipeline()` block."""

    def queue(self, cursor: Any, query: Any, vars: Any) -> bool:
        """Take the statement; False: it's to be executed as ever, and the connection is at rest."""
        raise NotImplementedError

    def settle(self) -> None:
        """Have everything answered. Raises the first error that nobody has got yet."""
        raise NotImplementedError


class _Nobody(Occupant):
    """Nobody is inside; but whoever comes has to take his turn (`BusyGate.turnstile`)."""

    def make_way(self, operation: str) -> None:
        pass

    def let_go(self) -> bool:
        return True


class _AtRest(Occupant):
    """Nobody may use the connection: it lies in its pool."""

    def make_way(self, operation: str) -> None:
        raise ConnectionReturned(operation)

    def let_go(self) -> bool:
        return True


class Parent(Occupant):
    """Nobody may use the connection: this is a child of the process whose it is."""

    def __init__(self, is_locked: bool) -> None:
        #: Somebody was inside at the fork, and psycopg2's lock stays locked.
        self.is_locked = is_locked

    def make_way(self, operation: str) -> None:
        raise ConnectionInherited(operation)

    def let_go(self) -> bool:
        return True


#: The owner of each connection in which nobody is, and on which native threads take turns.
NOBODY = _Nobody()

#: The owner of each connection that lies in a pool, or is on its way to who has waited for it.
AT_REST = _AtRest()
