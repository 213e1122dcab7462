"""One server of a cluster: what it was when it was last asked, and its pools. Nothing here decides who is primary."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2
from psycopg2 import extensions

from ..connection.connect.credentials import ConnectKwargs, Conninfo, Credentials
from ..connection.connect.route import Host, find_route
from ..errors import is_interruption
from ..hubs import hub
from ..pool.options import NOT_FOR_LIBPQ, dsn_from
from ..pool.pool import ConnectionPool
from .tokens import position_of

PRIMARY, REPLICA = "primary", "replica"

_LOOK = """\
SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only'),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
        ELSE pg_catalog.pg_current_wal_insert_lsn() END::text"""

#: Seconds for the answer to that, and for a connection.
LOOK_TIMEOUT, _CONNECT_TIMEOUT = 2.0, "3"
#: Seconds for which a replica that was found behind isn't asked for the same by others.
_NOT_ASKED_FOR = 0.02
#: So many positions of the primary's log are remembered.
_MOST_SAMPLES = 5_000


class Node:
    """A server, and a pool of connections to it, for reading."""

    def __init__(self, host: Host, pool: ConnectionPool[Any], look_pool: ConnectionPool[Any]) -> None:
        self.host = host
        self.pool = pool
        self._look_pool = look_pool
        #: "primary", "replica", None: it can't be reached, or is a primary that takes no writes.
        self.role: str | None = None
        #: How far it has come; for a replica, what it has replayed.
        self.position = 0
        #: Seconds by which it was behind the primary then.
        self.lag = 0.0
        self.looked_at = 0.0
        self.was_looked_at = False
        self._behind_at = 0.0
        #: What the last look failed by.
        self.error: str | None = None

    def look(self) -> None:
        """Ask the server what it is. Suspends; doesn't raise the server's errors."""
        try:
            row: Any = self._look_pool.fetchone(_LOOK)
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            self.note_failure(error)
        else:
            is_in_recovery, read_only, position = row
            self.position = position_of(position or "0/0")
            self.role = REPLICA if is_in_recovery else PRIMARY if read_only == "off" else None
            self.error = None
        finally:
            self.looked_at = hub().now()
            self.was_looked_at = True

    def log_position(self) -> int | None:
        """Where the log of this primary is now; None if it isn't one any more, or can't be asked. Suspends."""
        try:
            row: Any = self._look_pool.fetchone(_LOOK)
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            return None
        return None if row[0] else position_of(row[2])

    def note_failure(self, error: Exception) -> None:
        """It couldn't be used: not until it has been looked at again."""
        self.role = None
        self.error = f"{type(error).__name__}: {str(error).strip()}"

    def note_replayed(self, position: int, wanted: int) -> None:
        """It was asked whether it has come as far as wanted, and has come so far."""
        self.position = max(position, self.position)
        if self.position < wanted:
            self._behind_at = hub().now()

    def is_worth_asking(self, wanted: int) -> bool:
        """Whether it has replayed that, or may have by now."""
        return self.position >= wanted or hub().now() - self._behind_at >= _NOT_ASKED_FOR

    @property
    def load(self) -> int:
        """How many have a connection to it, or wait for one."""
        ledger = self.pool._core.ledger
        return ledger.lent_count + len(ledger.line)

    def close(self, timeout: float) -> None:
        """Close its pools. Suspends."""
        self._look_pool.close(timeout)
        self.pool.close(timeout)

    def __str__(self) -> str:
        return f"{self.host.name or self.host.address}:{self.host.port or '5432'}"


class PrimaryLog:
    """When the primary was where: so a replica's lag is known though nothing is written for hours."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MOST_SAMPLES)

    def note(self, now: float, position: int) -> None:
        """The primary has come so far."""
        while self._samples and self._samples[-1][1] > position:
            self._samples.pop()  # another one, which has less
        if not self._samples or self._samples[-1][1] < position:
            self._samples.append((now, position))

    def lag_of(self, position: int, at: float) -> float:
        """For how many seconds there had been more than that."""
        for then, there in self._samples:
            if there > position:
                return max(at - then, 0.0)
        return 0.0


def hosts_of(conninfo: Conninfo, kwargs: ConnectKwargs | None) -> list[Host]:
    """The hosts of a connection string; functions that say it are called. ValueError if it can't be for a cluster."""
    route = find_route(dsn_from(*Credentials(conninfo, kwargs).get()))
    wanted = route.options.get("target_session_attrs", "any")
    if wanted not in ("any", "read-write", "primary"):
        raise ValueError(f"target_session_attrs={wanted} can't be for a cluster, which has pools for all that")
    return list(dict.fromkeys(route.hosts)) or [Host("", "", "")]


def conninfo_for(conninfo: Conninfo, kwargs: ConnectKwargs | None, changes: Mapping[str, str]) -> dict[str, Any]:
    """`conninfo` and `kwargs` for a pool that connects with these parameters in the place of those."""

    def changed(found: str, more: Mapping[str, Any]) -> str:
        inside = extensions.parse_dsn(dsn_from(found, more))
        for name in ("hostaddr", "load_balance_hosts"):
            if "host" in changes:
                inside.pop(name, None)
        parameters = {**inside, **changes}
        if "," not in parameters.get("host", "") + parameters.get("hostaddr", ""):  # several have one by default
            parameters.setdefault("connect_timeout", _CONNECT_TIMEOUT)
        return str(extensions.make_dsn(**parameters))

    if callable(kwargs):
        raise ValueError("kwargs can't be a function here: let conninfo be one")
    fixed: Mapping[str, Any] = kwargs or {}
    own = {name: value for name, value in fixed.items() if name in NOT_FOR_LIBPQ}
    if not callable(conninfo):
        return {"conninfo": changed(conninfo, fixed), "kwargs": own}
    find: Callable[[], Any] = conninfo

    def find_changed() -> Any:
        found = find()
        if isinstance(found, tuple) and len(found) == 2:
            return changed(found[0], fixed), found[1]
        return changed(found, fixed)

    return {"conninfo": find_changed, "kwargs": own}


def parameters_of(host: Host) -> dict[str, str]:
    """What leads to one host."""
    parameters = {"host": host.name, "port": host.port, "target_session_attrs": "any"}
    if host.address:
        parameters["hostaddr"] = host.address
    return {name: value for name, value in parameters.items() if value}
