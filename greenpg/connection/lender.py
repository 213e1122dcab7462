"""What a connection knows of the pool it belongs to."""

from __future__ import annotations

from typing import Protocol


class Lender(Protocol):
    """Has the connection for its own, and lends it."""

    @property
    def close_returns(self) -> bool:
        """The connection is lent, and `close()` is to give it back."""

    def condemn(self) -> None:
        """The connection isn't to be lent again, whoever gives it back."""

    def take_closed(self) -> None:
        """The connection has been closed; its borrower, if there is one, doesn't have it any more."""

    def give_back(self) -> None:
        """Instead of closing it. Suspends as the pool's `putconn()` does."""
