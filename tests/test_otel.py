"""OpenTelemetry: what comes out of its SDK, under the names that its semantic conventions have."""

from __future__ import annotations

import psycopg2
import pytest
from kit import Killed, Task, wait_until
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes as incubating
from opentelemetry.semconv._incubating.metrics import db_metrics as pool_conventions
from opentelemetry.semconv.attributes import db_attributes, error_attributes, server_attributes
from opentelemetry.semconv.metrics import db_metrics
from opentelemetry.trace import SpanKind, StatusCode
from psycopg2 import extensions, sql

import greenpg
from greenpg.hubs import hub
from greenpg.integrations.otel import instrument


class Telemetry:
    """An SDK that keeps everything in memory."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def instrument(self, *pools, **options):
        return instrument(*pools, tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, **options)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def statements(self):
        return [span for span in self.spans if span.kind is SpanKind.CLIENT]

    def metrics(self):
        """{name: metric} of what is exported now."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def telemetry():
    running = Telemetry()
    yield running
    running.tracer_provider.shutdown()
    running.meter_provider.shutdown()


def points(metric):
    return {tuple(sorted(point.attributes.items())): point for point in metric.data.data_points}


POOL = incubating.DB_CLIENT_CONNECTION_POOL_NAME
STATE = incubating.DB_CLIENT_CONNECTION_STATE


def test_metrics_of_the_pool(make_pool, telemetry):
    pool = make_pool(min_size=1, max_size=1, name="shop")
    telemetry.instrument(pool)
    with pool.connection():
        waiting = Task(pool.fetchval, "SELECT 1")
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
        busy = telemetry.metrics()
        with pytest.raises(greenpg.PoolTimeout):
            pool.getconn(timeout=0)
    waiting.join()
    metrics = telemetry.metrics()
    prefix = "DB_CLIENT_CONNECTION_"
    for suffix, kind in {
        "COUNT": "Sum",
        "IDLE_MAX": "Sum",
        "IDLE_MIN": "Sum",
        "MAX": "Sum",
        "PENDING_REQUESTS": "Sum",
        "TIMEOUTS": "Sum",
        "CREATE_TIME": "Histogram",
        "WAIT_TIME": "Histogram",
        "USE_TIME": "Histogram",
    }.items():
        metric = metrics[getattr(pool_conventions, prefix + suffix)]
        assert type(metric.data).__name__ == kind, metric.name
        assert all(point.attributes[POOL] == "shop" for point in metric.data.data_points), metric.name
        made = getattr(pool_conventions, f"create_{prefix.lower()}{suffix.lower()}")(_Recorder())
        assert (metric.unit, metric.description.rstrip(".")) == (made["unit"], made["description"].rstrip("."))
        if suffix != "TIMEOUTS" and kind == "Sum":
            assert not metric.data.is_monotonic, "up and down"

    def value(metric, **attributes):
        found = points(metrics[getattr(pool_conventions, prefix + metric)])
        return found[tuple(sorted({POOL: "shop", **attributes}.items()))]

    count = points(busy[pool_conventions.DB_CLIENT_CONNECTION_COUNT])
    assert count[(POOL, "shop"), (STATE, "used")].value == 1
    assert points(busy[pool_conventions.DB_CLIENT_CONNECTION_PENDING_REQUESTS])[((POOL, "shop"),)].value == 1
    assert value("COUNT", **{STATE: "idle"}).value == 1 and value("COUNT", **{STATE: "used"}).value == 0
    assert (value("IDLE_MIN").value, value("IDLE_MAX").value, value("MAX").value) == (1, 1, 1)
    assert value("TIMEOUTS").value == 1
    assert value("CREATE_TIME").count == 1
    assert value("WAIT_TIME").count == value("USE_TIME").count == 2
    assert 0 < value("WAIT_TIME").sum < 100 and value("USE_TIME").explicit_bounds[0] == 0.0001


class _Recorder:
    """A meter that says what it was asked for."""

    def __getattr__(self, name):
        return lambda **details: details


