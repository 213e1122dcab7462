"""`Unit`: what one request, or one Celery task, borrows of a pool, and how that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import greenpg
from greenpg.hubs import hub

#: What is kept until the unit ends: a connection, once it has been asked for; or a transaction, from the first use on.
Keeps = Literal["connection", "transaction"]


class Unit:
    """The dealings of a request, or task, with one pool. It belongs to the green thread that has made it: others, which
    a request may start, get connections of their own from `cursor()` and `transaction()`.
    """

    def __init__(self, pool: greenpg.ConnectionPool[Any], keeps: Keeps) -> None:
        self.pool = pool
        self._keeps_transaction = keeps == "transaction"
        self._owner = hub().current()
        self._context: Any = None
        #: What is kept, or lent to the block in which we are.
        self._conn: Any = None

    @property
    def connection(self) -> greenpg.Connection:
        """The unit's connection, lent at the first use and until it ends. Suspends at the first use.

        Raises RuntimeError in a green thread that isn't the unit's own, and what `pool.getconn()` raises.
        """
        if hub().current() != self._owner:
            raise RuntimeError(
                "this connection belongs to the request, or task, and is not for what it has spawned: use "
                "`with db.cursor()` or `with db.transaction()` there, which lend one of its own"
            )
        if self._conn is None:
            context: Any = self.pool.transaction() if self._keeps_transaction else self.pool.connection()
            self._conn, self._context = context.__enter__(), context
        conn: greenpg.Connection = self._conn
        return conn

    @contextmanager
    def transaction(self, **options: Any) -> Iterator[greenpg.Connection]:
        """`with db.transaction() as conn:` commits at its end, or rolls back if it raises; within another block, or a
        transaction that the unit keeps, it's a savepoint. Options: `conn.transaction()`'s. Suspends.
        """
        if hub().current() != self._owner:
            with self.pool.transaction(**options) as conn:
                yield conn
        elif self._conn is not None or self._keeps_transaction:
            with self.connection.transaction(**options):
                yield self.connection
        else:
            with self.pool.transaction(**options) as conn:
                self._conn = conn
                try:
                    yield conn
                finally:
                    self._conn = None

    @contextmanager
    def cursor(self, cursor_factory: Callable[..., Any] | None = None) -> Iterator[Any]:
        """`with db.cursor() as cur:` is a transaction of its own, or a part of the one that there is. Suspends."""
        is_within = hub().current() == self._owner and (
            self._keeps_transaction or (self._conn is not None and self._context is None)
        )
        if is_within:
            with self.connection.cursor(cursor_factory=cursor_factory) as cur:
                yield cur
        else:
            with self.transaction() as conn, conn.cursor(cursor_factory=cursor_factory) as cur:
                yield cur

    def end(self, error: BaseException | None = None, *, roll_back: bool = False) -> None:
        """Return what was kept. A transaction that the unit keeps is committed, or rolled back with an error; of a
        connection, what its user has not committed is rolled back. Suspends. Again is harmless.
        """
        context, self._context, self._conn = self._context, None, None
        if context is None:
            return
        if error is None and (roll_back or not self._keeps_transaction):
            error = greenpg.Rollback()
        context.__exit__(*((None, None, None) if error is None else (type(error), error, error.__traceback__)))


def new_pool(conninfo: str | Callable[[], str], **options: Any) -> greenpg.ConnectionPool[Any]:
    """A `ConnectionPool`, whose min_size, if it isn't given, is no more than its max_size."""
    if options.get("max_size") is not None:
        options.setdefault("min_size", min(4, options["max_size"]))
    return greenpg.ConnectionPool(conninfo, **options)


def checked_keeps(keeps: str, name: str) -> Any:
    """The value, or ValueError."""
    if keeps not in ("connection", "transaction"):
        raise ValueError(f'{name} must be "connection" or "transaction", not {keeps!r}')
    return keeps
