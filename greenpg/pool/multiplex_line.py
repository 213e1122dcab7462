"""One connection that many tasks' statements share, and the task that drives it.

Whoever has a statement queues it; the line's task sends what has come in one turn of the loop in one write, each with
a Sync of its own, reads the answers and hands them out. It alone touches libpq and waits for the connection, so nobody
who is killed can harm anybody else's statement.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..connection.bulk.channel import ConnectionLost
from ..connection.connection import Connection
from ..connection.interrupting import cut_off
from ..connection.pipeline.channel import PipelineChannel
from ..connection.pipeline.statement import PipelinedStatement, affected_rows
from ..errors import is_interruption
from ..hubs import Event, hub
from ..libpq import COMMAND_OK, TUPLES_OK, command_of
from ..libpq.pipeline import Address, Rows
from .core import PoolCore
from .lending import lend
from .returning import give_back
from .slot import Slot

logger = logging.getLogger("greenpg.pool")

#: Behind a statement that runs for longer, in seconds, nothing is queued.
SLOW = 0.02
#: So long a line waits for more before it gives its connection back, and so long it keeps it at most.
IDLE, LONGEST_LOAN = 0.05, 1.0


class Request:
    """One task's statement. A lean `PipelinedStatement`, which it makes only of what has failed."""

    #: Whether it was sent, and has been answered.
    is_sent = is_over = False
    #: The task has been killed, or has no more time.
    is_abandoned = False
    rows: Rows | None = None
    rowcount = -1
    #: If there is no result: why.
    failed: PipelinedStatement | None = None

    def __init__(self, query: bytes, line: Line, event: Event) -> None:
        self.query = query
        self.event = event
        self._line = line

    def answer(self, address: Address, status: int) -> None:
        """Take the PGresult. Doesn't suspend."""
        if status == TUPLES_OK:
            self.rows = rows = Rows(address)
            self.rowcount = rows.count
        elif status == COMMAND_OK:
            self.rowcount = affected_rows(command_of(address))
        else:
            self.failed = failed = PipelinedStatement(None, self.query, None, self._line)
            failed.answer(address, status)
            if failed.is_fatal:
                self._line.close()
        self.is_over = True
        self.event.set()

    def lose(self, reason: str) -> None:
        """The connection was lost before the answer."""
        self.failed = PipelinedStatement(None, self.query, None, self._line)
        self.failed.lose(reason)
        self.is_over = True
        self.event.set()


