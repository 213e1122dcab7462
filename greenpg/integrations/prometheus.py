"""`Collector`: pools for Prometheus, also from several processes (`pip install greenpg[prometheus]`)."""

from __future__ import annotations

import atexit
import os
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as PrometheusCollector
from prometheus_client.utils import floatToGoString as _untyped_float_text

from ..connection.tracing import TraceEvent, Tracer
from ..hubs import hub
from ..pool.pool import ConnectionPool
from .operations import operation_of

_float_text: Callable[[float], str] = _untyped_float_text

#: Seconds; what is longer is counted under infinity.
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_GAUGES = {
    "greenpg_pool_min_size": ("Connections that are kept open.", "pool_min"),
    "greenpg_pool_max_size": ("Most connections there may be.", "pool_max"),
    "greenpg_pool_requests_waiting": ("Tasks that wait for a connection.", "requests_waiting"),
}
_COUNTERS = {
    "greenpg_pool_requests": ("Requests for a connection.", "requests_num"),
    "greenpg_pool_requests_queued": ("Requests that had to wait.", "requests_queued"),
    "greenpg_pool_request_errors": ("Requests that got no connection.", "requests_errors"),
    "greenpg_pool_timeouts": ("Requests that got none in time.", "requests_timeouts"),
    "greenpg_pool_connects": ("Attempts to connect.", "connections_num"),
    "greenpg_pool_connect_errors": ("Attempts to connect that failed.", "connections_errors"),
    "greenpg_pool_connections_lost": ("Connections found lost before they were lent.", "connections_lost"),
    "greenpg_pool_returns_bad": ("Connections that came back unusable.", "returns_bad"),
    "greenpg_pool_evictions": ("Connections not lent again because of what was found.", "connections_evicted"),
    "greenpg_pool_leaks": ("Connections held longer than leak_after, or not returned.", "connections_leaked"),
    "greenpg_pool_deadlocks": ("Probable deadlocks.", "deadlocks"),
}


@dataclass
class _Buckets:
    """A histogram's counts, each of its own range, and the sum."""

    bounds: tuple[float, ...] = _BOUNDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def by_bound(self) -> list[tuple[str, int]]:
        return list(zip((*map(_float_text, self.bounds), "+Inf"), self.counts, strict=True))


@dataclass
class _Series:
    """One metric with all that is known of it: values by labels, or buckets by labels."""

    kind: str
    name: str
    text: str
    labels: tuple[str, ...]
    values: dict[tuple[str, ...], Any] = field(default_factory=dict)


class _Watch(Tracer):
    """Counts what a pool doesn't count itself. One for each pool."""

    def __init__(self, pool: ConnectionPool, statements: bool, collector: Collector) -> None:
        self.events = ("connect", "query", "batch", "copy") if statements else ("connect",)
        self.pool = weakref.ref(pool)
        self.connects = _Buckets()
        self.statements: dict[tuple[str, str], _Buckets] = {}
        self._collector = weakref.ref(collector)

    def end(self, event: TraceEvent) -> None:
        seconds = event.seconds or 0.0
        if event.name == "connect":
            if event.error is None:
                self.connects.observe(seconds)
            if collector := self._collector():
                collector.start_writing()
            return
        key = operation_of(event), "ok" if event.error is None else "error"
        buckets = self.statements.get(key)
        if buckets is None:
            buckets = self.statements[key] = _Buckets()
        buckets.observe(seconds)


