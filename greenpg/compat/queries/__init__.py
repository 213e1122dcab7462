"""queries 2.1.1 on greenpg: `from greenpg.compat import queries`. Its modules are those of the original.

Kept, since programs rely on it: a pool for each URI and class of session, with the first session's options; one
connection in it by default (or QUERIES_MAX_POOL_SIZE); a full pool raises `NoIdleConnectionsError` at once; autocommit;
`RealDictCursor`; UUIDs registered; errors are psycopg2's; `PoolManager.report()`.

What differs, and why:
- Results hold their rows: neither the session's next query nor its end changes them. What has no rows (DDL, an INSERT)
  iterates as nothing instead of raising.
- A connection comes back as new (settings, temporary tables, encoding, notices, no transaction); it used to keep all
  that for the next session. A dead one is replaced; it used to fill the pool for ever.
- `__del__` takes no locks: it leaves the connection to the next one who looks. A closed session raises InterfaceError.
- URIs: user, database and all of libpq's options count, `uri()` quotes; what isn't a URI is a ProgrammingError.
- TornadoSession runs each query in a thread (in a monkey-patched program: a greenlet) of its own, and works on any
  asyncio loop, with and without tornado. A connection is free when its query's results are there; `free()`, the end
  of a `with` and `del` drop the rows. More than `pool_max_size` queries at a time are a PoolFullError, as before.
- New: sessions wait `pool_timeout` seconds (0) for a connection; pool errors are OperationalErrors; `query()` and
  `callproc()`, which were only documented.
- Gone: whatever handled single connections of a pool (`pool.Connection`, `Pool.add`, `lock`, ...): the pool is
  greenpg's. `TornadoSession._poll_connection` is there for those who wrap it, but nothing calls it.
"""

from __future__ import annotations

import logging
from typing import Any

from psycopg2 import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)
from psycopg2.extensions import QueryCanceledError, TransactionRollbackError
from psycopg2.extras import DictCursor, LoggingCursor, MinTimeLoggingCursor, NamedTupleCursor, RealDictCursor

from . import pool, results, session, tornado_session, utils
from .results import Results
from .session import Session
from .tornado_session import TornadoSession
from .utils import uri

__all__ = [
    "DataError",
    "DatabaseError",
    "DictCursor",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "LoggingCursor",
    "MinTimeLoggingCursor",
    "NamedTupleCursor",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "QueryCanceledError",
    "RealDictCursor",
    "Results",
    "Session",
    "TornadoSession",
    "TransactionRollbackError",
    "Warning",
    "callproc",
    "pool",
    "query",
    "results",
    "session",
    "tornado_session",
    "uri",
    "utils",
]

__version__ = version = "2.1.1"

logging.getLogger("queries").addHandler(logging.NullHandler())


def query(sql: str, uri: str = session.DEFAULT_URI, parameters: Any = None) -> Any:
    """The `Results` of one query, in a session of its own. Suspends."""
    with Session(uri) as one:
        return one.query(sql, parameters)


def callproc(name: str, uri: str = session.DEFAULT_URI, args: Any = None) -> Any:
    """The `Results` of one stored procedure, in a session of its own. Suspends."""
    with Session(uri) as one:
        return one.callproc(name, args)
