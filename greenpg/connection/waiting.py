"""The wait callback: what psycopg2 calls whenever it would block.

psycopg2 holds the connection's mutex while it calls. Whoever calls into the same connection meanwhile would block the
whole native thread, hub and all; that's why the waiting task is noted on the connection (`WaitState._owner`), and why
`Connection` and `Cursor` look there before they call psycopg2.

An exception that leaves the callback makes psycopg2 close the connection, and the server goes on with the statement.
So an exception that is thrown into a wait is held back: the statement is cancelled (interrupting.py), the callback
returns as if nothing had happened, and the guarded call (guarding.py) raises the exception when psycopg2 is through.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..errors import ConnectionInUse, DeadlineExceeded, WaitTimeout, is_interruption
from ..hubs import FdWaiter, Hub, hub
from .deadlines import Deadlines
from .hosts import HostTimedOut, watches
from .interrupting import interrupt, interrupt_foreign

_OK, _READ, _WRITE = extensions.POLL_OK, extensions.POLL_READ, extensions.POLL_WRITE
_CONNECTED = frozenset({extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED})


class Occupant:
    """An `_owner` that is no task: a `with cur.copy()` block, between its calls as well (copy.py), or an
    `executemany()` that makes its rows (executemany.py)."""

    def make_way(self, operation: str) -> None:
        """Bring the connection to rest for a caller who wants to use it; may suspend. Or else raise ConnectionInUse."""
        raise NotImplementedError

    def let_go(self) -> bool:
        """`close()` asks whether it may close the connection now; False if a task waits inside."""
        raise NotImplementedError


class WaitState:
    """What a `Connection` knows of its waits. No slots: they would keep it from being mixed into other classes."""

    #: The task that waits inside psycopg2 on this connection, or an `Occupant`.
    _owner: object | None = None
    #: The task that last did.
    _last_owner: object | None = None
    #: Made at the first wait after connecting; until then libpq may go from socket to socket.
    _fd_waiter: FdWaiter | None = None
    #: The guarded call that is under way; None if psycopg2 was called past the guards.
    _call: str | None = None
    #: What was thrown into the present call's wait, to be raised at its end.
    _interruption: BaseException | None = None
    #: The copy_from() or its like that is under way, a `copy_file.FileCopy`.
    _file_copy: Any = None
    #: A replication stream was stopped on it: see replication.py.
    _has_stopped_stream = False
    #: None until a deadline is set for the first time.
    _deadlines: Deadlines | None = None

    def _refuse_if_owned(self, operation: str) -> None:
        owner = self._owner
        if isinstance(owner, Occupant):
            owner.make_way(operation)
        elif owner is not None:
            raise ConnectionInUse(operation, hub().describe(owner))

    def _raise_interruption(self) -> None:
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            raise interruption


def make_wait_callback(wait_hub: Hub) -> Callable[[Any], None]:
    """The function for `psycopg2.extensions.set_wait_callback`, waiting by the hub. It suspends its caller."""
    current_task = wait_hub.current

    def wait_callback(conn: Any) -> None:  # noqa: PLR0912 - in one piece, since every statement runs through it
        try:
            waiter = conn._fd_waiter
        except AttributeError:
            return _wait_for_foreign(conn, wait_hub)
        if waiter is None:
            if conn.status not in _CONNECTED:
                return wait_by_poll(conn, wait_hub)
            waiter = conn._fd_waiter = wait_hub.fd_waiter(conn.fileno())
        poll = conn.poll
        conn._owner = conn._last_owner = current_task()
        try:
            if conn._interruption is not None:
                # psycopg2 has sent another statement for a call that was interrupted: its BEGIN came first.
                return interrupt(conn, waiter, conn._interruption)
            deadline = None if conn._deadlines is None else conn._deadlines.next_deadline()
            while True:
                state = poll()
                if state == _READ:
                    if waiter.wait_read(deadline):
                        continue
                elif state == _OK:
                    if conn._file_copy is None or not conn._file_copy.run(conn, waiter, deadline):
                        return None
                    continue
                elif state == _WRITE:
                    if waiter.wait_write(deadline):
                        continue
                else:
                    raise psycopg2.OperationalError(f"unexpected result of poll(): {state!r}")
                # Before giving up, the socket is looked at once more: the answer may be there.
                if poll() == _OK and conn._file_copy is None:
                    return None
                raise conn._deadlines.exceeded()
        except psycopg2.Error as exception:
            if not isinstance(exception, DeadlineExceeded) and not is_interruption(exception):
                raise  # libpq's own, from poll(): the connection is lost, and psycopg2 closes it
            interrupt(conn, waiter, exception)
        except BaseException as exception:
            interrupt(conn, waiter, exception)
        finally:
            conn._owner = None

    return wait_callback


def _wait_for_foreign(conn: Any, wait_hub: Hub) -> None:
    """Wait for a connection that isn't a `Connection`. Interrupted, it is closed, but its statement is cancelled."""
    try:
        wait_by_poll(conn, wait_hub)
    except BaseException as exception:
        is_own = isinstance(exception, psycopg2.Error) and not is_interruption(exception)
        if conn.status in _CONNECTED and not is_own:
            interrupt_foreign(conn)
        raise


def wait(conn: Any, timeout: float | None = None) -> None:
    """Wait, by the hub, until an asynchronous connection is connected, or its query answered. Suspends.

        conn = greenpg.connect(dsn, async_=True)
        greenpg.wait(conn)
        cur = conn.cursor()
        cur.execute("SELECT 1")
        greenpg.wait(conn)

    It is psycopg2's `extras.wait_select()` for all hubs, and takes any asynchronous connection of psycopg2's.

    Raises the query's error; `errors.WaitTimeout` after `timeout` seconds (None: no limit); `errors.ConnectionInUse`
    while another task waits for the same connection. Neither a timeout nor a kill cancels anything: the query goes on,
    and `wait()` can be called again. `connect_timeout` is not looked at, as psycopg2 doesn't: use `timeout`.
    """
    refuse = getattr(conn, "_refuse_if_owned", None)
    if refuse is None:  # psycopg2's own connection, which has no room for a note
        return wait_by_poll(conn, hub(), timeout)
    refuse("wait")
    conn._owner = hub().current()
    try:
        wait_by_poll(conn, hub(), timeout)
    finally:
        conn._owner = None


def wait_by_poll(conn: Any, wait_hub: Hub, timeout: float | None = None) -> None:
    """Wait for a connection of which nothing can be kept from wait to wait: a foreign one, or one that is connecting.

    While it connects, libpq may close its socket and get the same number for the next one, to another host. A
    `ConnectWatch` of the task limits the time (see connecting.py), or else the timeout.
    """
    watch = watches.get(wait_hub.current())
    total_deadline = None if timeout is None else time.monotonic() + timeout
    is_in_time = True
    while True:
        state = conn.poll()
        if state == _OK:
            return
        if not is_in_time:  # polled once more, and the answer isn't there
            if watch is None:
                raise WaitTimeout(f"{conn} has not come to an answer within {timeout:g} s")
            raise HostTimedOut("timeout expired")
        deadline = total_deadline if watch is None else watch.deadline(conn.pgconn_ptr)
        waiter = wait_hub.fd_waiter(conn.fileno())
        try:
            if state == _READ:
                is_in_time = waiter.wait_read(deadline)
            elif state == _WRITE:
                is_in_time = waiter.wait_write(deadline)
            else:
                raise psycopg2.OperationalError(f"unexpected result of poll(): {state!r}")
        finally:
            waiter.close()
