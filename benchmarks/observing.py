"""What it costs to be seen: greenpg's pool without anything, with hooks, Prometheus, OpenTelemetry, a log, `top`.

python benchmarks/observing.py [DSN] [--rounds 5] [--peers greenpg,hook] [--quick]
"""

import logging
import sys
from contextlib import contextmanager
from functools import partial

from harness import Bars, Benchmark
from peers import open_pool

CONNECTIONS, TASKS = 10, 100
ALONE = "acquire and release, no statement"
TRANSACTION = "one statement in a transaction"
FIVE = "five statements in a transaction"


@contextmanager
def nothing(pool):
    yield


@contextmanager
def hook(pool):
    """A function that does nothing, told of everything."""
    pool.add_tracer(lambda event: None)
    yield


@contextmanager
def rare_hook(pool):
    """The same for what is rare."""
    import greenpg

    class Rare(greenpg.Tracer):
        events = ("connect", "evicted", "leaked", "timeout")

    pool.add_tracer(Rare())
    yield


@contextmanager
def prometheus(pool, statements=False):
    from greenpg.integrations.prometheus import Collector

    Collector(pool, registry=None, statements=statements)
    yield


@contextmanager
def otel_without_sdk(pool):
    from greenpg.integrations.otel import instrument

    instrument(pool)
    yield


@contextmanager
def otel_with_sdk(pool):
    """Metrics, and spans in batches to an exporter that drops them."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from greenpg.integrations.otel import instrument

    class Dropping(SpanExporter):
        def export(self, spans):
            return SpanExportResult.SUCCESS

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Dropping()))
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the queue is full at this speed
    instrument(pool, tracer_provider=tracers, meter_provider=MeterProvider([InMemoryMetricReader()]))
    yield
    tracers.shutdown()


@contextmanager
def top(pool):
    """Served, and nobody looks."""
    import tempfile

    import greenpg

    with tempfile.TemporaryDirectory() as directory, greenpg.serve_top(f"{directory}/top.sock", pool):
        yield


WAYS = {
    "greenpg": nothing,
    "rare-hook": rare_hook,
    "hook": hook,
    "prometheus": prometheus,
    "prometheus-statements": partial(prometheus, statements=True),
    "otel-without-sdk": otel_without_sdk,
    "otel": otel_with_sdk,
    "top": top,
}


def measure(way, dsn, sizes):
    loops = sizes["loops"]
    with open_pool("greenpg", dsn, CONNECTIONS) as pool, WAYS[way](pool._pool):
        pool._pool.drain()
        pool._pool.wait()
        return {
            ALONE: pool.measure_alone("acquire_release", seconds=loops / 100),
            TRANSACTION: pool.measure("one_transaction", TASKS, loops),
            FIVE: pool.measure("five_statements", TASKS, max(1, loops // 3)),
        }


BENCHMARK = Benchmark(
    __file__,
    title="What being seen costs",
    description=(
        "greenpg's pool alone, with `on_event` for rare events and for all, with the Prometheus collector without and "
        "with `statements=True`, with `instrument()` for OpenTelemetry without an SDK and with one whose exporter "
        "drops all spans, and with `serve_top()`. 100 tasks on 10 connections, one statement or five in a transaction; "
        "`acquire and release` is one task by itself."
    ),
    peers={name: partial(measure, name) for name in WAYS},
    sizes={"loops": 100},
    quick_sizes={"loops": 20},
    pictures=[
        Bars("cpu", "cpu_us", [ALONE, TRANSACTION, FIVE], "What an operation costs the client, seen in several ways"),
    ],
    needs=["prometheus_client", "opentelemetry.sdk"],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
