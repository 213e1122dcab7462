"""Every exception of greenpg's own, and names for the server's (sqlstate.py). All are psycopg2's too, so that existing
`except` clauses catch them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg2
import psycopg2.errors

from . import sqlstate
from .settling import COMMITTED, ROLLED_BACK, UNKNOWN, TransactionIdentity, settle

if TYPE_CHECKING:
    from .sqlstate import *  # noqa: F403 - its __all__ is added to this one

__all__ = [
    "COMMITTED",
    "ROLLED_BACK",
    "UNKNOWN",
    "ConnectionInUse",
    "ConnectionInherited",
    "ConnectionReturned",
    "CopyInProgress",
    "DeadlineExceeded",
    "LibpqUnavailable",
    "ListenerClosed",
    "PatchError",
    "PipelineAborted",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
    "WaitTimeout",
    "commit_outcome",
    "safe_to_retry",
]
__all__ += sqlstate.__all__

if not TYPE_CHECKING:  # to a type checker it would be a promise that every name is there

    def __getattr__(name: str) -> object:
        if name not in sqlstate.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        sqlstate.insert_classes()
        globals().update({name: getattr(sqlstate, name) for name in sqlstate.__all__})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


E = TypeVar("E", bound=Exception)


class PatchError(RuntimeError):
    """`greenpg.patch()` can't do what was asked."""


class ConnectionInUse(psycopg2.ProgrammingError):
    """A task called a connection in which another task is waiting for the server.

    The connection and the other task's statement are unharmed. Fields: `operation`, what was called; `owner`, a
    description of the task that is waiting.
    """

    def __init__(self, operation: str, owner: str) -> None:
        super().__init__(
            f"{operation}() refused: {owner} is waiting for the server on this connection. "
            "Give each task a connection of its own (greenpg.ConnectionPool), or let them take turns"
        )
        self.operation = operation
        self.owner = owner

    def __reduce__(self) -> tuple[type[ConnectionInUse], tuple[str, str]]:
        return type(self), (self.operation, self.owner)


class ConnectionInherited(psycopg2.InterfaceError):
    """A connection was used in a child of the process whose it is. Nothing was done.

    Field: `operation`, what was called.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation}() refused: the connection is that of the process from which this one was forked. Make one of "
            "its own in each process; a greenpg.ConnectionPool does"
        )
        self.operation = operation

    def __reduce__(self) -> tuple[type[ConnectionInherited], tuple[str]]:
        return type(self), (self.operation,)


class ConnectionReturned(psycopg2.InterfaceError):
    """A connection was used after it had gone back to its pool, or a cursor that was made before. Nothing was done.

    Field: `operation`, what was called.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation}() refused: the connection has been given back to its pool. Use it while it is borrowed only"
        )
        self.operation = operation

    def __reduce__(self) -> tuple[type[ConnectionReturned], tuple[str]]:
        return type(self), (self.operation,)


class CopyInProgress(ConnectionInUse):
    """A connection was called while it is in the middle of a `with cur.copy()` block. The COPY is unharmed.

    Fields as `ConnectionInUse`'s; `owner` is the task that is in the block.
    """

    def __init__(self, operation: str, owner: str) -> None:
        psycopg2.ProgrammingError.__init__(
            self,
            f"{operation}() refused: a COPY is under way on this connection, in a `with cur.copy()` block of {owner}. "
            "Leave the block first, or use another connection",
        )
        self.operation = operation
        self.owner = owner


class DeadlineExceeded(psycopg2.errors.QueryCanceled):
    """A statement, or a block of them, took longer than its deadline on this side. `pgcode` is 57014, as if the
    server's `statement_timeout` had struck."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.__setstate__({"pgcode": "57014"})  # type: ignore[no-untyped-call]


class LibpqUnavailable(psycopg2.NotSupportedError):
    """Something needs a function of libpq that greenpg can't call through the installed psycopg2."""


class ListenerClosed(psycopg2.OperationalError):
    """A `Listener`, or the subscription that was asked for a notification, is closed."""


class PipelineAborted(psycopg2.OperationalError):
    """The statement was not executed, because one before it in the pipeline has failed.

    The other one's error is raised by its own cursor, or at the next `sync()` or the end of the block. After a `sync()`
    or `rollback()` the pipeline can be used on. `statement_index`: as of all errors in a pipeline, which statement of
    the block it was, counted from 0; missing if it wasn't even sent.
    """


class PoolClosed(psycopg2.OperationalError):
    """A connection was asked of a pool that is closed, or not open yet."""


