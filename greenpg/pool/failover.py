"""Another server may take the writes from now on: which connections are to be asked about it before they're lent again.

Who is the primary is decided elsewhere (by Patroni, the cloud). Here it is found out from what happens: an error that
says so, or a new connection that leads elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from psycopg2 import extensions

from .. import libpq
from ..connection.connect.probing import answers
from ..connection.connect.route import Host
from ..connection.connect.silent import SHORT_TIMEOUT, is_silent, note_silent, suspect
from ..connection.connection import Connection
from ..errors import LibpqUnavailable
from ..hubs import hub
from .core import PoolCore
from .health import check_writable, ping
from .slot import ENDING, Slot

#: Seconds.
_FIRST_LOOK, _LONGEST_PAUSE = 0.05, 5.0
#: Seconds after which a host that answers nothing isn't waited for, though it may only be far away.
_PATIENCE = 0.25
_WANTS_PRIMARY = frozenset({"read-write", "primary"})


def doubt_all(core: PoolCore) -> None:
    """A server has refused to write: ask those of all connections. Doesn't suspend."""
    with core.mutex:
        for slot in core.ledger.slots:
            slot.doubt()


def note_server(core: PoolCore, slot: Slot, conn: Connection) -> None:
    """The slot has a new connection. Where only a primary was wanted, those to other servers may not be that any more.
    Doesn't suspend."""
    server = _server_of(conn)
    slot.leads_to(server)
    if server == core.server:
        return
    core.lead_to(server)
    if extensions.parse_dsn(conn.dsn).get("target_session_attrs") not in _WANTS_PRIMARY:
        return
    with core.mutex:
        for other in core.ledger.slots:
            if other.conn is not None and other.server != server:
                other.doubt()


def watch_ending(slot: Slot, give_up: Callable[[], object]) -> None:
    """The slot is kept until the server's process has ended. Where there are several hosts, that's not waited for when
    the host answers nothing any more: `give_up` is called then. Doesn't suspend."""
    if "," in extensions.parse_dsn(slot.conn.dsn).get("host", ""):
        hub().spawn(_watch_ending, slot, give_up)


def _watch_ending(slot: Slot, give_up: Callable[[], object]) -> None:
    host = Host(*slot.server)
    pause = _FIRST_LOOK
    while True:
        hub().sleep(pause)
        if slot.state is not ENDING:
            return
        if is_silent(host):
            give_up()
            return
        if not answers(host, _PATIENCE):
            suspect(host)
            give_up()  # now another one is tried first
            if not answers(host, SHORT_TIMEOUT):
                note_silent(host)
            return
        pause = min(pause * 2, _LONGEST_PAUSE)


def prove(slot: Slot) -> None:
    """Raise if the slot's connection doesn't work, or its server takes no writes when that is in doubt. Suspends."""
    if slot.is_doubted:
        check_writable(slot.conn)
    else:
        ping(slot.conn)
    slot.proved()


def _server_of(conn: Connection) -> tuple[str, str, str]:
    try:
        return libpq.current_host(conn.pgconn_ptr)
    except LibpqUnavailable:
        return "", "", ""
