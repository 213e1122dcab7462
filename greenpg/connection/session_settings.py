"""What psycopg2 and greenpg keep of a session, noted when a connection is new, to be put back for its next borrower."""

from __future__ import annotations

from typing import Any, NamedTuple


class SessionSettings(NamedTuple):
    """The settings of one connection at one time."""

    isolation_level: int | None
    readonly: bool | None
    deferrable: bool | None
    autocommit: bool
    encoding: str
    cursor_factory: Any
    statement_deadline: float | None
    prepare_threshold: int | None
    notices: Any
    notifies: Any

    @classmethod
    def of(cls, conn: Any) -> SessionSettings:
        """As they are now. Doesn't suspend."""
        return cls(
            conn.isolation_level,
            conn.readonly,
            conn.deferrable,
            conn.autocommit,
            conn.encoding,
            conn.cursor_factory,
            conn.statement_deadline,
            conn.prepare_threshold,
            conn.notices,
            conn.notifies,
        )

    @property
    def puts_more_into_begin(self) -> bool:
        """psycopg2 begins with more than "BEGIN": isolation level, readonly or deferrable."""
        return not self.isolation_level is self.readonly is self.deferrable is None

    def put_back(self, conn: Any) -> None:
        """Suspends for what the server has to be told: another client encoding; the others in autocommit only.

        The connection must not be in a transaction.
        """
        if conn.encoding != self.encoding:
            conn.set_client_encoding(self.encoding)
        if (conn.isolation_level, conn.readonly, conn.deferrable, conn.autocommit) != self[:4]:
            if self.autocommit:  # only what differs when autocommit is turned on is told to the server
                conn._set_session("default", "default", "default", autocommit=False)
            characteristics = ("default" if value is None else value for value in self[:3])
            conn._set_session(*characteristics, autocommit=self.autocommit)
        conn.cursor_factory = self.cursor_factory
        conn.prepare_threshold = self.prepare_threshold
        conn._gate.forget_deadlines()
        if self.statement_deadline is not None:
            conn.statement_deadline = self.statement_deadline
        for name, messages in (("notices", self.notices), ("notifies", self.notifies)):
            del messages[:]
            setattr(conn, name, messages)
