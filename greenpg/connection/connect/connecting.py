"""Making connections, with `connect_timeout` and name look-ups that hold in green mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, overload

import psycopg2
from psycopg2 import extensions
from psycopg2._psycopg import _connect as _c_connect

from ...errors import is_interruption, note_failed_to_connect
from ...hubs import hub
from ..composing import compose
from ..connection import Connection
from ..forking import keep_from_children
from ..installing import settle
from ..wait_callback import wait_by_poll
from .client_check import is_refusal, note_taken, options_with_check
from .dsn import checked_dsn
from .look_up import Names
from .route import Host, find_route
from .silent import has_waited_for, is_silent, may_wait_for, note_answer, note_silent, silent_last
from .watch import ConnectWatch, HostTimedOut, watching, without_sqlstate

T = TypeVar("T")

#: Seconds after which another task that waits for a host knows whether it is back.
_ENOUGH = 0.1

_psycopg2_connect: Any = _c_connect  # psycopg2's own, whatever patch() puts in its place


AnyConnection = TypeVar("AnyConnection", bound=extensions.connection)
CursorFactory = Callable[..., extensions.cursor]


@overload
def connect(
    dsn: str | None = None,
    connection_factory: None = None,
    cursor_factory: CursorFactory | None = None,
    *,
    total_connect_timeout: float | None = None,
    **kwargs: Any,
) -> Connection: ...
@overload
def connect(
    dsn: str | None = None,
    *,
    connection_factory: Callable[..., AnyConnection],
    cursor_factory: CursorFactory | None = None,
    total_connect_timeout: float | None = None,
    **kwargs: Any,
) -> AnyConnection: ...
@overload
def connect(
    dsn: str | None,
    connection_factory: Callable[..., AnyConnection],
    cursor_factory: CursorFactory | None = None,
    *,
    total_connect_timeout: float | None = None,
    **kwargs: Any,
) -> AnyConnection: ...
def connect(
    dsn: str | None = None,
    connection_factory: Callable[..., extensions.connection] | None = None,
    cursor_factory: CursorFactory | None = None,
    *,
    total_connect_timeout: float | None = None,
    **kwargs: Any,
) -> Any:
    """A new connection, with `psycopg2.connect`'s parameters and errors. Suspends the caller.

    It is a `greenpg.Connection`, and of the class `connection_factory` as well where one is named. Other tasks run
    while it connects if `greenpg.patch()` was called before; otherwise it blocks as psycopg2 does.

    libpq's `connect_timeout` (whole seconds; from the DSN, a keyword, the service file or PGCONNECT_TIMEOUT) limits
    each address of each host, the look-up of its name included; `total_connect_timeout` (seconds; default: no limit)
    limits all of them together. Of several hosts each has 3 s if nothing is said of `connect_timeout`, and those that
    said nothing are tried last for a while, by one task at a time. For TCP, keepalives and `tcp_user_timeout` have
    defaults by which a peer that is gone is noticed within about a minute, or ten seconds if there are several hosts;
    keywords of these names change them. The server is asked to look every 3 s, while it works, whether this side
    is still there (`client_connection_check_interval`, PostgreSQL 14 and later), unless libpq's `options` say something
    of that: `options="-c client_connection_check_interval=0"`.
    """
    asynchronous = {key: kwargs.pop(key) for key in ("async", "async_") if key in kwargs}
    if total_connect_timeout is not None and not total_connect_timeout > 0:
        raise ValueError(f"total_connect_timeout must be a positive number of seconds, not {total_connect_timeout!r}")
    conn = connect_for_psycopg2(
        checked_dsn(dsn, **kwargs), connection_factory, total_connect_timeout=total_connect_timeout, **asynchronous
    )
    if cursor_factory is not None:
        conn.cursor_factory = cursor_factory
    return conn


def connect_as_instrumented(dsn: str, connection_factory: Any, cursor_factory: Any) -> Any:
    """`connect()` by what `psycopg2.connect` is at the moment: OpenTelemetry's instrumentation and its like replace it.

    Only while it gives connections of greenpg's. A proxy around one (wrapt's) is taken off: psycopg2 takes none.
    """
    is_patched = getattr(psycopg2, "_connect", None) is connect_for_psycopg2
    connect_here: Any = psycopg2.connect if is_patched else connect
    conn = connect_here(dsn, connection_factory=connection_factory, cursor_factory=cursor_factory)
    while not issubclass(type(conn), extensions.connection) and hasattr(conn, "__wrapped__"):
        conn = conn.__wrapped__
    return conn


def connect_for_psycopg2(
    dsn: str, connection_factory: Any = None, *, total_connect_timeout: float | None = None, **asynchronous: Any
) -> Any:
    """What stands in for `psycopg2._connect` while patched."""
    try:
        conn = _connect(dsn, connection_factory, total_connect_timeout, **asynchronous)
    except psycopg2.Error as error:
        if not is_interruption(error):
            note_failed_to_connect(error)
        raise
    if isinstance(conn, Connection):
        keep_from_children(conn)
    return conn


def _connect(dsn: str, connection_factory: Any, total_connect_timeout: float | None, **asynchronous: Any) -> Any:
    settle()
    factory = Connection if connection_factory is None else compose(connection_factory, Connection)
    if extensions.get_wait_callback() is None:  # libpq does it all, in C
        return _psycopg2_connect(dsn, connection_factory=factory, **asynchronous)
    if any(asynchronous.values()):
        route = find_route(dsn)
        names = Names(route, None if total_connect_timeout is None else time.monotonic() + total_connect_timeout)
        hosts = names.next_hosts(everything=True)
        if route.hosts and not hosts:
            raise psycopg2.OperationalError("\n".join(names.failures))
        options = options_with_check(route, only_if_known=True)  # nobody here would see it refused
        conn = _psycopg2_connect(route.dsn_to(hosts, options), connection_factory=factory, **asynchronous)
    else:
        conn = _connect_in_time(
            dsn, total_connect_timeout, lambda found: _psycopg2_connect(found, connection_factory=factory)
        )
    if isinstance(conn, Connection):
        conn._note_dsn(dsn)
    return conn


def connect_asynchronous(dsn: str, begun: Callable[[Connection | None], object]) -> Connection:
    """An asynchronous `Connection` that is ready to use. Suspends; `connect_timeout` holds as in `connect()`.

    `begun` is called with each connection that is tried, before it is waited for, so that another task can shut it
    down meanwhile; and with None before it is closed because it failed.
    """

    def open_and_wait(found: str) -> Connection:
        conn: Connection = _psycopg2_connect(found, connection_factory=Connection, async_=True)
        keep_from_children(conn)
        try:
            begun(conn)
            wait_by_poll(conn, hub())
        except BaseException:
            begun(None)
            conn.close()
            raise
        conn._note_dsn(dsn)
        return conn

    settle()
    return _connect_in_time(dsn, None, open_and_wait)


def _connect_in_time(dsn: str, total_timeout: float | None, connect_to: Callable[[str], T]) -> T:
    waits_for: list[Host] = []
    try:
        return _try_in_time(dsn, total_timeout, connect_to, waits_for)
    finally:
        for host in waits_for:
            has_waited_for(host)


def _try_in_time(dsn: str, total_timeout: float | None, connect_to: Callable[[str], T], waits_for: list[Host]) -> T:
    """Let libpq try the hosts; whenever one has had its time, begin again without it."""
    deadline = None if total_timeout is None else time.monotonic() + total_timeout
    route = find_route(dsn)
    names = Names(route, deadline)
    failures = names.failures
    hosts = names.next_hosts()
    if route.hosts and not hosts:
        raise psycopg2.OperationalError("\n".join(failures))
    left_out = _waited_for(hosts, waits_for) if route.is_default_timeout else []
    hosts = [host for host in hosts if host not in left_out]
    options = options_with_check(route)
    task = hub().current()
    sqlstate: str | None = None
    while True:
        hosts = silent_last(hosts)
        watch = ConnectWatch(route.timeout, deadline, spares_silent=route.is_default_timeout)
        try:
            with watching(task, watch):
                conn = connect_to(route.dsn_to(hosts, options))
            note_answer(watch.current)
            if options is not None:
                note_taken(route)
            if isinstance(conn, Connection) and conn.notices:
                conn.notices[:] = [without_sqlstate(notice)[0] for notice in conn.notices]
            return conn
        except HostTimedOut:
            host = watch.current_of(hosts)
            if not watch.is_suspect:
                note_silent(host)
            failures.append(f"connection to {host} failed: timeout expired")
            hosts = [other for other in hosts if other is not host]
        except psycopg2.OperationalError as error:
            if is_interruption(error):
                raise
            if options is not None and is_refusal(route, str(error)):
                options = None
                continue
            message, sqlstate = without_sqlstate(str(error))
            failures.append(watch.complete(message))
            hosts = _not_tried(hosts, watch) if sqlstate is None and not names.gives_all else []
        if deadline is None or time.monotonic() < deadline:
            hosts = hosts or names.next_hosts() or (_back_again(left_out, failures) if left_out else [])
            if hosts:
                continue
        raise _error(failures, sqlstate)


def _waited_for(hosts: list[Host], waits_for: list[Host]) -> list[Host]:
    """While another task waits for a host that is silent, this one asks the others alone, if there are any."""
    are_silent = [host for host in hosts if is_silent(host)]
    waits_for += filter(may_wait_for, are_silent)
    left_out = [host for host in are_silent if host not in waits_for]
    return left_out if len(left_out) < len(hosts) else []


def _back_again(left_out: list[Host], failures: list[str]) -> list[Host]:
    """What the other task has found out by now. Suspends."""
    hub().sleep(_ENOUGH)
    back = [host for host in left_out if not is_silent(host)]
    failures += [f"connection to {host} failed: it says nothing" for host in left_out if host not in back]
    left_out.clear()
    return back


def _not_tried(hosts: list[Host], watch: ConnectWatch) -> list[Host]:
    """libpq doesn't go on when a host accepts and hangs up, as a proxy without a server behind it does."""
    return hosts[hosts.index(watch.current_of(hosts)) + 1 :] if hosts else []


def _error(failures: list[str], sqlstate: str | None) -> psycopg2.OperationalError:
    error = psycopg2.OperationalError("\n".join(failures))
    error.__setstate__({"pgcode": sqlstate})  # type: ignore[no-untyped-call]
    return error
