"""The Prometheus collector: its text, as prometheus_client reads it back; and several processes under gunicorn."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from kit import Task, wait_until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import greenpg
from greenpg.integrations.prometheus import Collector

TESTS = Path(__file__).parent


def samples_of(text):
    """{(name, sorted labels): value} of Prometheus's text."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scrape:
    """What a collector shows at this moment."""

    def __init__(self, registry):
        self.samples = samples_of(generate_latest(registry).decode())

    def __call__(self, name, **labels):
        return self.samples[f"greenpg_pool_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def registry():
    return CollectorRegistry()


def test_a_pool_at_work(make_pool, registry):
    pool = make_pool(min_size=1, max_size=2, name="shop")
    Collector(pool, registry=registry, statements=True)
    pool.wait()
    for _ in range(3):
        pool.execute("SELECT 1")
    with pytest.raises(greenpg.errors.SyntaxErrorOrAccessRuleViolation):
        pool.execute("SELECT nowhere")
    with pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE numbers (n int)")
        conn.cursor().executemany("INSERT INTO numbers VALUES (%s)", [(1,), (2,)])
        scrape = Scrape(registry)
        assert scrape("connections", pool="shop", state="used") == 1
        with pool.connection():
            waiting = Task(pool.fetchval, "SELECT 1")
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
            assert Scrape(registry)("requests_waiting", pool="shop") == 1
            with pytest.raises(greenpg.PoolTimeout):
                pool.getconn(timeout=0)
    waiting.join()
    scrape = Scrape(registry)
    assert scrape("connections", pool="shop", state="idle") == 2
    assert (scrape("min_size", pool="shop"), scrape("max_size", pool="shop")) == (1, 2)
    assert scrape("requests_total", pool="shop") == 8
    assert scrape("timeouts_total", pool="shop") == scrape("request_errors_total", pool="shop") == 1
    assert scrape("connects_total", pool="shop") == 2
    assert scrape("connect_seconds_count", pool="shop") == 2
    assert scrape("acquire_wait_seconds_count", pool="shop") == scrape("requests_queued_total", pool="shop")
    assert scrape("hold_seconds_count", pool="shop") == 7
    assert scrape("hold_seconds_bucket", pool="shop", le="+Inf") == 7
    assert 0 < scrape("hold_seconds_sum", pool="shop") < 100
    statements = {"operation": "SELECT", "outcome": "ok", "pool": "shop"}
    assert scrape("statement_seconds_count", **statements) == 4
    assert scrape("statement_seconds_count", **statements | {"outcome": "error"}) == 1
    assert scrape("statement_seconds_count", **statements | {"operation": "INSERT"}) == 1
    for counter in ("evictions", "leaks", "deadlocks", "connections_lost", "returns_bad", "connect_errors"):
        assert scrape(f"{counter}_total", pool="shop") == 0


def test_names_follow_the_rules(make_pool, registry):
    """Base units, and counters that end in _total."""
    Collector(make_pool(name="shop"), registry=registry, statements=True)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.name.startswith("greenpg_pool_") and family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_two_pools_and_their_end(make_pool, registry):
    first, second = make_pool(name="first"), make_pool(name="second")
    collector = Collector(first, second, registry=registry)
    assert {Scrape(registry)("max_size", pool=name) for name in ("first", "second")} == {4}
    with pytest.raises(ValueError, match="give each a name of its own"):
        collector.add(make_pool(name="first"))
    collector.close()
    assert generate_latest(registry) == b""
    assert first._core.tracing is None


def test_a_pool_that_is_forgotten(dsn, registry):
    pool = greenpg.ConnectionPool(dsn, min_size=1, name="gone")
    Collector(pool, registry=registry)
    pool.execute("SELECT 1")
    pool.close()
    del pool
    gc.collect()
    wait_until(lambda: "gone" not in generate_latest(registry).decode())


def test_wrong_arguments(make_pool, registry):
    with pytest.raises(TypeError, match="needs the pools"):
        Collector(registry=registry)
    with pytest.raises(ValueError, match="interval must be"):
        Collector(make_pool(), registry=registry, interval=0)


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_several_workers(dsn, tmp_path, worker_class):
    config = tmp_path / "conf.py"
    patch = "monkey.patch_all(); greenpg.patch()" if worker_class == "gevent" else 'greenpg.patch("threads")'
    config.write_text(
        "from gevent import monkey\n"
        "import greenpg\n"
        f"def post_fork(server, worker):\n    {patch}\n"
        "def child_exit(server, worker):\n"
        "    from prometheus_client import multiprocess\n"
        "    multiprocess.mark_process_dead(worker.pid)\n"
    )
    directory = tmp_path / "metrics"
    directory.mkdir()
    environment = os.environ | {
        "GREENPG_DSN": dsn,
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
    }
    output = tmp_path / "output"
    with output.open("wb") as file:
        gunicorn = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-c", str(config), "-k", worker_class, "-w", "2"),
                *("-b", "127.0.0.1:0", "--graceful-timeout", "2", "metrics_app"),
            ],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
    try:
        wait_until(lambda: "Listening at: " in output.read_text() or gunicorn.poll() is not None, timeout=60)
        address = output.read_text().partition("Listening at: ")[2].split()[0]

        def get(path):
            with urllib.request.urlopen(address + path, timeout=60) as response:
                return response.read().decode()

        workers, requests, until = set(), 0, time.monotonic() + 60
        while len(workers) < 2 and time.monotonic() < until:
            workers.add(get("/"))
            requests += 1
        assert len(workers) == 2, output.read_text()

        def counted():
            samples = samples_of(get("/metrics"))
            return samples.get(("greenpg_pool_hold_seconds_count", (("pool", "shop"),)))

        wait_until(lambda: counted() == requests, timeout=20)
        samples = samples_of(get("/metrics"))
    finally:
        gunicorn.terminate()
        gunicorn.wait(30)
    shop = ("pool", "shop")
    assert samples["greenpg_pool_max_size", (shop,)] == 4, "the workers' sum"
    assert samples["greenpg_pool_hold_seconds_count", (shop,)] == requests, json.dumps(list(map(str, samples)))
    assert (
        samples["greenpg_pool_statement_seconds_count", (("operation", "SELECT"), ("outcome", "ok"), shop)] == requests
    )
    assert samples["greenpg_pool_hold_seconds_bucket", (("le", "+Inf"), shop)] == requests
    assert samples["greenpg_pool_connections", (shop, ("state", "idle"))] >= 2
    assert "Traceback" not in output.read_text(), output.read_text()


def test_the_dashboard_asks_for_what_there_is(make_pool, registry):
    """examples/grafana_dashboard.json: each metric that it names is one of the collector's."""
    pool = make_pool(min_size=1, name="shop")
    Collector(pool, registry=registry, statements=True)
    pool.execute("SELECT 1")
    names = {name for name, _ in samples_of(generate_latest(registry).decode())}
    dashboard = (TESTS.parent / "examples" / "grafana_dashboard.json").read_text()
    panels = json.loads(dashboard)["panels"]
    asked = set(re.findall(r"greenpg_pool_\w+", dashboard))
    assert len(panels) == len({panel["id"] for panel in panels}) == 9 and len(asked) > 15
    assert asked <= names
