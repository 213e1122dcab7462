"""`Slot`: the right to one server connection, and what the pool knows of that connection."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, Protocol

from ..connection.connection import Connection
from ..connection.gate import BusyGate
from ..connection.session_settings import Attachments, SessionSettings
from ..hubs import hub


class SlotState(enum.IntEnum):  # whose hash is C's
    """Who may touch a slot; ledger.py has the table."""

    OPENING = enum.auto()
    IDLE = enum.auto()
    LENT = enum.auto()
    RESETTING = enum.auto()
    ENDING = enum.auto()
    CLOSED = enum.auto()


OPENING, IDLE, LENT, RESETTING, ENDING, CLOSED = SlotState

TRANSITIONS = {
    OPENING: frozenset({IDLE, LENT, CLOSED}),
    IDLE: frozenset({LENT, RESETTING, ENDING, CLOSED}),
    LENT: frozenset({IDLE, LENT, RESETTING, ENDING, CLOSED}),
    RESETTING: frozenset({IDLE, LENT, ENDING, CLOSED}),
    ENDING: frozenset({CLOSED}),
    CLOSED: frozenset[SlotState](),
}


#: The generation of a connection that isn't to be lent again.
_CONDEMNED = -1


def _doubted(generation: int) -> int:
    """The number, of no pool, that a generation has while a connection is in doubt; and back again."""
    return 2 * _CONDEMNED - generation


class Lending(Protocol):
    """What a slot knows of the pool that has lent it."""

    @property
    def close_returns(self) -> bool:
        """`conn.close()` is to give connections back."""

    def give_back(self, slot: Slot) -> None:
        """Take the slot back. Suspends as `putconn()` does."""

    def take_closed(self, slot: Slot) -> None:
        """Take the slot back, whose connection has been closed."""


class Slot:
    """The right to one server connection. It is its connection's `Lender` (connection/lender.py)."""

    __slots__ = (
        "bare_attachments",
        "bare_settings",
        "closed_in",
        "conn",
        "expires_at",
        "forget_holder",
        "gate",
        "generation",
        "holder",
        "is_suspect",
        "lent_at",
        "lent_by",
        "needs_reset",
        "notices",
        "notifies",
        "opened_at",
        "puts_more_into_begin",
        "record",
        "server",
        "settings",
        "stack",
        "state",
        "taken_at",
        "unchecked_until",
    )

    def __init__(self) -> None:
        self.state = OPENING
        # Nobody asks for what is None while the slot is OPENING.
        self.conn: Connection = None  # type: ignore[assignment]
        #: The connection's.
        self.gate: BusyGate = None  # type: ignore[assignment]
        #: The pool's generation when the connection was begun; see `condemn()`.
        self.generation = _CONDEMNED
        # All times by `hub().now()`.
        self.opened_at = 0.0
        self.expires_at = 0.0
        #: Until then it's lent without a look whether it is alive.
        self.unchecked_until = 0.0
        #: Connections of its age were found dead: it needs a ping.
        self.is_suspect = False
        #: Its borrower has left something in the session, which is taken back whatever the pool's `reset` is.
        self.needs_reset = False
        #: While somebody has it: who has lent it, since when, and a reference (`hub().hold()`) to the
        #: task it was lent to.
        self.lent_by: Lending | None = None
        self.lent_at = 0.0
        #: The `lent_at` of the borrower who has closed the connection.
        self.closed_in: float | None = None
        self.holder: Callable[[], object | None] | None = None
        #: Code and line that called getconn(), and what makes the hub forget that the task's end is of interest.
        self.taken_at: tuple[CodeType, int] | None = None
        self.forget_holder: Callable[[], object] | None = None
        #: What psycopg2 keeps of the session for each new borrower, and what it kept before `configure`.
        self.settings: SessionSettings = None  # type: ignore[assignment]
        self.bare_settings: SessionSettings = None  # type: ignore[assignment]
        self.bare_attachments: Attachments = None  # type: ignore[assignment]
        #: Of these settings, for each single statement.
        self.puts_more_into_begin = False
        #: The connection's lists of messages, unless its `_has_altered_settings`: a property takes longer to ask.
        self.notices: Sequence[Any] = ()
        self.notifies: Sequence[Any] = ()
        #: Host, address and port of its server.
        self.server = ("", "", "")
        #: What the pool's opener (core.py) keeps of the connection.
        self.record: Any = None
        #: The stack where it was taken, if leaks are looked for.
        self.stack: list[str] | None = None

    def begin(self, generation: int) -> None:
        """An attempt to connect begins."""
        self.generation = generation

    def note_settings(self, conn: Connection, is_bare: bool) -> None:
        """What each borrower is to find; at first, before the pool's `configure`, what a session reset goes back to."""
        self.settings = conn._settings()
        self.puts_more_into_begin = self.settings.puts_more_into_begin
        if is_bare:
            self.bare_settings = self.settings
            self.bare_attachments = conn._attachments()
        self.notices, self.notifies = conn.notices, conn.notifies

    def opened(self, conn: Connection, now: float, expires_at: float, unchecked_until: float) -> None:
        """It has a connection now."""
        self.conn = conn
        self.gate = conn._gate
        self.opened_at = now
        self.expires_at = expires_at
        self.unchecked_until = unchecked_until

    def leads_to(self, server: tuple[str, str, str]) -> None:
        """That's where its connection is made to."""
        self.server = server

    def proved(self) -> None:
        """A ping has come back."""
        self.is_suspect = False
        self.generation = self.true_generation

    def condemn(self) -> None:
        """The connection isn't to be lent again, but replaced when it comes back."""
        self.generation = _CONDEMNED

    def want_reset(self) -> None:
        """The session is to be reset when the connection comes back."""
        self.needs_reset = True
        self.conn._note_altered()

    def was_reset(self) -> None:
        """It has been; or won't be any more."""
        self.needs_reset = False

    def suspect(self) -> None:
        """The connection needs a ping before it is lent again."""
        self.is_suspect = True
        self.unchecked_until = 0.0

    def doubt(self) -> None:
        """The server may have stopped taking writes: it is to be asked before the connection is lent again."""
        self.suspect()
        if self.generation > _CONDEMNED:
            self.generation = _doubted(self.generation)

    @property
    def is_doubted(self) -> bool:
        return self.generation < _CONDEMNED

    @property
    def true_generation(self) -> int:
        """The generation, without the doubts."""
        return _doubted(self.generation) if self.is_doubted else self.generation

    def describe_holder(self) -> str:
        """Who has it, for messages."""
        task = None if self.holder is None else self.holder()
        return "a task that is gone" if task is None else hub().describe(task)

    def describe_place(self) -> str:
        """Where in the program getconn() took it, for messages; empty if that isn't known."""
        if self.forget_holder is None or self.taken_at is None:
            return ""
        code, line = self.taken_at
        return f", taken in {code.co_filename}, line {line} ({code.co_name})"

    def forget_loan(self) -> None:
        """Nobody has it any more, or not by lending."""
        self.lent_by = self.holder = None
        self.lent_at = 0.0

    def watch_end(self, forget: Callable[[], object] | None) -> None:
        """The end of a task is of interest, until the connection is back; `forget` takes that back."""
        self.forget_holder = forget

    # -- the connection's Lender

    def take_closed(self) -> None:
        """The borrower has closed the connection: the slot is for another one."""
        if self.lent_by is not None:
            self.closed_in = self.lent_at
            self.lent_by.take_closed(self)

    @property
    def close_returns(self) -> bool:
        """`conn.close()` is to give the connection back."""
        return self.lent_by is not None and self.lent_by.close_returns

    def give_back(self) -> None:
        """Instead of closing it. Suspends as `putconn()` does."""
        assert self.lent_by is not None
        self.lent_by.give_back(self)
