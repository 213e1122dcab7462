"""greenpg: PostgreSQL for gevent, eventlet and threads, on psycopg2.

In short:

    import greenpg
    greenpg.patch()                                   # once, at startup

    pool = greenpg.ConnectionPool("postgresql://app@db/app", max_size=10)

    with pool.cursor() as cur:                        # one transaction: commit, or roll back on error
        cur.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (10, 1))

README.md is the longer introduction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors
from .cluster.cluster import Cluster
from .connection.connect.connecting import connect
from .connection.connection import Connection
from .connection.cursor import Cursor, ServerCursor
from .connection.patching import is_patched, patch, unpatch
from .connection.pipeline.pipeline import Pipeline
from .connection.rows import RowDict
from .connection.sql_log import SqlLog
from .connection.tracing import TraceEvent, Tracer
from .connection.transaction import Rollback, Transaction
from .connection.wait_callback import wait
from .errors import ListenerClosed, PoolClosed, PoolTimeout, TooManyRequests, WaitTimeout
from .pool.leased.connection import LeasedConnection
from .pool.leased.cursor import LeasedCursor
from .pool.null_pool import NullConnectionPool
from .pool.pool import ConnectionPool
from .pool.registry import close_pools, forget_pool, get_pool
from .pool.shutdown import shutdown
from .shared.listener import Listener
from .shared.mailbox import Gap
from .shared.shared_connection import SharedConnection
from .shared.subscription import Subscription

if TYPE_CHECKING:
    from . import embedded
    from .diagnosis.doctor import doctor
    from .top.socket_server import serve_top

__all__ = [
    "Cluster",
    "Connection",
    "ConnectionPool",
    "Cursor",
    "Gap",
    "LeasedConnection",
    "LeasedCursor",
    "Listener",
    "ListenerClosed",
    "NullConnectionPool",
    "Pipeline",
    "PoolClosed",
    "PoolTimeout",
    "Rollback",
    "RowDict",
    "ServerCursor",
    "SharedConnection",
    "SqlLog",
    "Subscription",
    "TooManyRequests",
    "TraceEvent",
    "Tracer",
    "Transaction",
    "WaitTimeout",
    "close_pools",
    "connect",
    "doctor",
    "embedded",
    "errors",
    "forget_pool",
    "get_pool",
    "is_patched",
    "patch",
    "serve_top",
    "shutdown",
    "unpatch",
    "wait",
]

__version__ = "0.2.0"

for _name in __all__:
    if isinstance(_public := globals().get(_name), type) and _public.__module__ != "greenpg.errors":
        _public.__module__ = __name__
del _name, _public

if not TYPE_CHECKING:  # to a type checker it would be a promise that every name is there

    def __getattr__(name: str) -> object:
        """What most programs never use is imported when it is used first."""
        if name == "embedded":
            import greenpg.embedded

            return greenpg.embedded
        if name == "doctor":
            from .diagnosis.doctor import doctor

            return doctor
        if name == "serve_top":
            from .top.socket_server import serve_top

            return serve_top
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
