"""`instrument()`: pools for OpenTelemetry, by its semantic conventions (`pip install greenpg[otel]`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg2
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

import greenpg

from ..connection.tracing import TraceEvent, Tracer
from ..pool.pool import ConnectionPool
from .operations import OTHER, operation_of

_SCHEMA = "https://opentelemetry.io/schemas/1.33.0"
_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_SYSTEM: dict[str, str | int] = {"db.system.name": "postgresql"}
_DEFAULT_PORT = 5432

#: Seconds. Those of operations are the convention's; it has none for the pool, and the SDK's default ones are too long.
_OPERATION_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_POOL_BOUNDS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

Attributes = dict[str, str | int]
Values = Iterable[tuple[int, Attributes]]


class Instrumentation:
    """What `instrument()` has set up."""

    def __init__(self, watches: list[_Watch]) -> None:
        self._watches = watches

    def uninstrument(self) -> None:
        """Tell OpenTelemetry nothing any more. Doesn't suspend."""
        for watch in self._watches:
            watch.stop()


def instrument(
    *pools: ConnectionPool,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    query_text: bool = False,
    wait_spans: float | None = 0.001,
) -> Instrumentation:
    """Tell OpenTelemetry of these pools and their statements; the providers default to the global ones.

    - Metrics of each pool, with `db.client.connection.pool.name`: `db.client.connection.count` (by
      `db.client.connection.state`), `.idle.max`, `.idle.min`, `.max`, `.pending_requests`, `.timeouts`, and in seconds
      `.create_time`, `.wait_time`, `.use_time`; and `db.client.operation.duration`.
    - A client span of each statement (`execute`, `callproc`, `executemany`, COPY), named like "SELECT shop", with
      `db.system.name`, `db.namespace`, `db.operation.name`, `server.address`, `server.port` if it isn't 5432, and for
      errors `db.response.status_code` (SQLSTATE) and `error.type`. `query_text` (False) adds `db.query.text`, without
      the parameters, and the errors' messages: either may show data.
    - A span "wait for a connection" where a task waited for longer than `wait_spans` (0.001) seconds; None: never.

    Call it after the providers have been set up, and after a fork. Raises TypeError without pools. Doesn't suspend.
    """
    if not pools:
        raise TypeError("instrument() needs the pools that it is to tell of")
    meter = metrics.get_meter("greenpg", greenpg.__version__, meter_provider, _SCHEMA)
    tracer = trace.get_tracer("greenpg", greenpg.__version__, tracer_provider, _SCHEMA)
    instruments = _Instruments(meter)
    watches = [_Watch(pool, tracer, instruments, query_text, wait_spans) for pool in pools]
    _observe(meter, watches)
    for pool, watch in zip(pools, watches, strict=True):
        pool.add_tracer(watch)
    return Instrumentation(watches)


class _Instruments:
    """Those that are told of each event."""

    def __init__(self, meter: Meter) -> None:
        def seconds(name: str, text: str, bounds: tuple[float, ...] = _POOL_BOUNDS) -> Histogram:
            return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=list(bounds))

        self.create_time = seconds("db.client.connection.create_time", "The time it took to create a new connection.")
        self.wait_time = seconds(
            "db.client.connection.wait_time", "The time it took to obtain an open connection from the pool."
        )
        self.use_time = seconds(
            "db.client.connection.use_time", "The time between borrowing a connection and returning it to the pool."
        )
        self.operation = seconds(
            "db.client.operation.duration", "Duration of database client operations.", _OPERATION_BOUNDS
        )
        self.timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        )


def _observe(meter: Meter, watches: list[_Watch]) -> None:
    """The instruments that are asked for their values."""

    def observe(name: str, unit: str, text: str, read: Callable[[dict[str, int]], Values]) -> None:
        def callback(options: CallbackOptions) -> Iterator[Observation]:
            for watch in watches:
                stats = watch.stats()
                for value, attributes in read(stats) if stats else ():
                    yield Observation(value, watch.pool_attributes | attributes)

        meter.create_observable_up_down_counter(name, [callback], unit, text)

    observe(
        "db.client.connection.count",
        "{connection}",
        "The number of connections that are currently in state described by the `state` attribute.",
        lambda stats: ((stats["pool_available"], {_STATE: "idle"}), (stats["pool_lent"], {_STATE: "used"})),
    )
    for name, unit, text, key in (
        ("idle.max", "{connection}", "The maximum number of idle open connections allowed.", "pool_max"),
        ("idle.min", "{connection}", "The minimum number of idle open connections allowed.", "pool_min"),
        ("max", "{connection}", "The maximum number of open connections allowed.", "pool_max"),
        (
            "pending_requests",
            "{request}",
            "The number of current pending requests for an open connection.",
            "requests_waiting",
        ),
    ):
        observe(f"db.client.connection.{name}", unit, text, _reader(key))