class PoolTimeout(psycopg2.OperationalError):
    """No connection became free in time. The text says what the pool's connections were doing; if connecting
    failed, the last error is the `__cause__`.

    Fields: `size`, how many there are; `lent`, how many of them are lent; `waiting`, how many requests still wait.
    """

    def __init__(self, *args: object, size: int = 0, lent: int = 0, waiting: int = 0) -> None:
        super().__init__(*args)
        self.size = size
        self.lent = lent
        self.waiting = waiting


class TooManyRequests(psycopg2.OperationalError):
    """`max_waiting` requests are waiting for a connection already."""


class WaitTimeout(psycopg2.OperationalError):
    """What was waited for did not come in time: an answer of the server, or a turn. The text says which."""


class Asked(Protocol):
    """Whom `commit_outcome()` can ask: a pool."""

    def fetchone(self, query: str, vars: Any = None) -> Any:
        """The first row of the query."""


def commit_outcome(exception: BaseException, ask: Asked | None = None, *, timeout: float = 10.0) -> str | None:
    """What has become of the transaction whose COMMIT raised this exception: "committed", "rolled back" or "unknown".

    "unknown": the connection was lost before the server's answer came. None: the exception is not a COMMIT's.

    `ask`: a pool of connections to the primary (a connection pool for "target_session_attrs=read-write", say), of which
    the server is asked then, if the transaction was made with `settle=True`; suspends. It stays "unknown" if
    the server has not ended the transaction within `timeout` seconds, or can't know. Raises what the pool raises.
    """
    outcome: str | None = exception.__dict__.get("_greenpg_commit_outcome")
    identity: TransactionIdentity | None = exception.__dict__.get("_greenpg_transaction")
    if outcome == UNKNOWN and ask is not None and identity is not None:
        outcome = settle(identity, ask.fetchone, timeout)
        note_commit_outcome(exception, outcome)
    return outcome


def note_transaction(exception: BaseException, identity: TransactionIdentity) -> None:
    """Let `commit_outcome()` know whose COMMIT raised the exception."""
    set_attribute(exception, "_greenpg_transaction", identity)


def note_commit_outcome(exception: BaseException, outcome: str) -> None:
    """Make `commit_outcome()` say so of the exception."""
    set_attribute(exception, "_greenpg_commit_outcome", outcome)


def safe_to_retry(exception: BaseException) -> bool:
    """True only if nothing of what was asked can have reached the server: what raised it can be called once more.

    So it is for the pool's own errors, for refusals (`ConnectionInUse`, ...) and for failures to connect. Not after a
    failed statement: a lost connection doesn't tell how far it came. Doesn't suspend.
    """
    refused = (PoolTimeout, PoolClosed, TooManyRequests, ConnectionInUse, ConnectionInherited, ConnectionReturned)
    if is_interruption(exception):
        return False  # whatever its class says
    return isinstance(exception, refused) or "_greenpg_failed_to_connect" in exception.__dict__


def note_failed_to_connect(exception: BaseException) -> None:
    """Make `safe_to_retry()` say so of the exception."""
    set_attribute(exception, "_greenpg_failed_to_connect", True)


def note_interruption(exception: BaseException) -> None:
    """Make `is_interruption()` say so of the exception: it was thrown into a task that waited (a kill, a timeout).

    The hubs do it. Its class says nothing: `gevent.Timeout(5, psycopg2.OperationalError("too slow"))` throws one of
    psycopg2's.
    """
    set_attribute(exception, "_greenpg_interruption", True)


def is_interruption(exception: BaseException) -> bool:
    """Whether the exception was thrown into a wait: then it isn't an error of what was being done, and is let out."""
    return "_greenpg_interruption" in exception.__dict__


def copied(error: E) -> E:
    """A copy to be raised: each task adds its own traceback. The error itself if it can't be copied."""
    try:
        copied_error = copy.copy(error)
    except Exception:
        return error
    if type(copied_error) is not type(error):
        return error
    if isinstance(error, psycopg2.Error):  # which keeps these to itself
        copied_error.__setstate__({"pgcode": error.pgcode, "pgerror": error.pgerror})
        copied_error.__dict__.update(error.__dict__)
    return copied_error


def set_attribute(exception: BaseException, name: str, value: object) -> None:
    """Set it though the exception's class refuses that: a frozen dataclass would raise an error in its place."""
    try:
        BaseException.__setattr__(exception, name, value)
    except (AttributeError, TypeError):  # a property of that name
        pass
