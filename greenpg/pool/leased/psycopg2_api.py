"""`Psycopg2Connection`: psycopg2's settings, attributes and smaller methods, for a connection that may have none."""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2 import extensions
from psycopg2.extensions import Notify, Xid

from ...connection.guarded_connection import Characteristic, IsolationLevel
from ...connection.wait_notify import take_oldest
from ..health import IDLE_STATUS, READY
from .info import LeasedInfo
from .kept import Kept
from .lease import Lease
from .settings import read


def _setting(name: str, doc: str) -> Any:
    """One that each connection has that is leased: to be set, and read once it was set, none is needed."""

    def get(self: Psycopg2Connection) -> Any:
        return self._get(name)

    def put(self: Psycopg2Connection, value: Any) -> None:
        self._put(name, value)

    return property(get, put, doc=doc)


class Psycopg2Connection:
    """The part of `LeasedConnection` that is psycopg2's."""

    Error = psycopg2.Error
    Warning = psycopg2.Warning
    InterfaceError = psycopg2.InterfaceError
    DatabaseError = psycopg2.DatabaseError
    DataError = psycopg2.DataError
    OperationalError = psycopg2.OperationalError
    IntegrityError = psycopg2.IntegrityError
    InternalError = psycopg2.InternalError
    ProgrammingError = psycopg2.ProgrammingError
    NotSupportedError = psycopg2.NotSupportedError

    _lease: Lease
    _kept: Kept

    # -- settings

    autocommit: bool = _setting("autocommit", "As psycopg2's; with it, each statement leases a connection for itself.")
    isolation_level: Any = _setting("isolation_level", "As psycopg2's. In autocommit it costs round trips per lease.")
    readonly: Any = _setting("readonly", "As psycopg2's. In autocommit it costs round trips per lease.")
    deferrable: Any = _setting("deferrable", "As psycopg2's. In autocommit it costs round trips per lease.")
    statement_deadline: float | None = _setting("statement_deadline", "As `Connection.statement_deadline`.")
    prepare_threshold: int | None = _setting("prepare_threshold", "As `Connection.prepare_threshold`.")
    #: As psycopg2's.
    cursor_factory: Any = None

    def _check_open(self) -> None:
        if self._lease.closed:
            raise psycopg2.InterfaceError("connection already closed")

    def _get(self, name: str) -> Any:
        lease = self._lease
        if lease.conn is not None:
            return getattr(lease.conn, name)
        return lease.overrides[name] if name in lease.overrides else lease.default(name)

    def _put(self, name: str, value: Any) -> None:
        self._check_open()
        lease = self._lease
        if lease.number:
            with lease.calling(name) as conn:
                setattr(conn, name, value)
                value = getattr(conn, name)
        lease.overrides[name] = read(name, value)

    @property
    def encoding(self) -> str:
        """The client encoding, as psycopg2 calls it."""
        encoding: str = self._get("encoding")
        return encoding

    def set_client_encoding(self, encoding: str) -> None:
        """Set the client encoding, as psycopg2's; it takes a round trip per lease if the pool has another one. Suspends
        if a connection is leased."""
        self._check_open()
        lease = self._lease
        if lease.number:
            with lease.calling("set_client_encoding") as conn:
                conn.set_client_encoding(encoding)
                encoding = conn.encoding
        lease.overrides["encoding"] = read("encoding", encoding)

    def set_session(
        self,
        isolation_level: IsolationLevel = None,
        readonly: Characteristic = None,
        deferrable: Characteristic = None,
        autocommit: bool | None = None,
    ) -> None:
        """Set what the next transactions are like, as psycopg2's. Suspends only in autocommit, with a connection
        leased."""
        self._check_open()
        given = {
            "isolation_level": isolation_level,
            "readonly": readonly,
            "deferrable": deferrable,
            "autocommit": autocommit,
        }
        wanted = {name: read(name, value) for name, value in given.items() if value is not None}
        if self._lease.number:
            with self._lease.calling("set_session") as conn:
                conn.set_session(isolation_level, readonly, deferrable, autocommit)
        self._lease.overrides.update(wanted)

    def set_isolation_level(self, level: int | None) -> None:
        """Set the isolation level, as psycopg2's. Suspends if there is a transaction, which is rolled back."""
        self._check_open()
        if level is not None and not 0 <= level <= 4:
            raise ValueError("isolation level must be between 0 and 4")
        if self._lease.number:
            with self._lease.calling("set_isolation_level") as conn:
                conn.set_isolation_level(level)
        wanted = self._lease.overrides
        wanted["autocommit"] = level == extensions.ISOLATION_LEVEL_AUTOCOMMIT
        if not wanted["autocommit"]:
            wanted["isolation_level"] = level

    # -- what it says of itself

    @property
    def closed(self) -> int:
        """0; 1 after `close()`; 2 if a connection was lost with a transaction, or state, in it."""
        return self._lease.closed

    @property
    def status(self) -> int:
        """As psycopg2's; STATUS_READY while no connection is leased."""
        conn = self._lease.conn
        return READY if conn is None else conn.status

    def get_transaction_status(self) -> int:
        """As psycopg2's; that of a connection at rest while none is leased. Doesn't suspend."""
        conn = self._lease.conn
        return IDLE_STATUS if conn is None else int(conn.get_transaction_status())

    def isexecuting(self) -> bool:
        """As psycopg2's. Doesn't suspend."""
        conn = self._lease.conn
        return conn is not None and bool(conn.isexecuting())

    @property
    def info(self) -> extensions.ConnectionInfo:
        """What libpq knows of the connection that is leased, or that was last: see `LeasedInfo`."""
        return LeasedInfo(self._lease)  # type: ignore[return-value]  # it has all of its attributes

    @property
    def notices(self) -> list[str]:
        """What the server has said beside its answers, under all leases."""
        notices: list[str] = self._kept.notices
        return notices

    @notices.setter
    def notices(self, messages: Any) -> None:
        self._kept.notices = messages

    @property
    def notifies(self) -> list[Notify]:
        """The notifications that have come. LISTEN makes the lease last."""
        notifies: list[Notify] = self._kept.notifies
        return notifies

    @notifies.setter
    def notifies(self, messages: Any) -> None:
        self._kept.notifies = messages

    @property
    def dsn(self) -> str:
        """The connection string, its secrets masked."""
        return self._lease.look("dsn").dsn

    @property
    def server_version(self) -> int:
        """As psycopg2's."""
        return int(self._lease.look("server_version").server_version)

    @property
    def protocol_version(self) -> int:
        """As psycopg2's."""
        return int(self._lease.look("protocol_version").protocol_version)

    async_ = 0

    def get_parameter_status(self, parameter: str) -> str | None:
        """As psycopg2's. Suspends while no connection is leased, until one is."""
        value: str | None = self._lease.ask("get_parameter_status", lambda conn: conn.get_parameter_status(parameter))
        return value

    def get_dsn_parameters(self) -> dict[str, str]:
        """As psycopg2's. Suspends if no connection has been leased."""
        return dict(self._lease.look("get_dsn_parameters").get_dsn_parameters())

    def get_backend_pid(self) -> int:
        """The server's process that is leased now; 0: none. Doesn't suspend."""
        return int(self.info.backend_pid)

    def fileno(self) -> int:
        """The socket of the connection that is leased now. Raises `psycopg2.InterfaceError` if there's none. Doesn't
        suspend."""
        conn = self._lease.conn
        if conn is None:
            raise psycopg2.InterfaceError("no connection is leased, so there is no socket: see stick()")
        return int(conn.fileno())

    def poll(self) -> int:
        """Read what has come, as psycopg2's. Doesn't suspend while no connection is leased."""
        return int(self._call("poll")) if self._lease.number else extensions.POLL_OK

    def wait_notify(self, timeout: float | None = None) -> Notify | None:
        """As `Connection.wait_notify()`: after LISTEN, or `stick()`. Suspends."""
        if self._kept.notifies:
            return take_oldest(self._kept.notifies)
        if not self._lease.is_held:
            raise psycopg2.ProgrammingError("wait_notify() would wait in vain: execute LISTEN first")
        found: Notify | None = self._call("wait_notify", timeout)
        return found

    # -- two-phase transactions, and others

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._lease.calling(name) as conn:
            return getattr(conn, name)(*args, **kwargs)

    def xid(self, format_id: int, gtrid: str, bqual: str) -> Xid:
        """A transaction's identifier, as psycopg2's. Doesn't suspend."""
        return Xid(format_id, gtrid, bqual)

    def tpc_begin(self, xid: str | bytes | Xid) -> None:
        """Begin a two-phase transaction, as psycopg2's. Suspends."""
        self._call("tpc_begin", xid)

    def tpc_prepare(self) -> None:
        """End the first phase, as psycopg2's: the lease lasts until the second one has ended. Suspends."""
        self._call("tpc_prepare")

    def tpc_commit(self, *xid: str | bytes | Xid) -> None:
        """Commit a two-phase transaction, as psycopg2's. Suspends."""
        self._call("tpc_commit", *xid)

    def tpc_rollback(self, *xid: str | bytes | Xid) -> None:
        """Roll a two-phase transaction back, as psycopg2's. Suspends."""
        self._call("tpc_rollback", *xid)

    def tpc_recover(self) -> list[Xid]:
        """The transactions that are prepared, as psycopg2's. Suspends."""
        found: list[Xid] = self._call("tpc_recover")
        return found

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        """A large object, as psycopg2's; good until the transaction ends. Suspends."""
        return self._call("lobject", *args, **kwargs)

    def cancel(self) -> None:
        """Cancel what the leased connection is running; any task may call it. Suspends for a round trip, if there's
        one."""
        conn = self._lease.conn
        if conn is not None:
            conn.cancel()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """The same as `cancel()`, with the `timeout` (seconds) of psycopg 3. Suspends."""
        conn = self._lease.conn
        if conn is not None:
            conn.cancel_safe(timeout=timeout)