def _reader(key: str) -> Callable[[dict[str, int]], Values]:
    return lambda stats: ((stats[key], {}),)


class _Watch(Tracer):
    """Tells of one pool."""

    events = ("acquire", "release", "connect", "timeout", "query", "batch", "copy")

    def __init__(
        self,
        pool: ConnectionPool,
        tracer: trace.Tracer,
        instruments: _Instruments,
        query_text: bool,
        wait_spans: float | None,
    ) -> None:
        self._pool = weakref.ref(pool)
        self._tracer = tracer
        self._instruments = instruments
        self._query_text = query_text
        self._wait_spans = wait_spans
        self._servers: weakref.WeakKeyDictionary[Any, Attributes] = weakref.WeakKeyDictionary()
        self._is_stopped = False
        self.pool_attributes: Attributes = {_POOL_NAME: pool.name}
        instruments.timeouts.add(0, self.pool_attributes)

    def stats(self) -> dict[str, int] | None:
        """None if there's nothing more to tell."""
        pool = self._pool()
        return None if pool is None or self._is_stopped else pool.get_stats()

    def stop(self) -> None:
        self._is_stopped = True
        if (pool := self._pool()) is not None:
            pool.remove_tracer(self)

    def end(self, event: TraceEvent) -> None:
        name, seconds, told = event.name, event.seconds or 0.0, self._instruments
        if name == "acquire":
            if event.error is None:
                told.wait_time.record(seconds, self.pool_attributes)
            if self._wait_spans is not None and seconds > self._wait_spans:
                self._span("wait for a connection", event, SpanKind.INTERNAL, _SYSTEM | self.pool_attributes)
        elif name == "release":
            told.use_time.record(seconds, self.pool_attributes)
        elif name == "connect":
            if event.error is None:
                told.create_time.record(seconds, self.pool_attributes)
        elif name == "timeout":
            told.timeouts.add(1, self.pool_attributes)
        else:
            self._end_statement(event, seconds)

    def _end_statement(self, event: TraceEvent, seconds: float) -> None:
        attributes = self._server_of(event.connection)
        operation = operation_of(event)
        if operation != OTHER:
            attributes["db.operation.name"] = f"BATCH {operation}" if event.name == "batch" else operation
        span_name = f"{attributes.get('db.operation.name', 'postgresql')} {attributes['db.namespace']}"
        details: Attributes = {}
        if event.name == "batch" and isinstance(event.parameters, list | tuple) and len(event.parameters) > 1:
            details["db.operation.batch.size"] = len(event.parameters)
        if self._query_text:
            details["db.query.text"] = _text(event)
        if event.error is not None:
            attributes |= _failure(event.error)
        self._span(span_name, event, SpanKind.CLIENT, attributes | details)
        self._instruments.operation.record(seconds, attributes)

    def _span(self, name: str, event: TraceEvent, kind: SpanKind, attributes: Attributes) -> None:
        """Its parent is the span that the task is in."""
        started = int(event.started_at * 1e9)
        span = self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=started)
        if event.error is not None and span.is_recording():
            if "error.type" not in attributes:
                span.set_attributes(_failure(event.error))
            span.set_status(Status(StatusCode.ERROR, str(event.error).strip() if self._query_text else None))
        span.end(started + int((event.seconds or 0.0) * 1e9))

    def _server_of(self, conn: Any) -> Attributes:
        """Attributes of where the connection leads; a new dictionary."""
        known = self._servers.get(conn)
        if known is None:
            known = self._servers[conn] = _server(conn)
        return dict(known)


def _server(conn: Any) -> Attributes:
    try:
        host, port, database = conn.info.host, conn.info.port, conn.info.dbname
    except psycopg2.Error:  # closed already
        return _SYSTEM | {"db.namespace": "unknown"}
    attributes: Attributes = _SYSTEM | {"db.namespace": database}
    if host:
        attributes["server.address"] = host
        if port != _DEFAULT_PORT and not host.startswith(("/", "@")):
            attributes["server.port"] = port
    return attributes


def _failure(error: BaseException) -> Attributes:
    code = error.pgcode if isinstance(error, psycopg2.Error) else None
    if code is not None:
        return {"db.response.status_code": code, "error.type": code}
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return {"error.type": f"{module}{kind.__qualname__}"}


def _text(event: TraceEvent) -> str:
    statement = event.statement
    if isinstance(statement, bytes):
        return statement.decode(errors="replace")
    return statement if isinstance(statement, str) else str(statement and statement.as_string(event.cursor))
