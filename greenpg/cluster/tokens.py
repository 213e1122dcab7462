"""How far the server's log had come after a task's last write: what it reads elsewhere has to be at least as new."""

from __future__ import annotations

from contextvars import ContextVar


def position_of(token: str) -> int:
    """A position in PostgreSQL's log, "16/B374D848", as a number. ValueError if it isn't one."""
    high, slash, low = token.partition("/")
    if not slash:
        raise ValueError(f"a token is a position in PostgreSQL's log, like '16/B374D848', not {token!r}")
    return (int(high, 16) << 32) | int(low, 16)


def token_of(position: int) -> str:
    """The other way around."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


#: Further than any log will come.
_SOMEWHERE = 1 << 64
_UNKNOWN = "?"


class Tokens:
    """Of each task: greenlets have contexts of their own, as native threads do."""

    def __init__(self) -> None:
        self._position: ContextVar[int] = ContextVar("greenpg_last_write", default=0)

    def note(self, token: str | None) -> None:
        """The running task has written that; None: or more, nobody knows how far."""
        self._position.set(_SOMEWHERE if token is None else position_of(token))

    def note_position(self, position: int) -> None:
        """The running task has written no more than that."""
        self._position.set(position)

    @property
    def is_unknown(self) -> bool:
        """Whether the running task has written, and it isn't known how far: no replica is new enough then."""
        return self._position.get() == _SOMEWHERE

    @property
    def text(self) -> str:
        """What `take()` understands; "" if the running task has written nothing."""
        position = self._position.get()
        return "" if not position else _UNKNOWN if position == _SOMEWHERE else token_of(position)

    def take(self, text: str) -> None:
        """The running task reads what that one has written. ValueError for what no `text` was."""
        self._position.set(_SOMEWHERE if text == _UNKNOWN else position_of(text) if text else 0)

    def forget(self) -> None:
        """The running task reads anything."""
        self._position.set(0)

    @property
    def position(self) -> int:
        """Of the running task's last write; 0 if there was none."""
        return self._position.get()
