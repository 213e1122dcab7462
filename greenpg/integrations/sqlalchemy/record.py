"""SQLAlchemy's record of a pooled connection: `SlotRecord` for a slot of a greenpg pool, `LeaseRecord` for a lease."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import engine
from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

from ...connection.connection import Connection
from ...connection.session_settings import SessionSettings
from ...hubs import hub
from ...pool.core import PoolCore
from ...pool.leased.connection import LeasedConnection
from ...pool.returning import give_back, note_error
from ...pool.slot import Slot
from .keeping import is_kept

#: Seconds to wait for a server process to end before another one is asked for.
_LONGEST_END = 5.0

logger = logging.getLogger("greenpg.pool")


class Record(_ConnectionRecord):
    """What both have."""

    __slots__ = ("was_abandoned",)

    def __init__(self, pool: Pool, connect: bool = True) -> None:
        #: The present checkin is the garbage collector's.
        self.was_abandoned = False
        super().__init__(pool, connect)

    @property
    def is_abandoned(self) -> bool:
        """Who had the connection checked out is garbage."""
        return self.fairy_ref is not None and self.fairy_ref() is None

    def _checkin_failed(self, err: BaseException, _fairy_was_created: bool = True) -> None:
        if is_kept(err, self.dbapi_connection):
            self.checkin(_fairy_was_created)
        else:
            super()._checkin_failed(err, _fairy_was_created)


class SlotRecord(Record):
    """Lives as long as its slot. When the slot is lent, SQLAlchemy's checkout has it until `checkin()`."""

    __slots__ = ("core", "has_ended", "settings", "slot")

    def __init__(self, pool: Pool, core: PoolCore, slot: Slot) -> None:
        """Connects, by the pool's creator, and runs the events. Suspends; raises what they raise."""
        self.core = core
        self.slot = slot
        #: What the events of a shared pool's engine have made of the connection's settings, None: nothing.
        self.settings: SessionSettings | None = None
        #: Its transaction was ended before the COMMIT.
        self.has_ended = False
        super().__init__(pool)

    def wait_for_the_end(self) -> None:
        """Before another connection is opened in the place of one that was closed: until the server knows. Suspends."""
        conn = self.slot.conn
        remains = conn._gate.remains if isinstance(conn, Connection) else None
        if remains is not None and not remains.is_over:
            event = hub().event()
            remains.when_over(event.set)
            event.wait(hub().now() + _LONGEST_END)

    def note_settings(self) -> None:
        """Of a shared pool: the events have set what the pool takes back for other borrowers."""
        settings = SessionSettings.of(self.slot.conn)
        self.settings = None if settings == self.slot.settings else settings

    def put_settings(self) -> None:
        """As they were noted. Suspends for another client encoding."""
        if self.settings is not None:
            self.settings.put_back(self.slot.conn)

    def note_end(self) -> None:
        """The transaction of this checkout is over, whatever is committed later. Doesn't suspend."""
        self.has_ended = True

    def get_connection(self) -> Any:
        """The connection, a new one if it was invalidated or is too old. Suspends then."""
        conn: Any = super().get_connection()
        if conn is not self.slot.conn:
            self.core.exchange(self.slot, conn)
        return conn

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """Return the slot, whatever the handlers of events do. Suspends only for a rollback."""
        lent_at = self.slot.lent_at
        self.has_ended = False
        self.was_abandoned = self.is_abandoned
        try:
            super().checkin(_fairy_was_created)
        except BaseException:
            self.return_if_lent(lent_at)
            raise

    def note_error(self, error: BaseException) -> None:
        """Look whether the error says that the connection shouldn't be lent again. Doesn't suspend."""
        note_error(self.core, self.slot, error)

    def is_lent(self, lent_at: float) -> bool:
        """Whether this is still the same checkout."""
        return self.slot.lent_by is self.core and self.slot.lent_at == lent_at

    def return_if_lent(self, lent_at: float) -> None:
        """Return the slot of this checkout, if that hasn't been done. Suspends only for a rollback."""
        if self.is_lent(lent_at):
            give_back(self.core, self.slot)

    # -- tasks that are killed

    def return_when_task_ends(self, connection: engine.Connection) -> None:
        """The running task may die of what was thrown into it, with the connection checked out. Doesn't suspend.

        Where the end of a task can't be known (eventlet's `spawn_n`), it comes back when it is garbage.
        """
        slot = self.slot
        if slot.forget_holder is None and slot.lent_by is not None:
            task = hub().current()
            ended = functools.partial(_task_ended, weakref.ref(self), weakref.ref(connection), hash(task), slot.lent_at)
            slot.watch_end(hub().on_end(task, ended))


class LeaseRecord(Record):
    """Of a `LeasedConnection`; it lives as long as that is checked out."""

    __slots__ = ("_make",)

    def __init__(self, pool: Pool, make: Callable[[], LeasedConnection]) -> None:
        super().__init__(pool, connect=False)
        self._make = make
        self.dbapi_connection: Any = make()

    def get_connection(self) -> Any:
        """The connection, a new one if it was invalidated. Doesn't suspend."""
        if self.dbapi_connection is None or self.dbapi_connection.closed:
            self.dbapi_connection = self._make()
        return self.dbapi_connection

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """End the lease, whatever the handlers of events do. Suspends if there is one."""
        self.was_abandoned = self.is_abandoned
        try:
            super().checkin(_fairy_was_created)
        except BaseException:
            self.end(commits=False)
            raise

    def end(self, commits: bool) -> None:
        """The checkout is over. Suspends only for a rollback; what was garbage is committed, or not, by a task."""
        conn, self.dbapi_connection = self.dbapi_connection, None
        if conn is None:  # it was detached, or invalidated
            return
        if self.was_abandoned:
            hub().spawn(_close_abandoned, conn, commits)
        else:
            conn.close()


def _close_abandoned(conn: LeasedConnection, commits: bool) -> None:
    try:
        if commits and not conn.closed:
            conn.commit()
    except Exception as error:
        logger.warning("ending the transaction of %s, which was left checked out, failed: %s", conn, error)
    finally:
        conn.close()


def _task_ended(
    record_ref: weakref.ref[SlotRecord], connection_ref: weakref.ref[engine.Connection], task: int, lent_at: float
) -> None:
    """Called in the hub."""
    record = record_ref()
    if record is None or not record.is_lent(lent_at):
        return
    record.slot.watch_end(None)
    if record.slot.conn._gate.last_user in (None, task):  # else another task goes on with it
        hub().spawn(_return_for_ended, record, connection_ref, lent_at)


def _return_for_ended(record: SlotRecord, connection_ref: weakref.ref[engine.Connection], lent_at: float) -> None:
    if not record.is_lent(lent_at) or record.fairy_ref is None:  # None: it is coming back by itself
        return
    logger.warning("a task that was killed has left %s checked out; it is taken back", record.dbapi_connection)
    fairy = record.fairy_ref()
    if fairy is None:
        record.checkin()
    else:
        fairy._checkin()
        connection = connection_ref()
        if connection is not None and not connection.closed:
            connection.invalidate()  # for a Session that still has it