def test_spans_of_statements(make_pool, telemetry, dsn):
    pool = make_pool(min_size=1, max_size=1, name="shop")
    telemetry.instrument(pool)
    with pool.connection() as conn:
        cur = conn.cursor()
        cur.execute("SELECT 'secret', %s", (1,))
        cur.execute(sql.SQL("CREATE TEMP TABLE {} (n int)").format(sql.Identifier("numbers")))
        cur.executemany(b"INSERT INTO numbers VALUES (%s)", [(1,), (2,), (3,)])
        with cur.copy("COPY numbers TO STDOUT") as copy:
            list(copy.rows())
        parameters = conn.info
        host, database = parameters.host, parameters.dbname
    spans = telemetry.statements()
    assert [span.name for span in spans] == [
        f"{operation} {database}" for operation in ("SELECT", "CREATE", "BATCH INSERT", "COPY")
    ]
    for span in spans:
        assert span.attributes[db_attributes.DB_SYSTEM_NAME] == db_attributes.DbSystemNameValues.POSTGRESQL.value
        assert span.attributes[db_attributes.DB_NAMESPACE] == database
        assert span.attributes[server_attributes.SERVER_ADDRESS] == host
        assert db_attributes.DB_QUERY_TEXT not in span.attributes and "secret" not in span.to_json()
        assert span.status.status_code is StatusCode.UNSET
        assert 0 < span.end_time - span.start_time < 60e9
    assert spans[0].attributes[db_attributes.DB_OPERATION_NAME] == "SELECT"
    assert spans[2].attributes[db_attributes.DB_OPERATION_BATCH_SIZE] == 3
    duration = telemetry.metrics()[db_metrics.DB_CLIENT_OPERATION_DURATION]
    assert duration.unit == "s" and sum(point.count for point in duration.data.data_points) == 4
    assert duration.data.data_points[0].explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


def test_the_port(server, make_pool, telemetry):
    pool = make_pool(server.tcp_dsn, min_size=1)
    telemetry.instrument(pool)
    pool.execute("SELECT 1")
    (span,) = telemetry.statements()
    assert span.attributes[server_attributes.SERVER_ADDRESS] == "127.0.0.1"
    assert span.attributes[server_attributes.SERVER_PORT] == int(extensions.parse_dsn(server.tcp_dsn)["port"])


def test_errors(make_pool, telemetry):
    pool = make_pool(min_size=1, max_size=1)
    telemetry.instrument(pool)
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
        pool.execute("SELECT 'secret'::int")
    (span,) = telemetry.statements()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes[db_attributes.DB_RESPONSE_STATUS_CODE] == "22P02"
    assert span.attributes[error_attributes.ERROR_TYPE] == "22P02"
    assert "secret" not in span.to_json(), "the server's messages quote data"


@pytest.mark.only_hub("gevent", "eventlet")
def test_a_kill(make_pool, telemetry):
    pool = make_pool(min_size=1, max_size=1)
    telemetry.instrument(pool)
    task = Task(pool.execute, "SELECT pg_sleep(30)")
    wait_until(lambda: pool.get_stats()["pool_lent"] == 1)
    hub().sleep(0.05)
    task.throw(Killed)
    task.join()
    (span,) = telemetry.statements()
    assert span.attributes[error_attributes.ERROR_TYPE] == "kit.Killed"
    assert span.status.status_code is StatusCode.ERROR


def test_query_text_if_asked_for(make_pool, telemetry):
    pool = make_pool(min_size=1, max_size=1)
    telemetry.instrument(pool, query_text=True)
    pool.execute("SELECT %s", ("parameter",))
    pool.execute(sql.SQL("SELECT 1 AS {}").format(sql.Identifier("one")))
    pool.execute(b"SELECT 2")
    texts = [span.attributes[db_attributes.DB_QUERY_TEXT] for span in telemetry.statements()]
    assert texts == ["SELECT %s", 'SELECT 1 AS "one"', "SELECT 2"]


def test_the_programs_own_span_is_the_parent(make_pool, telemetry):
    pool = make_pool(min_size=1, max_size=1)
    telemetry.instrument(pool)
    tracer = telemetry.tracer_provider.get_tracer("program")

    def handle(name):
        with tracer.start_as_current_span(name):
            pool.execute("SELECT pg_sleep(0.02)")

    for task in [Task(handle, f"request {number}") for number in range(3)]:
        task.join()
    requests = {span.context.span_id: span for span in telemetry.spans if span.name.startswith("request")}
    statements = telemetry.statements()
    assert len({span.parent.span_id for span in statements}) == 3
    assert all(span.parent.span_id in requests for span in statements)
    waits = [span for span in telemetry.spans if span.name == "wait for a connection"]
    assert waits, "there is one connection for three tasks"
    for span in waits:
        assert span.kind is SpanKind.INTERNAL and span.parent.span_id in requests
        assert span.attributes[POOL] == pool.name and span.end_time - span.start_time > 1e6


def test_two_pools_and_their_end(make_pool, telemetry):
    pools = [make_pool(min_size=1, name=name) for name in ("first", "second")]
    instrumentation = telemetry.instrument(*pools)
    sizes = points(telemetry.metrics()[pool_conventions.DB_CLIENT_CONNECTION_MAX])
    assert set(sizes) == {((POOL, "first"),), ((POOL, "second"),)}
    instrumentation.uninstrument()
    pools[0].execute("SELECT 1")
    assert not telemetry.statements() and pools[0]._core.tracing is None
    with pytest.raises(TypeError, match="needs the pools"):
        instrument()
