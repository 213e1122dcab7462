"""A pool for each URI, and the manager that knows them all."""

from __future__ import annotations

import datetime
import os
import time
from collections import deque
from typing import Any, ClassVar

import psycopg2
from psycopg2 import extras

from ... import ConnectionPool, PoolTimeout
from .utils import uri_to_kwargs

DEFAULT_IDLE_TTL = 60
DEFAULT_MAX_SIZE = int(os.environ.get("QUERIES_MAX_POOL_SIZE", "1"))

#: Seconds that the pool has for connecting, before it is looked whether all are lent.
_SHORT = 0.5
#: Seconds for connecting at all.
_LONG = 30.0


class QueriesException(psycopg2.OperationalError):
    """Every error of the pools."""


class ConnectionException(QueriesException):
    def __init__(self, cid: object) -> None:
        super().__init__(cid)
        self.cid = cid


class PoolException(QueriesException):
    def __init__(self, pid: object) -> None:
        super().__init__(pid)
        self.pid = pid


class PoolConnectionException(PoolException):
    def __init__(self, pid: object, cid: object) -> None:
        super().__init__(pid)
        self.args = (pid, cid)
        self.cid = cid


class ActivePoolError(PoolException):
    """A pool with connections in use was to be removed."""

    def __str__(self) -> str:
        return f"Pool {self.pid} has at least one active connection"


class ConnectionBusyError(ConnectionException):
    """The connection is in use."""

    def __str__(self) -> str:
        return f"Connection {self.cid} is busy"


class ConnectionNotFoundError(PoolConnectionException):
    """The connection isn't the pool's."""

    def __str__(self) -> str:
        return f"Connection {self.cid} not found in pool {self.pid}"


class NoIdleConnectionsError(PoolException):
    """All connections are in use."""

    def __str__(self) -> str:
        return f"Pool {self.pid} has no idle connections"


class PoolFullError(PoolException):
    """All connections are in use, and more queries were to be run at once."""

    def __str__(self) -> str:
        return f"Pool {self.pid} is at its maximum capacity"


class Pool:
    """The connections of one URI: a `greenpg.ConnectionPool`, and what the report counts beside it."""

    def __init__(
        self, pool_id: str, uri: str, idle_ttl: float = DEFAULT_IDLE_TTL, max_size: int = DEFAULT_MAX_SIZE
    ) -> None:
        self.id = pool_id
        self.idle_ttl = idle_ttl
        self.max_size = max_size
        self.executions = self.exceptions = self.executing = 0
        self._idle_since = time.monotonic()
        self._kwargs = {name: _joined(value) for name, value in uri_to_kwargs(uri).items()}
        self._pool = ConnectionPool(
            kwargs=self._kwargs,
            min_size=0,
            max_size=max_size,
            max_idle=idle_ttl,
            configure=_configure,
            reset="session",
            fail_fast=True,
        )
        self._lent: set[Any] = set()
        self._forgotten: deque[Any] = deque()

    def get(self, timeout: float = 0.0) -> Any:
        """Lend a connection. Suspends while connecting; if all are lent, for at most `timeout` seconds.

        Raises NoIdleConnectionsError, and psycopg2's errors if it can't connect.
        """
        self.free_forgotten()
        if self.in_use_count >= self.max_size and not timeout:
            raise NoIdleConnectionsError(self.id)
        try:
            conn = self._lend(max(timeout, _SHORT))
        except PoolTimeout:
            if len(self._lent) >= self.max_size:
                raise NoIdleConnectionsError(self.id) from None
            conn = self._lend(_LONG)
        self._lent.add(conn)
        return conn

    def _lend(self, timeout: float) -> Any:
        return self._pool.getconn(timeout, take_back=False)  # a session may outlive the task that made it

    def free(self, conn: Any) -> None:
        """Take a connection back. Suspends for a round trip."""
        self._lent.discard(conn)
        self._idle_since = time.monotonic()
        self._pool.putconn(conn)

    def has_lent(self, conn: Any) -> bool:
        """Whether the connection is one that is out."""
        return conn in self._lent

    def forget_closed(self, conn: Any) -> None:
        """Close a connection that is out. Suspends if another task waits in it."""
        conn.close()
        self.free(conn)

    def resize(self, max_size: int) -> None:
        """Those that are surplus go when they come back."""
        self._pool.resize(0, max_size)
        self.max_size = max_size

    def forget(self, conn: Any) -> None:
        """`free()` for `__del__`, which may run anywhere, in the midst of the pool's own work, too."""
        self._forgotten.append(conn)

    def free_forgotten(self) -> None:
        """Take back what was forgotten. Suspends for a round trip each."""
        while self._forgotten:
            self.free(self._forgotten.popleft())

    def shutdown(self) -> None:
        """Close all connections; those in use, when they come back."""
        self._pool.close()

    def __len__(self) -> int:
        return self._pool.get_stats()["pool_size"]

    @property
    def idle_count(self) -> int:
        return self._pool.get_stats()["pool_available"]

    @property
    def in_use_count(self) -> int:
        """Connections that are lent, or wanted by somebody who waits."""
        return len(self._lent) + self._pool.get_stats()["requests_waiting"]

    @property
    def is_full(self) -> bool:
        return len(self) >= self.max_size

    @property
    def idle_duration(self) -> float:
        """Seconds since a connection was last in use; 0 if one is."""
        return 0 if self.in_use_count else time.monotonic() - self._idle_since

    def report(self) -> dict[str, Any]:
        """The pool's state."""
        return {
            "connections": {
                "busy": len(self._lent),
                "closed": 0,  # the pool replaces them
                "executing": self.executing,
                "idle": self.idle_count,
                "locked": len(self._lent),
            },
            "exceptions": self.exceptions,
            "executions": self.executions,
            "full": self.is_full,
            "idle": {"duration": self.idle_duration, "ttl": self.idle_ttl},
            "max_size": self.max_size,
        }