class Line:
    """What several native threads touch is under the mutex."""

    def __init__(self) -> None:
        self._now = hub().now
        self._mutex = hub().mutex()
        #: What is to be sent.
        self._queue: deque[Request] = deque()
        #: What is under way.
        self._pending: Any = ()
        #: Since when the oldest statement is the oldest.
        self._oldest_since = 0.0
        #: What the task waits for while there is nothing to do.
        self._wake: Event | None = None
        self._is_stopping = False
        self._when_ended: list[Event] = []
        #: There is a task that has, or gets, a connection.
        self.is_running = False
        #: It takes statements.
        self.is_open = False
        self.slot: Slot | None = None
        #: Of the present connection: it merges arguments and casts values.
        self.cursor: Any = None

    # -- whose statement it is

    @property
    def connection(self) -> Connection:
        """Of which it is the line."""
        conn: Connection = self.cursor.connection
        return conn

    def wait_for(self, statement: PipelinedStatement) -> None:
        """Requests wait by their events."""

    def note_failed(self, statement: PipelinedStatement) -> None:
        """An error is its own statement's."""

    def close(self) -> None:
        """The server ends the connection."""
        self.is_open = False

    def load(self, now: float) -> int | None:
        """How many statements it has; None: it takes no more now."""
        if not self.is_open:
            return None
        load = len(self._pending) // 2 + len(self._queue)  # with its Sync each
        return None if load and now - self._oldest_since > SLOW else load

    def send(self, request: Request, now: float) -> bool:
        """Have it sent. False: the line isn't open any more. Doesn't suspend."""
        mutex = self._mutex
        mutex.acquire()  # `with` takes half as long again
        try:
            if not self.is_open:
                return False
            if not (self._queue or self._pending):
                self._oldest_since = now
            self._queue.append(request)
            wake, self._wake = self._wake, None
        finally:
            mutex.release()
        if wake is not None:
            wake.set()
        return True

    def stop(self, event: Event) -> None:
        """Finish what is under way, and give the connection back; the event is set then. Doesn't suspend."""
        with self._mutex:
            self._is_stopping = True
            if not self.is_running:
                event.set()
                return
            self._when_ended.append(event)
            wake, self._wake = self._wake, None
        if wake is not None:
            wake.set()

    # -- the line's task

    def serve(self, core: PoolCore, is_plain: Callable[[Slot], bool]) -> None:
        """What it does: borrows a connection while there are statements for it."""
        try:
            while self._serve_loan(core, is_plain):
                pass
        except Exception as error:
            if is_interruption(error):
                raise
            logger.info("pool %r: a multiplexed connection is given up: %s", core.options.name, error)
        finally:
            with self._mutex:
                self.is_running = False
                for event in self._when_ended:
                    event.set()

    def _serve_loan(self, core: PoolCore, is_plain: Callable[[Slot], bool]) -> bool:
        """True: it's to go on with another loan, since connections aren't kept for longer than others keep them."""
        slot = lend(core, None)
        try:
            conn = slot.conn
            if not is_plain(slot):
                return False
            with conn._gate.occupied():
                channel = PipelineChannel(conn, conn._gate.waiter_of(conn))
                channel.enter()
                try:
                    with self._mutex:
                        self.slot, self.cursor, self._pending = slot, extensions.cursor(conn), channel.pending
                        self.is_open = True
                    goes_on = self._run(core, channel, core.now() + LONGEST_LOAN)
                    channel.leave()
                except BaseException as exception:
                    self._end(conn, channel, exception)
                    raise
            conn.poll()  # psycopg2 looks for notices
        finally:
            give_back(core, slot)
        return goes_on

    def _run(self, core: PoolCore, channel: PipelineChannel, ends_at: float) -> bool:
        pending: Any = channel.pending
        while True:
            count = len(pending) + 2 * self._send_queued(channel)  # each with its Sync
            channel.take_in()
            channel.breathe()
            now = core.now()
            if len(pending) < count:  # another one is the oldest
                self._oldest_since = now
            is_over = self._is_stopping or core.is_closed
            if now >= ends_at or is_over or not self.is_open:
                with self._mutex:
                    self.is_open = False
                    if not (pending or self._queue):
                        return now >= ends_at and not is_over
            if pending:
                if now - self._oldest_since > SLOW and self._is_forsaken(pending):
                    channel.end(GeneratorExit(), cancels=True)
                else:
                    channel.wait(now + SLOW)
            elif not self._queue and not self._wait_for_more():
                return False

    def _send_queued(self, channel: PipelineChannel) -> int:
        """How many have been sent."""
        queue, count = self._queue, 0
        while queue:
            request = queue.popleft()
            if not request.is_abandoned:
                request.is_sent = True
                channel.send_alone(request)
                count += 1
        if count:
            channel.flush()
        return count

    def _is_forsaken(self, pending: Any) -> bool:
        """Nobody waits for any of them; then none is added, and they can be cancelled."""
        with self._mutex:
            if self._queue or not all(each is None or each.is_abandoned for each in pending):
                return False
            self.is_open = False
            return True

    def _wait_for_more(self) -> bool:
        """False: nothing has come, nor does it any more."""
        wake = hub().event()
        with self._mutex:
            if self._queue:
                return True
            self._wake = wake
        if not wake.wait(self._now() + IDLE):
            with self._mutex:
                self._wake = None
                if not self._queue:
                    self.is_open = False
                    return False
        return True

    def _end(self, conn: Connection, channel: PipelineChannel, exception: BaseException) -> None:
        """The connection is lost, or the task is ended from outside."""
        reason = "the connection was lost before the answer came"
        with self._mutex:
            self.is_open = False
        if isinstance(exception, ConnectionLost):
            try:
                conn.poll()
            except psycopg2.Error as error:
                reason = str(error).strip()
        if not conn.closed:
            cut_off(conn)
        for request in channel.pending:
            if isinstance(request, Request) and not request.is_over:
                request.lose(reason)
        channel.pending.clear()
        while self._queue:
            self._queue.popleft().event.set()  # not sent: it goes elsewhere
