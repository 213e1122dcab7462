"""`BusyGate`: who is inside a connection, in which call, and what was thrown into it.

psycopg2 holds the connection's mutex while it waits: whoever calls into the same connection meanwhile would block the
whole native thread, hub and all. So every call that talks to the server goes through the connection's gate, which
refuses it while somebody else is inside.

An exception that is thrown into a wait is held back (`interruption`) while the statement is cancelled, and raised when
the call leaves the gate, psycopg2 being through with it: see interrupting.py.

Nobody else writes the gate's state but `Cursor.execute()` and the wait callback, which spell out `enter()`, `leave()`
and `occupied()` because of their cost; and a pool, which spells out `rest()` and `lend()`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

import psycopg2
from psycopg2 import extensions

from ..errors import ConnectionInUse, DeadlineExceeded
from ..errors.sqlstate import name_by_sqlstate
from ..hubs import FdWaiter, hub
from .deadlines import Deadlines
from .occupants import AT_REST, NOBODY, Occupant, Parent, Queue
from .remains import Remains
from .turnstile import Turnstile

#: Seconds between two looks whether those have left who came before turns were taken.
_PAUSE = 0.001
#: Seconds that a call of theirs may take between two waits.
_LONGEST_CALL = 0.1


class CopyDriver(Protocol):
    """What moves the data of a COPY in the wait callback: a `FileCopy`."""

    def run(self, conn: Any, waiter: FdWaiter, deadline: float | None) -> bool:
        """False if the server isn't ready for it."""


