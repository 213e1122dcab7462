"""What is left at the server of a connection that this side has given up.

A kill or a timeout must come out at once, and a statement of its connection must not go on, nor count for nothing while
it does. So the connection is closed without its socket: the socket goes to a task of greenpg's own, which cancels what
runs (never a COMMIT), and waits until the server has hung up, that is, until its process has ended. A pool keeps the
connection's slot for so long.
"""

from __future__ import annotations

import _socket  # the module `socket` may be monkey-patched: its recv() would wait
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import psycopg2

from ..errors import is_interruption
from ..hubs import hub
from .cancel import CancelRequest, shut_down
from .forking import keep_from_children

logger = logging.getLogger("greenpg.connection")

#: Where the connection is no `Connection`, which has attributes of these names.
INTERRUPTION_GRACE = 0.3
ENDING_TIMEOUT = 60.0

#: Seconds that a server that says nothing, not even that it was cancelled, is believed to be there.
SILENCE_TIMEOUT = 5.0

#: Seconds that a server gets to hang up when all is said: it takes a millisecond, if it is still there.
GOODBYE_TIMEOUT = 1.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_READ_BYTES = 64 * 1024


class Remains:
    """A server process that has not ended yet, as far as this side knows."""

    def __init__(self, conn: Any, *, cancels: bool, is_parting: bool = False, is_blind: bool = False) -> None:
        self._description = str(conn)
        #: Nothing runs: all is said, and nobody need know if the server doesn't hang up.
        self._is_parting = is_parting
        self._limit = GOODBYE_TIMEOUT if is_parting else float(getattr(conn, "ending_timeout", ENDING_TIMEOUT))
        #: Our side of the socket is shut: it doesn't tell any more when the server hangs up.
        self._is_blind = is_blind
        self._request: CancelRequest | None = None
        if cancels:
            try:
                self._request = CancelRequest(conn)
            except psycopg2.Error:  # it is lost already
                pass
        self._socket = _socket.socket(fileno=os.dup(conn.fileno()))
        self._socket.setblocking(False)
        self._waiter = hub().fd_waiter(self._socket.fileno())
        keep_from_children(self)
        self._pid = os.getpid()
        self._has_answered = False
        self._calls: list[Callable[[], object]] = []
        #: Whether the server's process has ended, or is not waited for any longer.
        self.is_over = False

    def fileno(self) -> int:
        """The socket's descriptor, -1 when it is over."""
        return self._socket.fileno()

    def when_over(self, call: Callable[[], object]) -> None:
        """Call the function, which must not suspend, at the end, or now if it has come. Doesn't suspend."""
        self._calls.append(call)
        if self.is_over:
            self._tell()

    def _tell(self) -> None:
        while self._calls:
            self._calls.pop()()

    def see_to_the_end(self) -> None:
        """What the task does."""
        problem = ""
        try:
            problem = self._wait_for_the_end()
        finally:
            self._waiter.close()
            self._socket.close()
            self._request = None
            self.is_over = True
            self._tell()
        if problem and not self._is_parting:
            logger.warning("the server has not ended what ran on %s %s", self._description, problem)

    def _wait_for_the_end(self) -> str:
        """Returns what went wrong."""
        started = time.monotonic()
        pause = _FIRST_PAUSE
        problem = ""
        while os.getpid() == self._pid:  # else it is the parent's
            limit = self._limit
            if self._is_blind or (self._request is not None and not self._has_answered):
                limit = min(limit, SILENCE_TIMEOUT)
            give_up_at = started + limit
            if time.monotonic() >= give_up_at:
                return f"within {limit:g} s" + (problem and f": {problem}")
            if self._request is None:
                until = give_up_at
            else:
                # Again and again: a request that comes before the statement finds nothing to cancel.
                problem = self._cancel(self._request, give_up_at)
                until = min(time.monotonic() + pause, give_up_at)
                pause = min(pause * 2, _LONGEST_PAUSE)
            if self._has_ended(until):
                break
        return ""

    def _cancel(self, request: CancelRequest, deadline: float) -> str:
        """Returns what went wrong."""
        try:
            request.send(deadline)
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            return str(error)
        finally:
            # Only now: a pooler forgets who hangs up, and the cancel would find nobody.
            self._hang_up()
        return ""

    def _hang_up(self) -> None:
        if os.getpid() == self._pid:
            try:
                self._socket.shutdown(_socket.SHUT_WR)
            except OSError:  # the server was faster
                pass

    def _has_ended(self, until: float) -> bool:
        """Drop what the server says. False: it has not hung up by then."""
        if self._is_blind:
            hub().sleep(max(until - time.monotonic(), 0.0))
            return False
        while self._waiter.wait_read(until):
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return True
            if not data:
                return True
            if not self._has_answered:
                self._has_answered = True
                self._hang_up()  # a COMMIT is over now
        return False


def give_up(conn: Any, *, cancels: bool = True, reason: str | None = None) -> None:
    """Take the socket away from the connection, which is to be closed at once, and let a task end what runs at the
    server; `reason` is logged. Doesn't suspend.

    psycopg2 gets a socket that is connected to nothing in its place. The task inside of the connection calls this, or
    nobody is inside.
    """
    gate = getattr(conn, "_gate", None)
    if gate is not None and gate.remains is not None:
        return  # it has been done, and psycopg2 has yet to close the connection
    try:
        remains = Remains(conn, cancels=cancels)
    except (OSError, psycopg2.Error):  # closed already
        return
    if gate is not None:
        gate.close_waiter()
        gate.leave_behind(remains)
    nowhere = _socket.socket(_socket.AF_UNIX)
    try:
        os.dup2(nowhere.fileno(), conn.fileno(), inheritable=False)
    except psycopg2.InterfaceError:  # a native thread has closed it since
        pass
    finally:
        nowhere.close()
    hub().spawn(remains.see_to_the_end)
    if reason is not None:
        hub().spawn(logger.warning, "closing %s, %s", str(conn), reason)  # logging may suspend


def say_goodbye(conn: Any) -> Remains | None:
    """Close a connection on which nothing runs; what tells when its server process has ended, None if it has.
    Doesn't suspend.

    Also for one that is closed already.
    """
    gate = conn._gate
    if not conn.closed:
        try:
            gate.leave_behind(remains := Remains(conn, cancels=False, is_parting=True))
        except (OSError, psycopg2.Error):  # no descriptor is left
            conn._close()
            return None
        conn._close()
        hub().spawn(remains.see_to_the_end)
    return None if gate.remains is None or gate.remains.is_over else gate.remains


def give_up_from_outside(conn: Any, *, cancels: bool) -> None:
    """The same while a task waits in the connection: it leaves at once, since both directions of the socket are shut.
    Doesn't suspend."""
    try:
        remains = Remains(conn, cancels=cancels, is_blind=True)
    except (OSError, psycopg2.Error):
        return
    conn._gate.leave_behind(remains)
    shut_down(conn)
    hub().spawn(remains.see_to_the_end)


def grace_ends_at(conn: Any) -> float:
    """Until when an exception may be held back in order to save the connection, by `time.monotonic()`."""
    return time.monotonic() + float(getattr(conn, "interruption_grace", INTERRUPTION_GRACE))
