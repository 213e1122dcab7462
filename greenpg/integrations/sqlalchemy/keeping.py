"""A kill or a timeout ends a statement, not its connection.

SQLAlchemy closes the connection whenever an exception that isn't an Exception comes out of its driver: with others, it
is in the middle of something then. greenpg has ended the statement at the server before it lets the exception out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext

from ...connection.connection import Connection
from ...errors import is_interruption
from ...pool.leased.connection import LeasedConnection
from ...pool.slot import Slot


def keep_connections(engine: Engine | type[Engine]) -> None:
    """Let connections survive kills and timeouts on an engine of SQLAlchemy's own psycopg2 dialect, too.

    `engine`: one engine, or `sqlalchemy.engine.Engine` for all that there are and will be. A connection that is
    invalidated, and `creator=pool.getconn` has taken from a `greenpg.ConnectionPool(close_returns=True)`, isn't lent
    again. Harmless if done twice. Doesn't suspend.
    """
    for name, call in (("handle_error", keep_connection), ("invalidate", _condemn)):
        if not event.contains(engine, name, call):
            event.listen(engine, name, call)


def _condemn(conn: Any, record: object, exception: BaseException | None) -> None:
    """For the event `invalidate`: SQLAlchemy is going to close the connection, which would only return it."""
    slot = conn._lender if isinstance(conn, Connection) else None
    if isinstance(slot, Slot):
        slot.condemn()


def is_kept(error: BaseException, conn: Any) -> bool:
    """Whether greenpg has saved the connection from the exception: it was thrown into a wait, and nobody is inside."""
    if not (is_interruption(error) and isinstance(conn, Connection | LeasedConnection)) or conn.closed:
        return False
    if isinstance(conn, LeasedConnection):
        return True
    return conn._gate.owner is conn._gate.free


def keep_connection(context: ExceptionContext) -> None:
    """For SQLAlchemy's event `handle_error`. Doesn't suspend."""
    connection: Any = context.connection
    fairy = None if connection is None else connection._dbapi_connection
    if fairy is None:  # while connecting, or it was lost before
        return
    error: BaseException = context.original_exception
    record: Any = getattr(fairy, "_connection_record", None)
    has_slot = hasattr(record, "slot")
    if has_slot:
        record.note_error(error)
    if context.is_disconnect and is_kept(error, fairy.dbapi_connection):
        context.is_disconnect = False
        if has_slot:
            record.return_when_task_ends(connection)
