"""The pool's state: a table of slots, and the line of those who wait for one.

Pure bookkeeping: every method is called with the pool's mutex held, none suspends, logs, or touches a connection.

    state      the slot belongs to             may become
    OPENING    the task that connects          IDLE LENT CLOSED
    IDLE       the pool                        LENT RESETTING CLOSED
    LENT       the task that took it           IDLE LENT RESETTING CLOSED    (LENT: handed on to the head of the line)
    RESETTING  the task that cleans it         IDLE LENT CLOSED
    CLOSED     nobody; out of the table        -

Invariants (`check_invariants`), whenever the mutex is free:
- there are at most `max_size` slots (unless the pool was made smaller while more were lent);
- if somebody waits, nothing is idle (unless the pool is paused);
- a slot is reserved (OPENING) before anybody starts to connect;
- a connection that comes back goes to the head of the line, never past it;
- who has left the line has been given nothing, or gave it back.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable
from types import CodeType
from typing import Any

from ..hubs import Event


class SlotState(enum.IntEnum):  # whose hash is C's
    """Who may touch a slot; the module's docstring has the table."""

    OPENING = enum.auto()
    IDLE = enum.auto()
    LENT = enum.auto()
    RESETTING = enum.auto()
    CLOSED = enum.auto()


OPENING, IDLE, LENT, RESETTING, CLOSED = SlotState

TRANSITIONS = {
    OPENING: frozenset({IDLE, LENT, CLOSED}),
    IDLE: frozenset({LENT, RESETTING, CLOSED}),
    LENT: frozenset({IDLE, LENT, RESETTING, CLOSED}),
    RESETTING: frozenset({IDLE, LENT, CLOSED}),
    CLOSED: frozenset[SlotState](),
}


class Slot:
    """The right to one server connection."""

    __slots__ = (
        "bare_settings",
        "conn",
        "expires_at",
        "forget_holder",
        "holder",
        "is_suspect",
        "lent_at",
        "opened_at",
        "settings",
        "stack",
        "state",
        "taken_at",
        "trusted_until",
    )

    def __init__(self) -> None:
        self.state = OPENING
        self.conn: Any = None
        # All times by `time.monotonic()`.
        self.opened_at = 0.0
        self.expires_at = 0.0
        #: Until then it's lent without a look whether it is alive.
        self.trusted_until = 0.0
        #: Connections of its age were found dead: it needs a ping.
        self.is_suspect = False
        #: Since when it is lent, and the task it was lent to.
        self.lent_at = 0.0
        self.holder: object = None
        #: Code and line that called getconn(), and what makes the hub forget that the task's end is of interest.
        self.taken_at: tuple[CodeType, int] | None = None
        self.forget_holder: Callable[[], object] | None = None
        #: What psycopg2 keeps of the session for each new borrower, and what it kept before `configure`.
        self.settings: Any = None
        self.bare_settings: Any = None
        #: The stack where it was taken, if leaks are looked for.
        self.stack: list[str] | None = None


