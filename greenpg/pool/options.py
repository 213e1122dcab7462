"""What a pool is made with: `PoolOptions`, and what they must be like, said once and clearly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from psycopg2 import extensions

from ..connection.connect.credentials import ConnectKwargs, Conninfo
from ..connection.connect.dsn import checked_dsn
from ..connection.connection import Connection
from ..connection.deadlines import checked_seconds
from ..connection.prepared.statements import checked_threshold

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    #: The class of a pool's connections.
    ConnT = TypeVar("ConnT", bound=extensions.connection, default=Connection, covariant=True)  # noqa: PLC0105
else:
    from typing import TypeVar

    ConnT = TypeVar("ConnT", bound=extensions.connection, covariant=True)  # noqa: PLC0105

ConnectionCallback = Callable[[Any], object]
Reset = Literal["rollback", "session"]
#: What a pooler in front of the server lends its connections for; see pooler.py.
Pooler = Literal["none", "session", "transaction", "statement"]
FailFast = bool | Callable[[Exception], object]

#: Keywords that greenpg or psycopg2 take for themselves; the others go into the connection string.
NOT_FOR_LIBPQ = frozenset({"autocommit", "cursor_factory"})
_REFUSED = {
    "connection_factory": "use the pool's connection_class parameter",
    "async": "a pool's connections are made green by greenpg.patch()",
    "async_": "a pool's connections are made green by greenpg.patch()",
}

_UNCHECKED = 0.001


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """All that doesn't change while a pool works, but the sizes. `ConnectionPool`'s docstring says what they mean."""

    conninfo: Conninfo
    kwargs: ConnectKwargs | None
    connection_class: type[extensions.connection]
    name: str
    configure: ConnectionCallback | None
    check: ConnectionCallback | None
    #: A function, "rollback", "session", or None, which is "rollback".
    reset: ConnectionCallback | Reset | None
    close_returns: bool
    timeout: float
    #: 0: no limit.
    max_waiting: int
    max_lifetime: float
    max_idle: float
    reconnect_timeout: float
    #: Called with the pool.
    reconnect_failed: Callable[[Any], object] | None
    num_workers: int
    check_idle: float
    #: True, or a function of the error that says so: who waits gets the error of connecting at once.
    fail_fast: FailFast
    #: Seconds after which a pool without a connection, which gets none either, lets nobody wait any longer.
    refused_after: float
    statement_deadline: float | None
    leak_after: float | None
    #: None: it is found out when it matters.
    pooler: Pooler | None
    #: Where LISTEN connects to.
    direct_conninfo: Conninfo | None
    prepare_threshold: int | None = None
    #: What follows from `reset` and `check`, for those who come by all the time: nothing but an open transaction has to
    #: be ended; the seconds after its return for which a connection is taken to be alive without a look.
    only_rolls_back: bool = field(init=False)
    unchecked_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        check_connecting(self.conninfo, self.kwargs, self.connection_class)
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {self.num_workers}")
        names = (
            "timeout",
            "max_waiting",
            "max_lifetime",
            "max_idle",
            "reconnect_timeout",
            "check_idle",
            "refused_after",
        )
        check_not_negative(**{name: getattr(self, name) for name in names}, leak_after=self.leak_after or 0)
        if self.statement_deadline is not None:
            checked_seconds(self.statement_deadline)
        if self.prepare_threshold is not None:
            checked_threshold(self.prepare_threshold)
        if not (self.reset is None or callable(self.reset) or self.reset in ("rollback", "session")):
            raise ValueError(f'reset must be "rollback", "session" or a function, not {self.reset!r}')
        if self.pooler not in (None, "none", "session", "transaction", "statement"):
            raise ValueError(f'pooler must be "session", "transaction", "statement" or "none", not {self.pooler!r}')
        if self.pooler in ("transaction", "statement") and self.reset == "session":
            raise ValueError(
                f'reset="session" can\'t be behind a pooler in {self.pooler} mode: there is no session to be reset'
            )
        object.__setattr__(self, "only_rolls_back", self.reset is None or self.reset == "rollback")
        object.__setattr__(self, "unchecked_seconds", _UNCHECKED if self.check is None else -1.0)

    def fails_fast(self, error: Exception) -> bool:
        """Whether those who wait for a connection are to get this error of connecting, instead of waiting on."""
        return bool(self.fail_fast(error) if callable(self.fail_fast) else self.fail_fast)


def check_sizes(min_size: int, max_size: int | None) -> tuple[int, int]:
    """The sizes, max_size filled in. ValueError if they make no sense."""
    if max_size is None:
        max_size = min_size
    if min_size < 0:
        raise ValueError(f"min_size can't be negative: {min_size}")
    if max_size < 1:
        raise ValueError(f"max_size must be at least 1, not {max_size}: a pool without connections can't lend any")
    if max_size < min_size:
        raise ValueError(f"max_size ({max_size}) can't be less than min_size ({min_size})")
    return min_size, max_size


def check_not_negative(**values: float) -> None:
    """ValueError if one of them is negative, or not a number."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} can't be negative: {value!r}")


def check_connecting(conninfo: object, kwargs: object, connection_class: object) -> None:
    """Find typing errors when the pool is made rather than in the background. Callables are seen at each connect."""
    if not isinstance(connection_class, type) or not issubclass(connection_class, extensions.connection):
        raise TypeError(
            f"connection_class must be a class derived from psycopg2.extensions.connection, not {connection_class!r}"
        )
    if callable(conninfo) or callable(kwargs):
        return
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo must be a string, or a callable that returns one, not {type(conninfo).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping, or a callable that returns one, not {type(kwargs).__name__}")
    dsn_from(conninfo, kwargs or {})


def dsn_from(conninfo: str, kwargs: Mapping[str, Any]) -> str:
    """The connection string of a pool's conninfo and kwargs. Raises what `checked_dsn()` and `for_libpq()` raise."""
    return checked_dsn(conninfo, **for_libpq(kwargs))


def for_libpq(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that go into the connection string. TypeError for those that a pool can't take."""
    for name, advice in _REFUSED.items():
        if name in kwargs:
            raise TypeError(f"{name!r} can't be among a pool's kwargs: {advice}")
    return {name: value for name, value in kwargs.items() if name not in NOT_FOR_LIBPQ}
