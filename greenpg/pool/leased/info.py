"""`LeasedConnection.info`: psycopg2's, of the connection that is leased, or that was."""

from __future__ import annotations

from typing import Any

from psycopg2 import extensions

from .lease import Lease

#: What there is only while a connection is leased; what is said without.
_OF_THE_LEASE = {
    "backend_pid": 0,
    "error_message": None,
    "socket": -1,
    "status": extensions.STATUS_SETUP,  # 0: libpq's CONNECTION_OK
    "transaction_status": extensions.TRANSACTION_STATUS_IDLE,
}


class LeasedInfo:
    """`psycopg2.extensions.ConnectionInfo`, attribute for attribute.

    Where no connection is leased: `backend_pid` is 0, `transaction_status` that of a connection at rest; all others are
    of the last one. The very first time they lease one for a moment, and suspend.
    """

    __slots__ = ("_lease",)

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(extensions.ConnectionInfo, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        conn = self._lease.conn
        if conn is None and name in _OF_THE_LEASE:
            return _OF_THE_LEASE[name]
        return getattr((conn or self._lease.look("info")).info, name)