class Ledger:
    """Which slots there are, and who waits. Counts are derived from the table."""

    def __init__(self, min_size: int, max_size: int, keeps_idle: bool = True) -> None:
        self.min_size = min_size
        self.max_size = max_size
        #: Whether connections that nobody waits for are kept.
        self.keeps_idle = keeps_idle
        self.is_paused = False
        #: The fewest connections that were idle at a time since the keeper last looked.
        self.least_idle = 0
        self.slots: set[Slot] = set()
        self.idle: deque[Slot] = deque()
        self.opening: set[Slot] = set()
        self.resetting: set[Slot] = set()
        #: Who waits, first come first served: O(1) to join, to serve the head, to leave from the middle. An event is
        #: set once, to the slot that is handed over or to the exception to raise, by whoever takes it out of the line.
        #: Not a dict: taking the first key again and again gets slow there.
        self.line: OrderedDict[Event, None] = OrderedDict()
        self._size_when_shrunk = 0
        #: It was made smaller, and what was lent then has to come back.
        self._is_shrinking = False

    @property
    def size(self) -> int:
        return len(self.slots)

    @property
    def most_slots(self) -> int:
        """How many there may be: `max_size`, but those that are out when it's made smaller come back one by one."""
        return max(self.max_size, self._size_when_shrunk)

    def resize(self, min_size: int, max_size: int) -> list[Slot]:
        """Returns the slots that are surplus, out of the table."""
        self.min_size, self.max_size = min_size, max_size
        surplus = []
        while len(self.slots) > max_size and self.idle:
            surplus.append(self.idle[0])
            self.remove(self.idle[0])
        self._size_when_shrunk = len(self.slots)
        self._is_shrinking = len(self.slots) > max_size
        return surplus

    def _is_too_many(self) -> bool:
        self._is_shrinking = len(self.slots) > self.max_size
        return self._is_shrinking

    @property
    def lent_count(self) -> int:
        return len(self.slots) - len(self.idle) - len(self.opening) - len(self.resetting)

    @property
    def open_count(self) -> int:
        """Connections that there are, whoever has them."""
        return len(self.slots) - len(self.opening)

    # -- lending

    def take(self) -> Slot | None:
        """Lend the connection that has been idle for longest."""
        if not self.idle or self.is_paused:
            return None
        slot = self.idle.popleft()
        slot.state = LENT
        if len(self.idle) < self.least_idle:
            self.least_idle = len(self.idle)
        return slot

    def give(self, slot: Slot) -> bool:
        """A connection is ready to be used: lend it to the head of the line, or keep it.

        False: it is neither wanted nor kept, and out of the table; the caller has to close it.
        """
        if self._is_shrinking and self._is_too_many():
            self.remove(slot)
            return False
        if slot.state is not LENT:
            assert LENT in TRANSITIONS[slot.state], slot.state
            self.opening.discard(slot)
            self.resetting.discard(slot)
        if self.line and not self.is_paused:
            slot.state = LENT
            self.line.popitem(False)[0].set(slot)  # the first, not the last
        elif self.keeps_idle:
            slot.state = IDLE
            self.idle.append(slot)
        else:
            slot.state = LENT
            self.remove(slot)
            return False
        return True

    def resume(self) -> None:
        """The pool isn't paused any more: lend what is idle to those who wait."""
        self.is_paused = False
        while self.idle and self.line:
            self.give(self.idle.popleft())

    def leave_line(self, event: Event) -> Slot | None:
        """The waiter goes. Returns what it has been handed already, which is then the caller's to use or to pass on."""
        self.line.pop(event, None)
        return event.value if isinstance(event.value, Slot) else None

    def fail_line(self, make_error: Callable[[], Exception]) -> None:
        """Send everybody who waits away, each with an error of his own."""
        while self.line:
            self.line.popitem(last=False)[0].set(make_error())

    # -- slots

    def reserve(self) -> Slot:
        """A new slot, OPENING. The caller has seen that there's room for one."""
        assert len(self.slots) < self.max_size
        slot = Slot()
        self.slots.add(slot)
        self.opening.add(slot)
        return slot

    def should_grow(self) -> bool:
        """One connection at a time while clients wait: the next is often not needed when this one is ready.

        Where none is kept, one for each client.
        """
        if len(self.slots) >= self.max_size or self.is_paused:
            return False
        if not self.keeps_idle:
            return len(self.opening) < len(self.line)
        return not self.opening and (bool(self.line) or len(self.slots) < self.min_size)

    def start_reset(self, slot: Slot) -> None:
        assert RESETTING in TRANSITIONS[slot.state], slot.state
        if slot.state is IDLE:
            self.idle.remove(slot)
        slot.state = RESETTING
        self.resetting.add(slot)

    def remove(self, slot: Slot) -> None:
        """The slot's connection is gone, or never came about."""
        assert CLOSED in TRANSITIONS[slot.state], slot.state
        if slot.state is IDLE:
            self.idle.remove(slot)
        slot.state = CLOSED
        self.opening.discard(slot)
        self.resetting.discard(slot)
        self.slots.remove(slot)

    def remove_idle(self) -> list[Slot]:
        """Take all idle connections out of the table."""
        slots = list(self.idle)
        for slot in slots:
            self.remove(slot)
        return slots

    def longest_lent(self) -> Slot | None:
        lent = [slot for slot in self.slots if slot.state is LENT and slot.lent_at]
        return min(lent, key=lambda slot: slot.lent_at, default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError if the table contradicts itself. For tests; the mutex must be held."""
        by_state = {state: {slot for slot in self.slots if slot.state is state} for state in SlotState}
        assert not by_state[CLOSED], "a closed slot is in the table"
        assert by_state[OPENING] == self.opening, "OPENING slots are out of step"
        assert by_state[RESETTING] == self.resetting, "RESETTING slots are out of step"
        assert by_state[IDLE] == set(self.idle) and len(self.idle) == len(by_state[IDLE]), "IDLE slots are out of step"
        assert len(by_state[LENT]) == self.lent_count
        assert len(self.slots) <= self.most_slots, f"{len(self.slots)} slots, but max_size is {self.max_size}"
        assert self.is_paused or not (self.line and self.idle), "somebody waits although a connection is idle"
        for slot in self.slots:
            assert (slot.conn is None) == (slot.state is OPENING), f"{slot.state} with connection {slot.conn}"
