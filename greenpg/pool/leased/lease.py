"""`Lease`: when a `LeasedConnection` has one of its pool's connections, and when that goes back.

It is taken by the first call that needs it, and goes back at the end of the call after which nothing holds it: no
transaction, no block, no state of the session's. Whoever is killed, in whatever call, goes through that end.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import psycopg2

from ...connection.connection import Connection
from ...errors import COMMITTED, ConnectionInUse, commit_outcome, note_commit_outcome
from ...hubs import hub
from ..core import PoolCore
from ..health import LOST
from ..lending import lend
from ..returning import give_back, note_error
from ..slot import Slot
from .ending import give_back_abandoned, is_at_rest, roll_back_quietly, users_place
from .kept import Kept
from .settings import Overrides, apply

logger = logging.getLogger("greenpg.pool")


class Lease:
    """One `LeasedConnection`'s. It knows nothing of that, nor of cursors."""

    __slots__ = (
        "_core",
        "_depth",
        "_is_fresh",
        "_is_watched",
        "_kept",
        "_last_user",
        "_lend",
        "_lent_at",
        "_looked",
        "_mutex",
        "_slot",
        "_user",
        "blocks",
        "closed",
        "enters",
        "holders",
        "is_stuck",
        "needs_reset",
        "overrides",
    )

    def __init__(self, core: PoolCore, kept: Kept, timeout: float | None) -> None:
        self._core = core
        self._kept = kept
        self._lend: Callable[[], Slot] = lambda: lend(core, timeout)
        self._slot: Slot | None = None
        self._lent_at = 0.0
        #: The task inside of a call, and how many calls are in one another (an adapter may use the connection).
        self._mutex = hub().mutex()
        self._user: object | None = None
        self._depth = 0
        #: The hash of the task that was inside last: itself it would be kept alive.
        self._last_user: int | None = None
        #: It was taken by the call that is under way.
        self._is_fresh = False
        self._is_watched = False
        #: The slot's that was leased last: what the connections of the pool are like.
        self._looked: Slot | None = None
        #: As psycopg2's `closed`: 2 if a connection was lost with a transaction, or state, in it.
        self.closed = 0
        #: How many blocks need it: `with conn.transaction()`, `with cur.copy()` ...
        self.blocks = 0
        #: Each connection is to be in psycopg2's own `with conn:`.
        self.enters = False
        #: It is kept, whatever happens.
        self.is_stuck = False
        #: The session may not be as the pool's others any more: it's reset before somebody else gets it.
        self.needs_reset = False
        self.holders: set[Any] = set()
        self.overrides: Overrides = {}

    # -- calls

    def enter(self, call: str) -> Connection:
        """A call begins, which needs a connection. Suspends until there is one. Each is followed by `leave()`.

        Raises `ConnectionInUse` if another task is inside, and what `pool.getconn()` raises.
        """
        if not self._claim():
            raise ConnectionInUse(call, hub().describe(self._user or self._core.current_task()))
        try:
            if self.closed:
                raise psycopg2.InterfaceError("connection already closed")
            if self._slot is None:
                self._take()
            elif self._slot.lent_at != self._lent_at:
                self._lost()
                raise psycopg2.InterfaceError("connection already closed")
        except BaseException:
            self._step_out()
            raise
        assert self._slot is not None
        return self._slot.conn

    def leave(self, error: BaseException | None = None, is_committed: bool = False) -> None:
        """The call is over, and has raised that, or has committed something. Gives the connection back if nothing holds
        it; suspends as `putconn()` does."""
        is_last = self._depth == 1
        if error is not None and self._slot is not None and self._slot.lent_at == self._lent_at:
            note_error(self._core, self._slot, error)
        try:
            if is_last:
                self._settle(is_committed and error is None)
        finally:
            self._step_out()

    def calling(self, call: str, commits: bool = False) -> _Call:
        """`with lease.calling("commit", commits=True) as conn:` enters and leaves."""
        return _Call(self, call, commits)

    def _claim(self) -> bool:
        """The running task goes in, unless another one is inside."""
        task = self._core.current_task()
        with self._mutex:
            if self._user is None:
                self._user = task
                self._last_user = hash(task)
            elif self._user != task:
                return False
            self._depth += 1
        return True

    def _step_out(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._user = None
            self._is_fresh = False

    @property
    def conn(self) -> Connection | None:
        """The connection that it has now; None if it has none."""
        slot = self._slot
        return slot.conn if slot is not None and slot.lent_at == self._lent_at else None

    @property
    def number(self) -> float:
        """Another one for each lease; 0: there is none."""
        return self._lent_at if self._slot is not None else 0.0

    def lend_by(self, lend_slot: Callable[[], Slot]) -> None:
        """Instead of by the pool itself. Before the first lease."""
        self._lend = lend_slot

    # -- taking and giving back

    def _take(self) -> None:
        slot = self._lend()
        conn = slot.conn
        self._slot, self._lent_at, self._looked = slot, slot.lent_at, slot
        self._is_fresh, self._is_watched = True, False
        try:
            if self.overrides:
                apply(self.overrides, slot.settings, conn)
            if self.enters:
                conn.__enter__()
        except BaseException:
            self._slot = None
            give_back(self._core, slot)
            raise

    def _settle(self, is_committed: bool) -> None:
        slot = self._slot
        if slot is None:
            return
        conn = slot.conn
        if slot.lent_at != self._lent_at:
            self._lost()
        elif conn.closed:
            if not (self._is_fresh and conn.autocommit and not self.is_held):
                self._lost()
            self._return(slot, is_committed)
        elif self.is_held or not is_at_rest(conn):
            if conn.notices or conn.notifies:
                self._kept.keep_messages(conn)
            if not self._is_watched:
                self._watch(slot)
        else:
            self._return(slot, is_committed)

    @property
    def is_held(self) -> bool:
        """It doesn't go back at the end of the transaction."""
        return bool(self.is_stuck or self.blocks or self.holders)

    def _return(self, slot: Slot, is_committed: bool) -> None:
        try:
            conn = slot.conn
            if conn.notices or conn.notifies:
                self._kept.keep_messages(conn)
            self._kept.keep_rows()
        except BaseException as error:
            if is_committed and commit_outcome(error) is None:
                note_commit_outcome(error, COMMITTED)
            raise
        finally:
            self._slot = None
            needs_reset = self.needs_reset or bool(self.holders)
            self.needs_reset = self.is_stuck = False
            self.holders.clear()
            if needs_reset:
                slot.want_reset()
            give_back(self._core, slot, is_committed=is_committed)

    def _lost(self) -> None:
        """With all that was in it: by the server or the network, or because somebody has closed the connection past us,
        or taken it away: its user's task has ended, or the process is another one."""
        self._slot = None
        self.closed = self.closed or LOST

    def _watch(self, slot: Slot) -> None:
        """From now on the program could forget it: if the task ends, it goes back."""
        self._is_watched = True
        slot.taken_at = users_place()
        task, lent_at = self._core.current_task(), self._lent_at

        def ended() -> None:  # in the hub
            slot.watch_end(None)
            if self._last_user == hash(task):  # else another task goes on with it
                hub().spawn(self._take_back, slot, lent_at, slot.describe_holder())

        slot.watch_end(hub().on_end(task, ended))

    def _take_back(self, slot: Slot, lent_at: float, holder: str) -> None:
        if not self._claim():
            return
        try:
            if slot is not self._slot or slot.lent_at != lent_at:
                return
            self._core.note_leak(slot.conn, f"{holder} ended without ending its transaction")
            self.closed = self.closed or LOST
            self._return(slot, is_committed=False)
        finally:
            self._step_out()
        logger.warning(
            "pool %r: %s ended in the middle of a transaction, or a session, of its LeasedConnection: it is taken back",
            self._core.options.name,
            holder,
        )

    # -- by hand

    def hold(self) -> None:
        """A block begins, that needs the connection until `let_go()`. Within a call."""
        self.blocks += 1

    def let_go(self) -> None:
        """The block is over."""
        self.blocks -= 1

    def expect_state(self) -> None:
        """The session may get some that isn't seen here. Within a call."""
        self.needs_reset = True

    def stick(self) -> None:
        """The session has state of its own: the lease is kept. Within a call."""
        self.is_stuck = self.needs_reset = True

    def unstick(self) -> None:
        """It's kept no longer. Within a call."""
        self.is_stuck = False

    def enter_connections(self, enters: bool) -> None:
        """A `with conn:` begins, or ends: whatever is leased meanwhile is entered, and kept."""
        self.enters = enters
        self.blocks += 1 if enters else -1

    def default(self, name: str) -> Any:
        """A setting as the pool's connections have it. Suspends if none has been leased yet."""
        self.look(name)
        assert self._looked is not None
        return getattr(self._looked.settings, name)

    def ask(self, call: str, function: Callable[[Connection], Any]) -> Any:
        """What the function finds out from a connection: the one there is, or one that is leased for the moment.
        Suspends in that last case."""
        conn = self.conn
        if conn is not None:
            return function(conn)
        with self.calling(call) as conn:
            return function(conn)

    def look(self, call: str) -> Connection:
        """A connection of the pool that may be asked what never changes: the one there is, or the last one, or
        one that is leased for the moment. Suspends in that last case."""
        if self.conn is not None:
            return self.conn
        if self._looked is None or self._looked.conn.closed:
            with self.calling(call):
                pass
        assert self._looked is not None
        return self._looked.conn

    def set_aside(self) -> Slot | None:
        """The slot that is leased, for somebody else to give back: the connection is forgotten."""
        slot, self._slot = self._slot, None
        return slot if slot is not None and slot.lent_at == self._lent_at else None

    def close(self) -> None:
        """For good. A transaction is rolled back; suspends then."""
        if self.closed == 1:
            return
        self.closed = 1
        if not self._claim():
            conn = self.conn
            if conn is not None:
                conn.close()  # which throws the other task out; that gives the slot back
            return
        try:
            slot = self._slot
            if slot is None or slot.lent_at != self._lent_at:
                self._slot = None
                return
            self.blocks = 0
            try:
                roll_back_quietly(slot.conn)
            finally:
                self._return(slot, is_committed=False)
        finally:
            self._step_out()

    def abandon(self) -> None:
        """Nobody has it any more. For finalizers: doesn't suspend."""
        slot = self.set_aside()
        if slot is not None and not sys.is_finalizing():
            hub().spawn(give_back_abandoned, self._core, slot, self._lent_at, self.needs_reset or bool(self.holders))


class _Call:
    __slots__ = ("_call", "_commits", "_lease")

    def __init__(self, lease: Lease, call: str, commits: bool) -> None:
        self._lease = lease
        self._call = call
        self._commits = commits

    def __enter__(self) -> Connection:
        return self._lease.enter(self._call)

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        self._lease.leave(exc, self._commits)
