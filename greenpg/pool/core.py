"""`PoolCore`: a pool's state, and the moves of its table that touch more than the ledger.

What takes connections in and out (lending.py, returning.py, opening.py ...) takes the core, not the pool: the pool
is what users see of it.
"""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ..connection.connect.credentials import Credentials
from ..connection.connection import Connection
from ..connection.remains import Remains
from ..connection.tracing import STATEMENTS, TracedStatements, Tracer, Tracing
from ..errors import PoolClosed
from ..hubs import Event, hub
from .health import close_quietly
from .histograms import Histograms
from .ledger import Ledger
from .options import PoolOptions
from .slot import CLOSED, ENDING, Slot
from .stats import Stats
from .tasks import Keeper, Workers


class Opener(Protocol):
    """Opens and closes a pool's connections in the place of conninfo and `close()`: an integration's own way."""

    def open(self, slot: Slot) -> Connection:
        """A new connection, set up as each borrower is to find it. Suspends. May put something into `slot.record`.

        What it raises is raised to the request at the head of the line, at once, and it isn't tried again for that one.
        """

    def close(self, slot: Slot, conn: Connection) -> None:
        """The slot's connection is going to be closed, whatever state it is in. Mustn't raise."""


class PoolCore:
    """What the rooms of pool/ share. Methods marked [mutex] are called with the mutex held; none suspends."""

    __slots__ = (
        "__weakref__",
        "_credentials",
        "_give_back",
        "current_task",
        "generation",
        "histograms",
        "hold",
        "is_closed",
        "keeper",
        "ledger",
        "loan_tracing",
        "multiplexer",
        "mutex",
        "now",
        "opener",
        "opens_itself",
        "options",
        "pool",
        "pooler",
        "server",
        "stats",
        "tracing",
        "was_opened",
        "when_at_rest",
        "when_filled",
        "workers",
    )

    def __init__(
        self,
        pool: object,
        options: PoolOptions,
        ledger: Ledger,
        histograms: Histograms | None,
        opens_itself: bool,
        give_back: Callable[[PoolCore, Slot], None],
        tracers: tuple[Tracer, ...] = (),
    ) -> None:
        #: For callbacks that get the pool.
        self.pool = weakref.ref(pool)
        self.options = options
        self.ledger = ledger
        self.histograms = histograms
        #: At its first use.
        self.opens_itself = opens_itself
        self.stats = Stats()
        self.was_opened = False
        self.is_closed = True
        #: What kind of pooler was found in front of the server; None: nobody has looked.
        self.pooler: str | None = None
        #: Where the last new connection led to.
        self.server: object = None
        #: Connections of another generation aren't lent again.
        self.generation = 0
        self._give_back = give_back
        #: Who is told what happens here; the second one is set only if loans are to be told as well.
        self.tracing: Tracing | None = None
        self.loan_tracing: Tracing | None = None
        #: Where single statements share connections; None: nowhere.
        self.multiplexer: Any = None
        #: None: by the options.
        self.opener: Opener | None = None
        self._begin()
        if tracers:
            self.trace(tracers)

    def _begin(self) -> None:
        self.mutex = hub().mutex()
        self.workers = Workers()
        self.keeper = Keeper()
        self._credentials = Credentials(self.options.conninfo, self.options.kwargs)
        #: Set when there are `min_size` connections, to True, and when no connection is being reset.
        self.when_filled: list[Event] = []
        self.when_at_rest: list[Event] = []
        self.ask_hub()

    def ask_hub(self) -> None:
        """The program's hub may have been chosen since the pool was made."""
        self.current_task = hub().current
        self.hold = hub().hold
        self.now = hub().now

    def multiplex_by(self, multiplexer: Any) -> None:
        """Before the first statement."""
        self.multiplexer = multiplexer

    def credentials(self) -> Credentials:
        """What the options say now of how to connect. Doesn't suspend."""
        options, credentials = self.options, self._credentials
        if not credentials.are_of(options.conninfo, options.kwargs):
            credentials = self._credentials = Credentials(options.conninfo, options.kwargs)
        return credentials

    def open_by(self, opener: Opener) -> None:
        """Before the first connection is opened."""
        self.opener = opener

    def begin_anew(self) -> None:
        """In a forked child: without connections, to be opened at the next use."""
        old = self.ledger
        self.generation += 1
        self.ledger = Ledger(old.min_size, old.max_size, keeps_idle=old.keeps_idle, least_kept=old.least_kept)
        self._begin()  # some other thread of the parent may have held the mutex
        if self.multiplexer is not None:
            self.multiplexer.begin_anew()
        if not self.is_closed:
            self.was_opened, self.is_closed, self.opens_itself = False, True, True

    def open(self) -> bool:
        """[mutex] False if it is open already."""
        if not self.is_closed:
            return False
        if self.was_opened:
            raise PoolClosed(
                f"the pool {self.options.name!r} has been closed and can't be opened again: make a new one"
            )
        self.was_opened, self.is_closed = True, False
        self.ask_hub()
        self.ledger.reserve_at_least(self.ledger.min_size)
        return True

    def close(self) -> list[Slot]:
        """[mutex] Returns the slots whose connections are to be closed."""
        self.is_closed = True
        self.ledger.stop_keeping()
        idle = self.ledger.remove_idle()
        self.ledger.remove_unbegun()
        self.ledger.remove_ending()
        self.ledger.fail_line(
            lambda: PoolClosed(f"the pool {self.options.name!r} was closed while the request was waiting")
        )
        self.end_filling(True)
        return idle

    def keep_histograms(self) -> Histograms:
        """From now on, if not already."""
        if self.histograms is None:
            self.histograms = Histograms()
        return self.histograms

    # -- tracing

    def trace(self, tracers: tuple[Tracer, ...]) -> None:
        """From now on these are told, and no others."""
        self.tracing = Tracing(self.options.name, tracers) if tracers else None
        self.loan_tracing = self.tracing if self.tracing and self.tracing.wants(("acquire", "release")) else None
        with self.mutex:
            connections = [slot.conn for slot in self.ledger.slots if slot.conn is not None]
        for conn in connections:
            self.trace_statements(conn)

    def trace_statements(self, conn: Connection) -> None:
        """Let the cursors that the connection makes from now on tell of their statements, if anybody wants to know."""
        if self.tracing is not None and self.tracing.wants(STATEMENTS):
            conn._attach_tracing(self.tracing, TracedStatements)
        elif conn._tracing is not None:
            conn._attach_tracing(None)

    def note_eviction(self, conn: Connection, reason: str) -> None:
        """The connection isn't lent again, because of what was found."""
        self.stats.connections_evicted += 1
        self.tell_later("evicted", conn, reason)

    def note_leak(self, conn: Connection, reason: str) -> None:
        """The connection was not returned in time, or not at all."""
        self.stats.connections_leaked += 1
        self.tell_later("leaked", conn, reason)

    def tell_later(self, name: str, conn: Connection | None, reason: str) -> None:
        """Tell the tracers in a task of its own: they may suspend, and the caller has a slot in hand, or is the hub."""
        if self.tracing is not None and self.tracing.wants((name,)):
            hub().spawn(self.tracing.tell, name, conn, reason)

    # -- moves of the table

    def pass_on(self, slot: Slot) -> None:
        """A usable connection: to the head of the line, or to the idle ones."""
        with self.mutex:
            if slot not in self.ledger.slots:  # the pool has begun anew
                return
            slot.gate.rest()
            is_wanted = self.ledger.give(slot)
        if not is_wanted:
            self.close_connection(slot, slot.conn)

    def close_connection(self, slot: Slot, conn: Connection) -> Remains | None:
        """`close_quietly()` the slot's connection, and tell its opener. Only an opener's way to do it may suspend."""
        if self.opener is not None:
            conn._gate.wake()
            self.opener.close(slot, conn)
        return close_quietly(conn)

    def add(self, slot: Slot, conn: Connection) -> bool:
        """A new connection for a slot that was OPENING, which has its settings already. False: it is out of date."""
        conn._belongs_to(slot)
        with self.mutex:
            if slot.generation != self.generation:
                return False
            self._note_opened(slot, conn)
            slot.gate.rest()
            is_wanted = self.ledger.give(slot)
            if not self.is_closed:
                self.grow()
            if self.is_filled():
                self.end_filling(True)
        if not is_wanted:
            self.close_connection(slot, conn)
        return True

    def _note_opened(self, slot: Slot, conn: Connection) -> None:
        now = self.now()
        lifetime = self.options.max_lifetime * random.uniform(0.95, 1.0)  # lest they all expire together
        slot.opened(conn, now, now + lifetime, now + self.options.unchecked_seconds)

    def exchange(self, slot: Slot, conn: Connection) -> None:
        """The borrower of a slot has opened another connection in the place of its own, which is closed."""
        slot.begin(self.generation)
        slot.note_settings(conn, is_bare=True)
        conn._belongs_to(slot)
        self._note_opened(slot, conn)

    def let_go(self, slot: Slot) -> None:
        """The borrower keeps the connection for himself: the slot is free for another one."""
        slot.conn._belongs_to(None)
        slot.forget_loan()
        with self.mutex:
            self.ledger.move(slot, CLOSED)
            if not self.is_closed:
                self.ledger.replace_lost()

    def discard(self, slot: Slot, is_silent: bool) -> Remains | None:
        """Close the connection. None: a slot is reserved for another one, if it's needed; `opening.replace()` opens it.
        Otherwise the slot is kept until the server's process has ended, lest there be more than `max_size`; but not for
        one that says nothing."""
        remains = self.close_connection(slot, slot.conn)
        with self.mutex:
            if slot not in self.ledger.slots:  # the pool has begun anew
                return None
            if remains is not None and not is_silent and not self.is_closed and self.ledger.max_size < sys.maxsize:
                self.ledger.move(slot, ENDING)
                return remains
            self.ledger.move(slot, CLOSED)
            if not self.is_closed:
                self.ledger.replace_lost()
        return None

    def ended(self, slot: Slot) -> None:
        """The server's process for an ENDING slot has ended."""
        with self.mutex:
            if slot.state is ENDING and slot in self.ledger.slots:  # else it was closed, or forked, meanwhile
                self.ledger.move(slot, CLOSED)
                self.ledger.replace_lost()

    def grow(self) -> None:
        """[mutex] Reserve what is asked for; `opening.start_workers()` opens it."""
        self.ledger.grow(self.options.num_workers, self.workers.hanging(self.now()))

    def drain(self) -> list[Slot]:
        """[mutex] What is there now isn't lent again. Returns the slots whose connections are to be closed."""
        self.generation += 1
        return self.ledger.remove_idle()

    def note_pooler(self, mode: str) -> None:
        """That's what there is in front of the server."""
        self.pooler = mode

    def lead_to(self, server: object) -> None:
        """A new connection led to that server."""
        self.server = server

    def suspect_all(self) -> None:
        """A connection was found lost: those that are older need a ping before they're lent again."""
        with self.mutex:
            for slot in self.ledger.slots:
                slot.suspect()

    # -- who waits for what

    def is_filled(self) -> bool:
        """[mutex] There are `min_size` connections."""
        return self.ledger.open_count >= self.ledger.min_size

    def end_filling(self, outcome: object) -> None:
        """[mutex] Wake those who wait until the pool is filled."""
        while self.when_filled:
            self.when_filled.pop().set(outcome)

    def note_rest(self) -> None:
        """[mutex] Nothing is being reset any more?"""
        while self.when_at_rest and not self.ledger.resetting:
            self.when_at_rest.pop().set()

    # -- what its slots know of it

    @property
    def close_returns(self) -> bool:
        return self.options.close_returns

    def give_back(self, slot: Slot) -> None:
        self._give_back(self, slot)

    def take_closed(self, slot: Slot) -> None:
        if self.opener is None:  # else its user puts another one in the place: exchange()
            self._give_back(self, slot)