class BusyGate:
    """The gate of one connection. It doesn't know its connection, which refers to it."""

    __slots__ = (
        "call",
        "deadlines",
        "file_copy",
        "free",
        "interruption",
        "last_user",
        "loan",
        "owner",
        "queue",
        "remains",
        "turnstile",
        "waiter",
    )

    def __init__(self) -> None:
        self.turnstile = Turnstile()
        #: The owner when nobody is inside: None, or `NOBODY` where native threads take turns: on connections that one
        #: has made, and from the moment when two have met.
        self.free: Occupant | None = NOBODY if hub().may_block() else None
        #: The task that waits inside psycopg2 on this connection, or an `Occupant`.
        self.owner: object | None = self.free
        #: Something else for each borrower of a pool's connection: cursors are of one. None: it isn't one of a pool.
        self.loan: object = None
        #: The hash of the task that last did: the task itself would be kept alive.
        self.last_user: int | None = None
        #: The call that is under way; None if psycopg2 was called past the gate.
        self.call: str | None = None
        #: What was thrown into the present call's wait, to be raised at its end.
        self.interruption: BaseException | None = None
        #: Made at the first wait after connecting; until then libpq may go from socket to socket.
        self.waiter: FdWaiter | None = None
        #: None until a deadline is set for the first time.
        self.deadlines: Deadlines | None = None
        #: What the server still does for the connection, which this side has closed: see remains.py.
        self.remains: Remains | None = None
        #: The pipeline that is open: the gate is a `QueueingGate` (queueing.py) then.
        self.queue: Queue | None = None
        #: The copy_from() or its like that is under way, a `FileCopy`.
        self.file_copy: CopyDriver | None = None

    def forget_user(self) -> None:
        """Whoever used the connection so far has nothing to do with what comes: it changes hands."""
        self.last_user = None

    # -- calls

    def enter(self, call: str) -> str | None:
        """Raises `ConnectionInUse` if somebody is inside. Returns what `leave()` wants: the call around this one, if an
        adapter, a generator or a file of its arguments has made this one."""
        if self.owner is not None:
            self.take_turn(call)
        outer_call, self.call = self.call, call
        return outer_call

    def leave(self, outer_call: str | None) -> None:
        """Raises what was thrown into the call."""
        self.call = outer_call
        self.pass_turn()
        if self.interruption is not None:
            interruption, self.interruption = self.interruption, None
            try:
                raise interruption
            finally:
                del interruption  # no circle through its traceback

    def calling(self, call: str) -> _Call:
        """`with gate.calling("commit"):` enters and leaves; psycopg2's errors get their names by SQLSTATE."""
        return _Call(self, call)

    def make_way(self, operation: str) -> None:
        """Raise `ConnectionInUse` if somebody is inside who doesn't leave for this; a native thread waits for calls."""
        if self.owner is not None:
            with self.turn(operation):
                self._refuse(operation, self.owner)

    def refuse(self, operation: str) -> None:
        """The same for who is the queue."""
        self._refuse(operation, self.owner)

    @staticmethod
    def _refuse(operation: str, owner: object | None) -> None:
        if isinstance(owner, Occupant):
            owner.make_way(operation)
        elif owner is not None:
            raise ConnectionInUse(operation, hub().describe(owner))

    # -- native threads take turns

    def take_turn(self, operation: str) -> None:
        """`make_way()`, and let nobody else in until `pass_turn()`."""
        with self.turn(operation):
            self._refuse(operation, self.owner)
            if self.free is not None:
                self.turnstile.take(operation)

    def pass_turn(self) -> None:
        """The next one may come."""
        if self.free is not None:
            self.turnstile.leave()

    def turn(self, operation: str) -> _Turn:
        """`with gate.turn("executemany"):` no other native thread comes in between the calls of the block."""
        return _Turn(self, operation)

    def are_turns_taken(self, owner: object) -> bool:
        """Whether it's no use to refuse a native thread because the owner is inside: it is in a call of its own, not in
        a wait_notify() that may last for ever."""
        is_in_call = owner is not None and not isinstance(owner, Occupant) and self.call is not None
        return is_in_call and owner != hub().current() and hub().may_block()

    def begin_turns(self) -> None:
        """Called with the turn taken. Blocks the native thread until who has come without one has left."""
        self.free = NOBODY
        latest = hub().now() + _LONGEST_CALL
        while True:
            is_inside = self.owner is not None and not isinstance(self.owner, Occupant)
            # Between the two waits of a call nobody is inside. But two who have met by chance may have mixed it up.
            if not is_inside and (self.call is None or hub().now() > latest):
                break
            hub().sleep(_PAUSE)
        if self.owner is None:
            self.owner = NOBODY

    # -- waits that are greenpg's own

    def occupied(self) -> _Occupation:
        """`with gate.occupied():` the running task is inside, and waits there without psycopg2's help."""
        return _Occupation(self)

    def takes_over(self, cursor: Any, query: Any, vars: Any) -> bool:
        """For `execute()`, since somebody is inside: True if he takes the statement. Raises as `make_way()` does."""
        self.take_turn("execute")
        return False

    def close_queue(self) -> None:
        """Not any more; or there is none."""

    def occupy(self, occupant: Occupant) -> None:
        """The occupant is inside, unless somebody is, until it vacates the gate."""
        if self.owner is self.free:
            self.owner = occupant

    def vacate(self, occupant: Occupant | None = None) -> None:
        """The occupant isn't inside any more, if it was; without one: nobody is."""
        if occupant is None or self.owner is occupant:
            self.owner = self.free

    def rest(self) -> None:
        """The connection lies in its pool: nobody may use it."""
        self.owner = AT_REST

    def wake(self) -> None:
        """The pool itself is going to use it."""
        if self.owner is AT_REST:
            self.owner = self.free

    def lend(self, loan: object) -> None:
        """It has a borrower; what was there for the one before him is void."""
        self.owner = self.free
        self.loan = loan

    def disown(self) -> bool:
        """This is a child of the process whose the connection is. Whether somebody was inside at the fork."""
        is_locked = self.call is not None or not (self.owner is None or isinstance(self.owner, Occupant))
        self.owner = Parent(is_locked)
        self.free = None  # another native thread may have had its turn
        return is_locked

    def waiter_of(self, conn: extensions.connection) -> FdWaiter:
        """The connection's waiter, made if there is none yet."""
        waiter = self.waiter
        if waiter is None:
            waiter = self.waiter = hub().fd_waiter(conn.fileno())
        return waiter

    def close_waiter(self) -> None:
        """The connection's socket is going to be closed."""
        if self.waiter is not None:
            self.waiter.close()

    def next_deadline(self) -> float | None:
        """When the statement that begins now has to be over, by `time.monotonic()`; None: any time."""
        return None if self.deadlines is None else self.deadlines.next_deadline()

    def exceeded(self) -> DeadlineExceeded:
        """The error for the deadline that was last given out."""
        if self.deadlines is None or self.deadlines.given_out is None:
            return DeadlineExceeded("the event loop itself, which can't be suspended, has waited for long enough")
        return self.deadlines.exceeded()

    def made_deadlines(self) -> Deadlines:
        """The deadlines, made if there are none yet."""
        if self.deadlines is None:
            self.deadlines = Deadlines()
        return self.deadlines

    def forget_deadlines(self) -> None:
        """Also those of blocks that nobody will leave."""
        self.deadlines = None

    def copying(self, file_copy: CopyDriver | None) -> None:
        """What the wait callback is to run when the server is ready for a COPY; None when it is over."""
        self.file_copy = file_copy

    def leave_behind(self, remains: Remains) -> None:
        """The connection is going to be closed before its server process has ended."""
        self.remains = remains

    # -- interruptions

    def hold_back(self, interruption: BaseException | None) -> None:
        """To be raised when the present call leaves, instead of what was to be raised before."""
        self.interruption = interruption


class _Call:
    __slots__ = ("_call", "_gate", "_outer_call")

    def __init__(self, gate: BusyGate, call: str) -> None:
        self._gate = gate
        self._call = call

    def __enter__(self) -> None:
        self._outer_call = self._gate.enter(self._call)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, psycopg2.DatabaseError):
            name_by_sqlstate(exc)
        self._gate.leave(self._outer_call)


class _Turn:
    __slots__ = ("_gate", "_operation", "_turnstile")

    def __init__(self, gate: BusyGate, operation: str) -> None:
        self._gate = gate
        self._operation = operation

    def __enter__(self) -> None:
        gate = self._gate
        is_shared = gate.free is not None or gate.are_turns_taken(gate.owner)
        self._turnstile = gate.turnstile if is_shared else None
        if self._turnstile is not None:
            self._turnstile.take(self._operation)
            if gate.free is None:
                gate.begin_turns()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._turnstile is not None:
            self._turnstile.leave()


class _Occupation:
    __slots__ = ("_gate",)

    def __init__(self, gate: BusyGate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        gate, task = self._gate, hub().current()
        with gate.turn("wait"):  # not in the middle of another one's
            gate.owner = task
        gate.last_user = hash(task)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gate.owner = self._gate.free
