"""Another server may take the writes from now on: which connections are to be asked about it before they're lent again.

Who is the primary is decided elsewhere (by Patroni, the cloud). Here it is found out from what happens: an error that
says so, or a new connection that leads elsewhere.
"""

from __future__ import annotations

from psycopg2 import extensions

from .. import libpq
from ..connection.connection import Connection
from ..errors import LibpqUnavailable
from .core import PoolCore
from .health import check_writable, ping
from .slot import Slot

_WANTS_PRIMARY = frozenset({"read-write", "primary"})


def doubt_all(core: PoolCore) -> None:
    """A server has refused to write: ask those of all connections. Doesn't suspend."""
    with core.mutex:
        for slot in core.ledger.slots:
            slot.doubt()


def note_server(core: PoolCore, conn: Connection) -> None:
    """A new connection. Where only a primary was wanted, those to other servers may not be that any more. Doesn't
    suspend."""
    server = _server_of(conn)
    if server == core.server:
        return
    core.lead_to(server)
    if extensions.parse_dsn(conn.dsn).get("target_session_attrs") not in _WANTS_PRIMARY:
        return
    with core.mutex:
        slots = [slot for slot in core.ledger.slots if slot.conn is not None and not slot.conn.closed]
        for slot in slots:
            if _server_of(slot.conn) != server:
                slot.doubt()


def prove(slot: Slot) -> None:
    """Raise if the slot's connection doesn't work, or its server takes no writes when that is in doubt. Suspends."""
    if slot.is_doubted:
        check_writable(slot.conn)
    else:
        ping(slot.conn)
    slot.proved()


def _server_of(conn: Connection) -> object:
    try:
        return libpq.current_host(conn.pgconn_ptr)
    except LibpqUnavailable:
        return None
