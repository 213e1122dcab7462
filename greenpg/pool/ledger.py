"""The pool's state: a table of slots, and the line of those who wait for one.

Pure bookkeeping: every method is called with the pool's mutex held, none suspends, logs, or touches a connection.

    state      the slot belongs to             may become
    OPENING    the task that connects          IDLE LENT CLOSED
    IDLE       the pool                        LENT RESETTING ENDING CLOSED
    LENT       the task that took it           IDLE LENT RESETTING ENDING CLOSED    (LENT: handed on in the line)
    RESETTING  the task that cleans it         IDLE LENT ENDING CLOSED
    ENDING     the server, whose process for the closed connection has not ended yet     CLOSED
    CLOSED     nobody; out of the table        -

`Ledger.move()` alone changes a slot's state, and for each loan `take()` and `keep()`, which are quicker.

Invariants (`check_invariants`), whenever the mutex is free:
- there are at most `max_size` slots (unless the pool was made smaller while more were lent);
- if somebody waits, nothing is idle (unless the pool is paused);
- a slot is reserved (OPENING) before anybody starts to connect;
- a connection that comes back goes to the head of the line, never past it;
- who has left the line has been given nothing, or gave it back.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from ..hubs import Event
from .slot import CLOSED, ENDING, IDLE, LENT, OPENING, RESETTING, TRANSITIONS, Slot, SlotState


class Ledger:
    """Which slots there are, and who waits. Counts are derived from the table."""

    def __init__(self, min_size: int, max_size: int, keeps_idle: bool = True, least_kept: int | None = None) -> None:
        self.min_size = min_size
        self.max_size = max_size
        #: As long as there are no more, those that go unused are kept.
        self.least_kept = min_size if least_kept is None else least_kept
        #: Whether connections that nobody waits for are kept.
        self.keeps_idle = keeps_idle
        self.is_paused = False
        #: The fewest connections that were idle at a time since the last `note_idle()`.
        self.least_idle = 0
        self.slots: set[Slot] = set()
        self.idle: deque[Slot] = deque()
        self.opening: set[Slot] = set()
        self.resetting: set[Slot] = set()
        self.ending: set[Slot] = set()
        #: Who waits, first come first served: O(1) to join, to serve the head, to leave from the middle. An event is
        #: set once, to the slot that is handed over or to the exception to raise, by whoever takes it out of the line.
        #: Not a dict: taking the first key again and again gets slow there.
        self.line: OrderedDict[Event, None] = OrderedDict()
        #: Of those that are OPENING, the ones that nobody has begun to open.
        self.to_open: deque[Slot] = deque()
        self._size_when_shrunk = 0
        #: It was made smaller, and what was lent then has to come back.
        self.is_shrinking = False

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
        self.least_kept = min_size
        surplus = []
        while len(self.slots) > max_size and self.idle:
            surplus.append(self.idle[0])
            self.move(self.idle[0], CLOSED)
        self._size_when_shrunk = len(self.slots)
        self.is_shrinking = len(self.slots) > max_size
        return surplus

    def _is_too_many(self) -> bool:
        self.is_shrinking = len(self.slots) > self.max_size
        return self.is_shrinking

    def keep_at_least(self, size: int) -> None:
        """Don't close what goes unused as long as there are no more."""
        self.least_kept = size

    @property
    def lent_count(self) -> int:
        return len(self.slots) - len(self.idle) - len(self.opening) - len(self.resetting) - len(self.ending)

    @property
    def open_count(self) -> int:
        """Connections that there are, whoever has them."""
        return len(self.slots) - len(self.opening) - len(self.ending)

    def move(self, slot: Slot, state: SlotState) -> None:
        """Give the slot to somebody else. AssertionError if the table at the head of this file doesn't allow that."""
        old = slot.state
        if state not in TRANSITIONS[old]:
            raise AssertionError(f"a slot that is {old.name} can't become {state.name}")
        slot.state = state
        if old is IDLE:
            idle = self.idle
            if idle[0] is slot:
                idle.popleft()
            else:
                idle.remove(slot)
            if len(idle) < self.least_idle:
                self.least_idle = len(idle)
        elif old is not LENT:
            (self.opening if old is OPENING else self.resetting if old is RESETTING else self.ending).remove(slot)
        if state is IDLE:
            self.idle.append(slot)
        elif state is RESETTING:
            self.resetting.add(slot)
        elif state is ENDING:
            self.ending.add(slot)
        elif state is CLOSED:
            self.slots.remove(slot)

    # -- lending

    def take(self) -> Slot | None:
        """Lend the connection that has been idle for longest."""
        idle = self.idle
        if not idle or self.is_paused:
            return None
        slot = idle.popleft()
        slot.state = LENT
        if len(idle) < self.least_idle:
            self.least_idle = len(idle)
        return slot

    def keep(self, slot: Slot) -> None:
        """A connection comes back, and nobody waits."""
        if slot.state is LENT:
            slot.state = IDLE
            self.idle.append(slot)
        else:
            self.move(slot, IDLE)

    def give(self, slot: Slot) -> bool:
        """A connection is ready to be used: lend it to the head of the line, or keep it.

        False: it is neither wanted nor kept, and out of the table; the caller has to close it.
        """
        if self.is_shrinking and self._is_too_many():
            self.move(slot, CLOSED)
            return False
        if self.line and not self.is_paused:
            if slot.state is not LENT:
                self.move(slot, LENT)
            self.line.popitem(False)[0].set(slot)  # the first, not the last
            return True
        self.move(slot, IDLE if self.keeps_idle else CLOSED)
        return self.keeps_idle

    def pause(self) -> None:
        """Lend nothing."""
        self.is_paused = True

    def resume(self) -> None:
        """Lend again, first to those who wait."""
        self.is_paused = False
        while self.line and (slot := self.take()):
            self.line.popitem(False)[0].set(slot)

    def join_line(self, event: Event) -> None:
        """The event's task waits for a connection."""
        self.line[event] = None

    def leave_line(self, event: Event) -> Slot | None:
        """The waiter goes. Returns what it has been handed already, which is then the caller's to use or to pass on."""
        self.line.pop(event, None)
        return event.value if isinstance(event.value, Slot) else None

    def fail_head(self, error: Exception) -> None:
        """Send the first of those who wait away."""
        if self.line:
            self.line.popitem(last=False)[0].set(error)

    def fail_line(self, make_error: Callable[[], Exception]) -> None:
        """Send everybody who waits away, each with an error of his own."""
        while self.line:
            self.line.popitem(last=False)[0].set(make_error())

    # -- slots

    def reserve(self) -> Slot:
        """A new slot, to be opened. The caller has seen that there's room for one."""
        assert len(self.slots) < self.max_size
        slot = Slot()
        self.slots.add(slot)
        self.opening.add(slot)
        self.to_open.append(slot)
        return slot

    def reserve_at_least(self, size: int) -> None:
        """Reserve until there are so many slots."""
        while len(self.slots) < size:
            self.reserve()

    def grow(self, at_a_time: int, hanging: int = 0) -> None:
        """Reserve what waiting clients, or the least size, ask for.

        A connection for each client, but few at a time: the next is often not needed when these are ready. Of those
        that are OPENING, the ones that hang don't count. Where none is kept, one for each client at once.
        """
        while len(self.slots) < self.max_size and not self.is_paused:
            wanted = max(len(self.line), self.min_size - len(self.slots) + len(self.opening))
            if len(self.opening) - hanging >= (min(wanted, at_a_time) if self.keeps_idle else wanted):
                return
            self.reserve()

    def replace_lost(self) -> None:
        """A connection was lost: reserve a slot for another one if it's needed."""
        is_wanted = len(self.opening) < len(self.line) and len(self.slots) < self.max_size
        if len(self.slots) < self.min_size or is_wanted:
            self.reserve()

    def remove_idle(self) -> list[Slot]:
        """Take all idle connections out of the table."""
        slots = list(self.idle)
        for slot in slots:
            self.move(slot, CLOSED)
        return slots

    def remove_unbegun(self) -> None:
        """Give up what nobody has begun to open."""
        while self.to_open:
            self.move(self.to_open.popleft(), CLOSED)

    def remove_ending(self) -> None:
        """The servers' processes that have not ended yet count no more."""
        for slot in list(self.ending):
            self.move(slot, CLOSED)

    def remove_unused(self) -> Slot | None:
        """Take the connection that has been idle for longest out of the table, if one wasn't needed since the last
        time, and there are more than `least_kept`."""
        unused, slot = self.least_idle, None
        if unused and self.idle and len(self.slots) > self.least_kept:
            slot = self.idle[0]
            self.move(slot, CLOSED)
        self.note_idle()
        return slot

    def note_idle(self) -> None:
        """From now on `least_idle` is counted anew."""
        self.least_idle = len(self.idle)

    def stop_keeping(self) -> None:
        """The pool is closed: what comes back goes."""
        self.keeps_idle = False

    def longest_lent(self) -> Slot | None:
        lent = [slot for slot in self.slots if slot.state is LENT and slot.lent_at]
        return min(lent, key=lambda slot: slot.lent_at, default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError if the table contradicts itself. For tests; the mutex must be held."""
        by_state = {state: {slot for slot in self.slots if slot.state is state} for state in SlotState}
        assert not by_state[CLOSED], "a closed slot is in the table"
        assert by_state[OPENING] == self.opening, "OPENING slots are out of step"
        assert by_state[RESETTING] == self.resetting, "RESETTING slots are out of step"
        assert by_state[ENDING] == self.ending, "ENDING slots are out of step"
        assert by_state[IDLE] == set(self.idle) and len(self.idle) == len(by_state[IDLE]), "IDLE slots are out of step"
        assert self.opening.issuperset(self.to_open), "what is to be opened isn't OPENING"
        assert len(by_state[LENT]) == self.lent_count
        assert len(self.slots) <= self.most_slots, f"{len(self.slots)} slots, but max_size is {self.max_size}"
        assert self.is_paused or not (self.line and self.idle), "somebody waits although a connection is idle"
        for slot in self.slots:
            assert (slot.conn is None) == (slot.state is OPENING), f"{slot.state} with connection {slot.conn}"
