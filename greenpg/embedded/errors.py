"""The exception of the embedded server."""

from __future__ import annotations


class EmbeddedServerError(RuntimeError):
    """The embedded server can't do what it was asked for; the text says why and what to do about it.

    `log` holds the last lines of PostgreSQL's (or initdb's) output that belong to the failure; they are in the
    text, too. It is empty when the failure has nothing to do with them.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\nThe log says:\n{log}" if log else message)
        self.log = log
