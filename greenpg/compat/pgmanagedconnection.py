"""psycopg2-managed-connection 1.0.0 on greenpg: `from greenpg.compat.pgmanagedconnection import ManagedConnection`.

Kept: one connection, one user at a time; leaving a block with a transaction open rolls it back and is a RuntimeError;
psycopg2's errors close the connection, others only roll back; `closed`, `status`, `repr()`; the logger's name.

What differs, and why:
- It is a `greenpg.SharedConnection`: first come, first served, for green tasks and native threads.
- A kill or a timeout (BaseException) is cleaned up after as well; the next user inherited its transaction before.
- A task that enters twice gets a RuntimeError; it waited for itself for ever.
- A connection that died while nobody used it is replaced on entering, as the README promised.
- The exception of a block is never replaced by one of the rollback.
- `autocommit`, isolation level and encoding of one user are not the next one's.
- No password in `str()`, `repr()` and the log. A malformed DSN is an error when the object is made.
- New: `manager(timeout=seconds)`, which raises `greenpg.WaitTimeout`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2 import extensions

from .. import SharedConnection

__all__ = ["ManagedConnection"]

logger = logging.getLogger("pgmanagedconnection.connection")


class ManagedConnection:
    """`with manager() as connection:` exclusive use of one connection, which is opened when it is needed."""

    STATUS_IN_TRANSACTION = frozenset({extensions.TRANSACTION_STATUS_INERROR, extensions.TRANSACTION_STATUS_INTRANS})

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._shared = SharedConnection(dsn)
        self._connection: Any = None

    @contextmanager
    def __call__(self, close: bool = False, timeout: float | None = None) -> Iterator[Any]:
        """The connection for a block. `close`: close it at the end.

        Entering suspends until it is the caller's turn, for at most `timeout` seconds (None: no limit), and while it
        connects; it raises psycopg2's errors. Leaving raises RuntimeError if a transaction was left open.
        """
        if self.closed:
            logger.debug("Connecting to %s...", self)
        with self._shared(close=close, timeout=timeout) as connection:
            self._connection = connection
            try:
                yield connection
            except BaseException as error:
                if not isinstance(error, psycopg2.Error) and self.status in self.STATUS_IN_TRANSACTION:
                    logger.warning(
                        "Forcing connection rollback after exception thrown in connection block: %s",
                        error,
                        exc_info=True,
                    )
                raise

    @property
    def closed(self) -> bool | int:
        """True before the first use and after an error; else psycopg2's `closed`. Doesn't suspend."""
        return self._shared.closed

    @property
    def status(self) -> int | None:
        """The transaction status; None without a connection. Doesn't suspend."""
        return self._shared.status

    def __str__(self) -> str:
        return self._shared.dsn if "password" in extensions.parse_dsn(self.dsn) else self.dsn

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self} ({'closed' if self.closed else self._connection})>"
