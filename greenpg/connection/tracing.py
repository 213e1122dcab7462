"""Hooks: what tracers are told of connections and statements.

What isn't traced doesn't ask: a traced connection gives cursors of other classes, and a pool looks once for each loan.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import is_interruption
from .bulk.copy import Copy
from .connection import Connection
from .cursor import Cursor
from .guarded_cursor import Params, Query

logger = logging.getLogger("greenpg.tracing")

#: Things that take time, and have a start and an end; and those that just happen.
SPANS = frozenset({"acquire", "release", "connect", "query", "prepare", "batch", "copy"})
MOMENTS = frozenset({"evicted", "cancelled", "leaked", "deadlock", "timeout"})
#: What a connection is traced for.
STATEMENTS = frozenset({"query", "prepare", "batch", "copy", "cancelled"})


class TraceEvent:
    """Something that happened in a pool, or is about to.

    - `name`: "acquire" (a task gets a connection), "release" (`seconds`: how long it was held), "connect", "query"
      (`execute()`, `callproc()`), "prepare" (within a "query", whose statement is prepared), "batch"
      (`executemany()`), "copy"; "evicted", "leaked", "cancelled", "deadlock", "timeout", which have no duration and,
      but for "cancelled" and "timeout", a `reason`.
    - `pool`: the pool's name. `connection`: None while there is none. `cursor`, `statement`, `parameters`: of
      statements; what was passed to the call.
    - `started_at`: `time.time()`; `seconds`: its duration, None at the start. `error`: what it was ended by.
    """

    __slots__ = (
        "_clock",
        "connection",
        "cursor",
        "data",
        "error",
        "name",
        "parameters",
        "pool",
        "reason",
        "seconds",
        "started_at",
        "statement",
    )

    def __init__(
        self,
        name: str,
        pool: str,
        connection: Any = None,
        cursor: Any = None,
        statement: Query | None = None,
        parameters: Any = None,
        reason: str | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.connection = connection
        self.cursor = cursor
        self.statement = statement
        self.parameters = parameters
        self.reason = reason
        self.error = error
        self.seconds: float | None = None
        #: For tracers: what `start()` wants to find again in `end()`.
        self.data: Any = None
        self.started_at = time.time()
        self._clock = time.perf_counter()

    def _ended(self, error: BaseException | None, seconds: float | None) -> None:
        self.error = error
        self.seconds = time.perf_counter() - self._clock if seconds is None else seconds

    def __repr__(self) -> str:
        parts = [f"{self.name} in {self.pool!r}"]
        if self.seconds is not None:
            parts.append(f"{self.seconds * 1000:.2f} ms")
        parts += [str(part) for part in (self.reason, self.error and type(self.error).__name__) if part]
        return f"<{type(self).__name__} {', '.join(parts)}>"


class Tracer:
    """What is told of events: override what you need. See `ConnectionPool(on_event=)`.

    Called in the task that the event is of. An `Exception` that it raises is logged and goes no further.
    Its methods may suspend if yours do; none of greenpg's does.
    """

    #: Names of the events that are wanted; None: all. Statements that nobody wants cost nothing.
    events: Iterable[str] | None = None

    def start(self, event: TraceEvent) -> None:
        """ "connect", "acquire", "query", "prepare", "batch" or "copy" begins."""

    def end(self, event: TraceEvent) -> None:
        """An event is over, or has happened."""


class FunctionTracer(Tracer):
    """A function that is called with each event when it is over."""

    def __init__(self, function: Callable[[TraceEvent], object]) -> None:
        self._function = function

    def end(self, event: TraceEvent) -> None:
        self._function(event)


#: What `on_event` may be.
OnEvent = Callable[[TraceEvent], object] | Tracer | Sequence[Callable[[TraceEvent], object] | Tracer] | None


def checked_tracers(on_event: OnEvent) -> tuple[Tracer, ...]:
    """The tracers. TypeError for anything that isn't one, ValueError for one that wants what there isn't."""
    if on_event is None:
        return ()
    if isinstance(on_event, Tracer):
        unknown = set(on_event.events or ()) - SPANS - MOMENTS
        if unknown:
            raise ValueError(
                f"there are no events {', '.join(sorted(map(repr, unknown)))}: use {', '.join(sorted(SPANS | MOMENTS))}"
            )
        return (on_event,)
    if isinstance(on_event, list | tuple):
        return tuple(tracer for item in on_event for tracer in checked_tracers(item))
    if callable(on_event):
        return (FunctionTracer(on_event),)
    raise TypeError(f"on_event must be a function, a greenpg.Tracer, or a list of them, not {on_event!r}")


class Tracing:
    """Tells the tracers of one pool."""

    __slots__ = ("_by_event", "_pool", "tracers")

    def __init__(self, pool: str, tracers: tuple[Tracer, ...]) -> None:
        self._pool = pool
        self.tracers = tracers
        self._by_event = {
            name: tuple(tracer for tracer in tracers if tracer.events is None or name in tracer.events)
            for name in SPANS | MOMENTS
        }

    def wants(self, names: Iterable[str]) -> bool:
        """Whether any tracer wants to know of any of these."""
        return any(self._by_event[name] for name in names)

    def begin(self, name: str, *details: Any) -> TraceEvent:
        """Something begins; `details` are `TraceEvent`'s, from the connection on."""
        event = self.made(name, *details)
        for tracer in self._by_event[name]:
            _call(tracer.start, event)
        return event

    def made(self, name: str, *details: Any) -> TraceEvent:
        """The same, and nobody is told yet."""
        return TraceEvent(name, self._pool, *details)

    def end(self, event: TraceEvent, error: BaseException | None = None, seconds: float | None = None) -> None:
        """It has ended. `seconds`: None, to be measured since its begin."""
        event._ended(error, seconds)
        for tracer in self._by_event[event.name]:
            _call(tracer.end, event)

    def tell(self, name: str, connection: Any = None, reason: str | None = None, **details: Any) -> None:
        """Something has happened."""
        if tracers := self._by_event[name]:
            event = TraceEvent(name, self._pool, connection, reason=reason, **details)
            for tracer in tracers:
                _call(tracer.end, event)


