"""The wait callback: what psycopg2 calls whenever it would block.

psycopg2 holds the connection's mutex while it calls. Whoever calls into the same connection meanwhile would block the
whole native thread, hub and all; that's why the waiting task is noted in the connection's gate (gate.py), through which
every call goes before it comes to psycopg2.

An exception that leaves the callback makes psycopg2 close the connection, and the server goes on with the statement.
So an exception that is thrown into a wait is held back: the statement is cancelled (interrupting.py), the callback
returns as if nothing had happened, and the call raises the exception when it leaves the gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..errors import DeadlineExceeded, WaitTimeout, is_interruption
from ..errors.sqlstate import name_by_sqlstate
from ..hubs import Hub, hub
from .bulk.copy_channel import end_copy_begun
from .cancel import shut_down
from .connect.watch import HostTimedOut, watch_of
from .forking import keep_from_children
from .interrupting import interrupt
from .remains import give_up

_OK, _READ, _WRITE = extensions.POLL_OK, extensions.POLL_READ, extensions.POLL_WRITE
_CONNECTED = frozenset({extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED})


def make_wait_callback(wait_hub: Hub) -> Callable[[Any], None]:
    """The function for `psycopg2.extensions.set_wait_callback`, waiting by the hub. It suspends its caller."""
    current_task = wait_hub.current

    def wait_callback(conn: Any) -> None:  # noqa: PLR0912 - in one piece, since every statement runs through it
        try:
            gate = conn._gate
        except AttributeError:
            return _wait_for_foreign(conn, wait_hub)
        waiter = gate.waiter
        if waiter is None:
            if conn._driver_status not in _CONNECTED:
                return _wait_to_connect(conn, wait_hub)
            waiter = gate.waiter_of(conn)
        poll = conn.poll
        gate.owner = task = current_task()  # gate.occupied() spelled out
        gate.last_user = hash(task)
        try:
            if gate.interruption is not None:
                # psycopg2 has sent another statement for a call that was interrupted: its BEGIN came first.
                return interrupt(conn, waiter, gate.interruption)
            deadline = None if gate.deadlines is None else gate.deadlines.next_deadline()
            while True:
                state = poll()
                if state == _READ:
                    if waiter.wait_read(deadline):
                        continue
                elif state == _OK:
                    if gate.file_copy is not None and gate.file_copy.run(conn, waiter, deadline):
                        continue
                    if gate.call is None:
                        end_copy_begun(conn, waiter)  # the cursor isn't one of greenpg's, which do so themselves
                    return None
                elif state == _WRITE:
                    if waiter.wait_write(deadline):
                        continue
                else:
                    raise psycopg2.OperationalError(f"unexpected result of poll(): {state!r}")
                # Before giving up, the socket is looked at once more: the answer may be there.
                if poll() == _OK and gate.file_copy is None:
                    return None
                raise gate.exceeded()
        except psycopg2.Error as exception:
            if not isinstance(exception, DeadlineExceeded) and not is_interruption(exception):
                raise  # libpq's own, from poll(): the connection is lost, and psycopg2 closes it
            interrupt(conn, waiter, exception)
        except BaseException as exception:
            interrupt(conn, waiter, exception)
        finally:
            gate.owner = gate.free

    return wait_callback


def _wait_for_foreign(conn: extensions.connection, wait_hub: Hub) -> None:
    """Wait for a connection that isn't a `Connection`. Interrupted, it is closed, but its statement is cancelled."""
    if conn.status not in _CONNECTED:
        return _wait_to_connect(conn, wait_hub)
    try:
        return wait_by_poll(conn, wait_hub)
    except BaseException as exception:
        if is_interruption(exception) or not isinstance(exception, psycopg2.Error):
            give_up(conn)
        raise


def _wait_to_connect(conn: Any, wait_hub: Hub) -> None:
    """The server hears at once that nobody wants the connection: psycopg2 closes it when the last reference goes, and
    the exception's traceback has some."""
    keep_from_children(conn)
    try:
        wait_by_poll(conn, wait_hub)
    except BaseException:
        shut_down(conn)
        raise


def wait(conn: extensions.connection, timeout: float | None = None) -> None:
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
    gate = getattr(conn, "_gate", None)
    if gate is None:  # psycopg2's own connection, which has none
        return wait_by_poll(conn, hub(), timeout)
    gate.make_way("wait")
    try:
        with gate.occupied():
            wait_by_poll(conn, hub(), timeout)
    except psycopg2.DatabaseError as error:
        name_by_sqlstate(error)
        raise error
    return None


def wait_by_poll(conn: extensions.connection, wait_hub: Hub, timeout: float | None = None) -> None:
    """Wait for a connection of which nothing can be kept from wait to wait: a foreign one, or one that is connecting.

    While it connects, libpq may close its socket and get the same number for the next one, to another host. A
    `ConnectWatch` of the task limits the time (see connecting.py), or else the timeout.
    """
    watch = watch_of(wait_hub.current())
    total_deadline = None if timeout is None else time.monotonic() + timeout
    is_in_time = True
    while True:
        state = conn.poll()
        if state == _OK:
            if watch is not None:
                watch.connected(conn.pgconn_ptr)
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
