"""A web app with /metrics for several workers, for test_prometheus.py: gunicorn serves it."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

import greenpg
from greenpg.integrations.prometheus import Collector

pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=2, name="shop")
collector = Collector(pool, statements=True, interval=0.05)


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return [generate_latest(registry)]
    pool.execute("SELECT pg_sleep(0.01)")
    return [str(os.getpid()).encode()]