def _call(method: Callable[[TraceEvent], object], event: TraceEvent) -> None:
    try:
        method(event)
    except Exception as error:
        if is_interruption(error):
            raise
        logger.exception("a tracer failed, at %s", event)


class TracedStatements(Cursor):
    """Goes on top of a cursor whose connection is traced."""

    connection: Connection

    def execute(self, query: Query, vars: Params = None, *, prepare: bool | None = None) -> None:
        self._traced("query", super().execute, query, vars, prepare=prepare)

    def callproc(self, procname: str | bytes, parameters: Params = None, /) -> None:
        self._traced("query", super().callproc, procname, parameters)

    def executemany(self, query: Query, vars_list: Iterable[Params], *, returning: bool = False) -> None:
        self._traced("batch", super().executemany, query, vars_list, returning=returning)

    def copy_from(self, file: Any, table: str, *args: Any, **kwargs: Any) -> None:
        self._traced("copy", super().copy_from, file, table, *args, shown=f"COPY {table} FROM STDIN", **kwargs)

    def copy_to(self, file: Any, table: str, *args: Any, **kwargs: Any) -> None:
        self._traced("copy", super().copy_to, file, table, *args, shown=f"COPY {table} TO STDOUT", **kwargs)

    def copy_expert(self, sql: Query, file: Any, *args: Any, **kwargs: Any) -> None:
        self._traced("copy", super().copy_expert, sql, file, *args, shown=sql, **kwargs)

    def copy(self, statement: Query, params: Params = None) -> Copy:
        return TracedCopy(self, statement, params)

    def _traced(self, name: str, call: Callable[..., object], *args: Any, shown: Any = None, **kwargs: Any) -> None:
        tracing: Tracing | None = self.connection._tracing
        if tracing is None:
            call(*args, **kwargs)
            return
        statement, parameters = (args[0], args[1]) if shown is None else (shown, None)
        event = tracing.begin(name, self.connection, self, statement, parameters)
        try:
            call(*args, **kwargs)
        except BaseException as error:
            end_with_error(tracing, event, error)
            raise
        tracing.end(event)


class TracedCopy(Copy):
    """`with cur.copy()` on a traced connection."""

    def __init__(self, cursor: TracedStatements, statement: Query, params: Params = None) -> None:
        super().__init__(cursor, statement, params)
        self._tracing: Tracing | None = cursor.connection._tracing
        self._event: TraceEvent | None = None

    def __enter__(self) -> Copy:
        if self._tracing is None:
            return super().__enter__()
        self._event = self._tracing.begin("copy", self._conn, self._cursor, self._statement, self._params)
        try:
            return super().__enter__()
        except BaseException as error:
            end_with_error(self._tracing, self._event, error)
            raise

    def __exit__(self, exc_type: Any, exc: BaseException | None, traceback: Any) -> None:
        try:
            super().__exit__(exc_type, exc, traceback)
        except BaseException as error:
            exc = error
            raise
        finally:
            if self._tracing is not None and self._event is not None:
                end_with_error(self._tracing, self._event, exc)


def end_with_error(tracing: Tracing, event: TraceEvent, error: BaseException | None) -> None:
    """The end of a statement; if it was thrown out, it has been cancelled at the server."""
    tracing.end(event, error)
    if error is not None and is_interruption(error):
        tracing.tell(
            "cancelled",
            event.connection,
            cursor=event.cursor,
            statement=event.statement,
            parameters=event.parameters,
            error=error,
        )
