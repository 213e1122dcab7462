"""The traffic of a pipeline, on libpq's pipeline mode."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import psycopg2

from ...hubs import FdWaiter
from ...libpq import END, LOST, MORE, function
from ...libpq.pipeline import PipelineReader, PipelineWriter
from ..bulk.channel import Channel, ConnectionLost
from ..guarded_connection import GuardedConnection
from ..interrupting import end_on_server
from .statement import PipelinedStatement


class HasQuery(Protocol):
    """A statement that is sent."""

    @property
    def query(self) -> bytes: ...


#: So many bytes are sent at once; what is less waits for more.
FLUSH_BYTES = 64 * 1024
#: What a statement is in the protocol, beside its text.
_FRAME_BYTES = 48


class PipelineChannel(Channel):
    """Statements go out, answers come in. The connection is at rest when `enter()` is called, and after `leave()`."""

    what = "the pipeline"

    def __init__(self, conn: GuardedConnection, waiter: FdWaiter) -> None:
        super().__init__(conn, waiter)
        #: Statements without an answer, in their order; None is a Sync.
        self.pending: deque[Any] = deque()
        self._writer = PipelineWriter(self._pgconn)
        self._reader = PipelineReader(self._pgconn, self.pending)
        self._unsent_bytes = 0
        #: Something was sent since the last Sync. Until that is answered, libpq doesn't know of the transaction.
        self.needs_sync = False

    def enter(self) -> None:
        """Raises `psycopg2.OperationalError` if the connection isn't at rest."""
        self._set_nonblocking()
        if not self._writer.enter():
            raise psycopg2.OperationalError("the connection is not at rest: it can't go into pipeline mode")
        self._pacer.start()

    def leave(self) -> None:
        """All has been answered."""
        self._writer.leave()

    @property
    def is_aborted(self) -> bool:
        """As far as it is known: the server passes over whatever is sent before the next Sync."""
        return self._reader.is_aborted

    # -- out; doesn't suspend

    def send(self, statement: PipelinedStatement) -> None:
        """Into libpq's buffer, at least."""
        query = statement.query
        if not self._writer.send(query):
            raise ConnectionLost
        self.pending.append(statement)
        self.needs_sync = True
        self._unsent_bytes += len(query) + _FRAME_BYTES

    def sync(self) -> None:
        """What was sent since the last Sync ends here: it fails together, and an error ends here."""
        if not self._writer.sync():
            raise ConnectionLost
        self.pending.append(None)
        self.needs_sync = False

    def send_alone(self, statement: HasQuery) -> None:
        """With a Sync of its own."""
        if not self._writer.send_alone(statement.query):
            raise ConnectionLost
        pending = self.pending
        pending.append(statement)
        pending.append(None)

    @property
    def is_full(self) -> bool:
        """It's time to flush."""
        return self._unsent_bytes >= FLUSH_BYTES

    # -- waits; all suspend

    def take_in(self) -> None:
        """Hand out the answers that have come. Doesn't suspend."""
        self._take_in()
        while self._checked(self._reader.read()) == MORE:
            pass

    def limit(self, deadline: float | None) -> None:
        """Of what is waited for next."""
        self._deadline = deadline
        self._pacer.start()

    def breathe(self) -> None:
        """Let other tasks run, if it's time."""
        self._pacer.pause()

    def flush(self) -> None:
        """Until the system has taken all."""
        self._unsent_bytes = 0
        self._flush()

    def read_until(self, statement: PipelinedStatement) -> None:
        """Until it's answered."""
        if self.needs_sync and not self._writer.request_answers():
            raise ConnectionLost
        self.flush()
        while not statement.is_over:
            if self._read() == END:
                return
            if not statement.is_over:
                self._wait_for_more()

    def finish(self) -> None:
        """Until all is answered. Ends with a Sync."""
        self.end_group()
        self.flush()
        while self._read() != END:
            self._wait_for_more()

    def end_group(self) -> None:
        """A Sync, if the last thing wasn't one."""
        if self.needs_sync:
            self.sync()

    def end(self, exception: BaseException, *, cancels: bool) -> None:
        """Bring all to its end on the server, whatever that is, because of the exception."""
        give_up_at = self._give_up_later(exception)
        self.end_group()
        self.flush()
        end_on_server(self._conn, self, give_up_at, cancels=cancels)

    def is_over(self) -> bool:
        """Take in what has come. Doesn't suspend."""
        self._take_in()
        state = MORE
        while state == MORE:
            state = self._reader.read()
        return self._checked(state) == END

    def wait(self, until: float) -> object:
        return self._waiter.wait_read(until)

    def _read(self) -> int:
        """Hand out what has come."""
        state = MORE
        while state == MORE:
            state = self._reader.read()
            self._breathe()
        return self._checked(state)

    def _wait_for_more(self) -> None:
        self._wait(self._waiter.wait_read, None)
        self._consume()

    def _consume(self) -> None:
        self._take_in()
        if self._checked(self._reader.read()) == MORE:  # while it's being sent, too: answers would pile up
            self._breathe()

    def _take_in(self) -> None:
        if not function("PQconsumeInput")(self._pgconn):
            self._reader.read()  # the server may have said why
            raise ConnectionLost

    @staticmethod
    def _checked(state: int) -> int:
        if state == LOST:
            raise ConnectionLost
        return state