class Collector(PrometheusCollector):
    """Shows pools to Prometheus, under their names: `Collector(pool)`, once, at startup.

    - gauges `greenpg_pool_connections` (state idle or used), `..._min_size`, `..._max_size`, `..._requests_waiting`;
    - counters `greenpg_pool_requests_total`, `..._requests_queued_total`, `..._request_errors_total`,
      `..._timeouts_total`, `..._connects_total`, `..._connect_errors_total`, `..._connections_lost_total`,
      `..._returns_bad_total`, `..._evictions_total`, `..._leaks_total`, `..._deadlocks_total`;
    - histograms in seconds `greenpg_pool_acquire_wait_seconds` (of requests that had to wait),
      `greenpg_pool_hold_seconds`, `greenpg_pool_connect_seconds`, and with `statements=True`
      `greenpg_pool_statement_seconds` by operation (SELECT, ...) and outcome (ok, error).

    `registry`: prometheus_client's default one. Where PROMETHEUS_MULTIPROC_DIR is set, as for gunicorn's workers, each
    process writes its numbers to that directory instead, every `interval` (5) seconds and at its exit, and
    prometheus_client's MultiProcessCollector adds them up.

    Nothing is done at a request but what the pool's `histograms=True` does; `statements=True` measures each statement.
    Whoever calls `pool.pop_stats()` sets the counters here to zero, too. Raises ValueError for two pools of one name.
    """

    def __init__(
        self,
        *pools: ConnectionPool,
        registry: CollectorRegistry | None = REGISTRY,
        statements: bool = False,
        interval: float = 5.0,
    ) -> None:
        if not pools:
            raise TypeError("Collector() needs the pools that it is to show")
        if not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        self._interval = interval
        self._statements = statements
        self._watches: list[_Watch] = []
        self._is_closed = False
        self._writing_pid: int | None = None
        self._written: dict[tuple[Any, ...], Any] = {}
        self._registry = None if _is_multiprocess() else registry
        for pool in pools:
            self.add(pool)
        if self._registry is not None:
            self._registry.register(self)

    def add(self, pool: ConnectionPool) -> None:
        """Show this pool as well. Doesn't suspend."""
        if any(other.name == pool.name for other, _ in self._living()):
            raise ValueError(f"there is a pool {pool.name!r} in this collector already: give each a name of its own")
        pool.keep_histograms()
        watch = _Watch(pool, self._statements, self)
        self._watches.append(watch)
        pool.add_tracer(watch)
        if not pool.closed:
            self.start_writing()

    def close(self) -> None:
        """Show nothing any more. Doesn't suspend."""
        self._is_closed = True
        if self._registry is not None:
            self._registry.unregister(self)
        for pool, watch in self._living():
            pool.remove_tracer(watch)

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering doesn't collect. Doesn't suspend."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics, as they are now. Doesn't suspend."""
        for series in self._read():
            yield _as_family(series)

    # -- reading

    def _living(self) -> list[tuple[ConnectionPool, _Watch]]:
        return [(pool, watch) for watch in self._watches if (pool := watch.pool()) is not None]

    def _read(self) -> list[_Series]:
        connections = _Series("gauge", "greenpg_pool_connections", "Connections.", ("pool", "state"))
        gauges = {name: _Series("gauge", name, text, ("pool",)) for name, (text, _) in _GAUGES.items()}
        counters = {name: _Series("counter", name, text, ("pool",)) for name, (text, _) in _COUNTERS.items()}
        wait, hold, connect = (
            _Series("histogram", f"greenpg_pool_{name}_seconds", text, ("pool",))
            for name, text in (
                ("acquire_wait", "How long requests waited that had to."),
                ("hold", "How long connections were held."),
                ("connect", "How long connecting took."),
            )
        )
        statement = _Series(
            "histogram", "greenpg_pool_statement_seconds", "How long statements took.", ("pool", "operation", "outcome")
        )
        for pool, watch in self._living():
            name, stats, histograms = pool.name, pool.get_stats(), pool.get_histograms()
            connections.values[name, "idle"] = stats["pool_available"]
            connections.values[name, "used"] = stats["pool_lent"]
            for metric, (_, key) in _GAUGES.items():
                gauges[metric].values[name,] = stats[key]
            for metric, (_, key) in _COUNTERS.items():
                counters[metric].values[name,] = stats[key]
            wait.values[name,] = _from_pool(histograms["wait_ms"]), stats["requests_wait_ms"] / 1000
            hold.values[name,] = _from_pool(histograms["hold_ms"]), stats["usage_ms"] / 1000
            connect.values[name,] = watch.connects.by_bound(), watch.connects.total
            for (operation, outcome), buckets in list(watch.statements.items()):
                statement.values[name, operation, outcome] = buckets.by_bound(), buckets.total
        return [connections, *gauges.values(), *counters.values(), wait, hold, connect, statement]

    # -- several processes

    def start_writing(self) -> None:
        """In a process of several: write from now on. A process that was forked begins anew. Doesn't suspend."""
        if _is_multiprocess() and not self._is_closed and self._writing_pid != os.getpid():
            self._writing_pid = os.getpid()
            self._written.clear()
            hub().spawn(_write_now_and_then, weakref.ref(self), self._interval)
            atexit.register(_write_at_exit, weakref.ref(self))

    def write(self) -> None:
        """Write the numbers to PROMETHEUS_MULTIPROC_DIR. Doesn't suspend."""
        for series in self._read():
            for labels, value in series.values.items():
                if series.kind == "histogram":
                    buckets, total = value
                    for bound, count in buckets:
                        self._write(series, "_bucket", (*series.labels, "le"), (*labels, bound), count)
                    self._write(series, "_sum", series.labels, labels, total)
                else:
                    suffix = "_total" if series.kind == "counter" else ""
                    self._write(series, suffix, series.labels, labels, value)

    def _write(
        self, series: _Series, suffix: str, labels: tuple[str, ...], label_values: tuple[str, ...], value: float
    ) -> None:
        key = (series.name, suffix, label_values)
        cell = self._written.get(key)
        if cell is None:
            cell = self._written[key] = values.ValueClass(
                series.kind,
                series.name,
                series.name + suffix,
                labels,
                label_values,
                series.text,
                multiprocess_mode="livesum",
            )
        cell.set(value)

    @property
    def is_closed(self) -> bool:
        """Whether it shows nothing any more."""
        return self._is_closed


def _write_now_and_then(collector_ref: weakref.ref[Collector], interval: float) -> None:
    while (collector := collector_ref()) is not None and not collector.is_closed:
        collector.write()
        del collector
        hub().sleep(interval)


def _write_at_exit(collector_ref: weakref.ref[Collector]) -> None:
    if (collector := collector_ref()) is not None and not collector.is_closed:
        collector.write()


def _is_multiprocess() -> bool:
    return bool(getattr(values.ValueClass, "_multiprocess", False))


def _from_pool(counts: dict[str, int]) -> list[tuple[str, int]]:
    """A pool's own histogram, from milliseconds."""
    return [("+Inf" if bound == "inf" else _float_text(float(bound) / 1000), count) for bound, count in counts.items()]


def _as_family(series: _Series) -> Metric:
    family: Any
    if series.kind == "histogram":
        family = HistogramMetricFamily(series.name, series.text, labels=series.labels)
        for labels, (buckets, total) in series.values.items():
            so_far, cumulative = 0, []
            for bound, count in buckets:
                so_far += count
                cumulative.append((bound, so_far))
            family.add_metric(labels, cumulative, total)
        return family  # type: ignore[no-any-return]
    family = (CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily)(
        series.name, series.text, labels=series.labels
    )
    for labels, value in series.values.items():
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]
