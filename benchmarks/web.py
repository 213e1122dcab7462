"""TechEmpower's database endpoints: the demo under gunicorn with one gevent worker, on each peer's pool.

    python benchmarks/web.py [DSN] [--rounds 5] [--peers greenpg,psycopg_pool] [--quick]

Creates the tables `world` and `fortune` in the database, if they aren't there, and updates rows of `world`.
"""

import json
import sys
import urllib.request
from contextlib import contextmanager
from functools import partial

from harness import Aim, Bars, Benchmark, Latencies
from harness.benchmark import server
from web_app import EXAMPLES, POOL_SIZE, Site
from web_load import WRK, load, load_by_wrk

PEERS = ["greenpg", "psycopg_pool", "psycogreen"]
QUERIES = 20
ENDPOINTS = ["/db", f"/queries?queries={QUERIES}", "/fortunes", f"/updates?queries={QUERIES}"]
CONNECTIONS, WARM_UP_SECONDS = 64, 0.3


@contextmanager
def with_tables(dsn):
    sys.path.append(str(EXAMPLES))
    import webapp

    with server(dsn) as used:
        webapp.create_tables(used)
        yield used


def check(site, path):
    with urllib.request.urlopen(f"http://{site.host}:{site.port}{path}", timeout=10) as answer:
        body = answer.read().decode()
    if path == "/fortunes":
        assert body.count("<tr>") == 14 and "&lt;script&gt;" in body, body
        return
    found = json.loads(body)
    worlds = found if isinstance(found, list) else [found]
    assert len(worlds) == (1 if path == "/db" else QUERIES), worlds
    assert all(world.keys() == {"id", "randomNumber"} for world in worlds), worlds


def measure(name, dsn, sizes):
    found = {}
    with Site(name, dsn) as site:
        for path in ENDPOINTS:
            check(site, path)
            asked = (site.host, site.port, path, CONNECTIONS)
            load(*asked, WARM_UP_SECONDS)
            cpu_seconds = site.worker_cpu_seconds()
            done = (load_by_wrk if WRK else load)(*asked, sizes["seconds"])
            cpu_seconds = site.worker_cpu_seconds() - cpu_seconds
            found[path] = {
                "requests_per_second": done.count / done.seconds,
                "request_cpu_us": cpu_seconds / done.count * 1e6,
                "p50_ms": done.p50_ms,
                "p99_ms": done.p99_ms,
                "max_ms": done.max_ms,
            }
    return found


BENCHMARK = Benchmark(
    __file__,
    title="The demo under gunicorn",
    description=(
        f"TechEmpower's endpoints of examples/webapp.py, each request one transaction, on {POOL_SIZE} connections; "
        f"gunicorn with one gevent worker, asked by {CONNECTIONS} keep-alive connections of another process "
        f"({'wrk' if WRK else 'our own loop, since wrk was not installed'}). The peers have the same app on their "
        "pools. CPU is the worker's, all that gunicorn and the app do included."
    ),
    peers={name: partial(measure, name) for name in PEERS},
    sizes={"seconds": 1},
    quick_sizes={},
    needs=["gunicorn"],
    target=with_tables,
    pictures=[
        Bars("speed", "requests_per_second", ENDPOINTS, "The demo under gunicorn, one worker"),
        Latencies("latency", ENDPOINTS, f"The demo under gunicorn, {CONNECTIONS} connections"),
    ],
    aims=[Aim(path, "requests_per_second", "psycopg_pool", at_least=2) for path in ENDPOINTS],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