def _joined(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _configure(conn: Any) -> None:
    extras.register_uuid(conn_or_curs=conn)  # type: ignore[no-untyped-call]


class PoolManager:
    """All pools, by their IDs. Where there is none of the ID, KeyError is raised.

    Connections are made by the pools, so there is no `add()`, and none of the connections' own `lock()`.
    """

    _pools: ClassVar[dict[str, Pool]] = {}
    #: Idle TTL and size of those that no session has connected by yet.
    _created: ClassVar[dict[str, tuple[float, int]]] = {}

    @classmethod
    def instance(cls) -> PoolManager:
        """The only one."""
        return _manager

    @classmethod
    def create(cls, pid: str, idle_ttl: float = DEFAULT_IDLE_TTL, max_size: int = DEFAULT_MAX_SIZE) -> None:
        """Choose what the pool will be like, before the first session (whose `pid` says which it is). KeyError if it's
        there already. Doesn't suspend."""
        if pid in _manager:
            raise KeyError(f"Pool {pid} already exists")
        cls._created[pid] = idle_ttl, max_size

    @classmethod
    def pool(cls, pid: str, uri: str, idle_ttl: float, max_size: int) -> Pool:
        """The pool of that ID; made, if there's none. Doesn't suspend."""
        if pid not in cls._pools:
            cls._pools.setdefault(pid, Pool(pid, uri, *cls._created.pop(pid, (idle_ttl, max_size))))
        return cls._pools[pid]

    def __contains__(self, pid: str) -> bool:
        return pid in self._pools or pid in self._created

    @classmethod
    def size(cls, pid: str) -> int:
        """The number of connections in the pool. Doesn't suspend."""
        return 0 if pid in cls._created else len(cls._pools[pid])

    @classmethod
    def is_full(cls, pid: str) -> bool:
        """Whether there are as many connections as there may be. Doesn't suspend."""
        return pid not in cls._created and cls._pools[pid].is_full

    @classmethod
    def has_idle_connection(cls, pid: str) -> bool:
        """Whether a connection is there that nobody uses. Doesn't suspend."""
        return pid not in cls._created and cls._pools[pid].idle_count > 0

    @classmethod
    def has_connection(cls, pid: str, connection: Any) -> bool:
        """Whether the connection is one that the pool has lent. Doesn't suspend."""
        return pid not in cls._created and cls._pools[pid].has_lent(connection)

    @classmethod
    def get(cls, pid: str, session: object = None) -> Any:
        """Lend a connection, to be given back by `free()`. Raises NoIdleConnectionsError. Suspends while connecting."""
        return cls._pools[pid].get()

    @classmethod
    def free(cls, pid: str, connection: Any) -> None:
        """Take a connection back. ConnectionNotFoundError if it isn't lent by the pool. Suspends for a round trip."""
        if not cls.has_connection(pid, connection):
            raise ConnectionNotFoundError(pid, id(connection))
        cls._pools[pid].free(connection)

    @classmethod
    def remove_connection(cls, pid: str, connection: Any) -> None:
        """Close a connection that the pool has lent. ConnectionNotFoundError if it hasn't. Suspends."""
        if not cls.has_connection(pid, connection):
            raise ConnectionNotFoundError(pid, id(connection))
        cls._pools[pid].forget_closed(connection)

    @classmethod
    def set_max_size(cls, pid: str, size: int) -> None:
        """How many connections there may be from now on. Doesn't suspend."""
        if pid in cls._created:
            cls._created[pid] = cls._created[pid][0], size
        else:
            cls._pools[pid].resize(size)

    @classmethod
    def clean(cls, pid: str) -> None:
        """Close and forget the pool if it has no connections, or if none was in use for the idle TTL. Suspends."""
        cls._created.pop(pid, None)
        pool = cls._pools.get(pid)
        if pool is None:
            return
        pool.free_forgotten()
        if not pool.in_use_count and (not pool.idle_count or pool.idle_duration > pool.idle_ttl):
            cls._pools.pop(pid, None)
            pool.shutdown()

    @classmethod
    def remove(cls, pid: str) -> None:
        """Close and forget the pool. ActivePoolError if a connection is in use. Suspends."""
        if cls._created.pop(pid, None) is not None:
            return
        cls._pools[pid].free_forgotten()
        if cls._pools[pid].in_use_count:
            raise ActivePoolError(pid)
        cls._pools.pop(pid).shutdown()

    @classmethod
    def shutdown(cls) -> None:
        """Close and forget all pools; connections in use are closed when they come back. Suspends."""
        cls._created.clear()
        while cls._pools:
            cls._pools.popitem()[1].shutdown()

    @classmethod
    def report(cls) -> dict[str, Any]:
        """The state of all pools."""
        return {
            "timestamp": datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None).isoformat(),
            "process": os.getpid(),
            "pools": {pid: pool.report() for pid, pool in list(cls._pools.items())},
        }


_manager = PoolManager()
