"""A spike: 50 requests of 10 ms at once, on a pool with min 5 and max 50, where connecting takes 150 ms. How many
connections does the pool open, and how long does it take to serve all? Beside psycopg_pool under gevent.

    python benchmarks/spike.py [DSN]

Each peer runs in a process of its own, the rounds interleaved; the numbers are medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

REQUESTS, MIN_SIZE, MAX_SIZE, CONNECT_SECONDS, ROUNDS = 50, 5, 50, 0.15, 5


def run_peer(peer: str, dsn: str) -> None:
    """One round of one peer; prints its numbers."""
    from gevent import monkey

    monkey.patch_all()
    import gevent

    def slow_to_connect(conn) -> None:
        gevent.sleep(CONNECT_SECONDS)

    options = {"min_size": MIN_SIZE, "max_size": MAX_SIZE, "configure": slow_to_connect}
    if peer == "greenpg":
        import greenpg

        greenpg.patch()
        pool = greenpg.ConnectionPool(dsn, **options)
    else:
        import psycopg_pool

        pool = psycopg_pool.ConnectionPool(dsn, open=True, **options)
    pool.wait()

    def request() -> None:
        with pool.connection() as conn, conn.cursor() as cur:
            cur.execute("SELECT pg_sleep(0.01)")

    start = time.perf_counter()
    gevent.joinall([gevent.spawn(request) for _ in range(REQUESTS)], raise_error=True)
    seconds = time.perf_counter() - start
    gevent.sleep(2 * CONNECT_SECONDS)  # what is still being opened
    print(json.dumps({"drain_ms": seconds * 1e3, "connections": pool.get_stats()["pool_size"]}))
    pool.close()


def main(dsn: str) -> None:
    rounds: dict[str, list[dict]] = {"greenpg": [], "psycopg_pool": []}
    for _ in range(ROUNDS):
        for peer, results in rounds.items():
            printed = subprocess.run(
                [sys.executable, __file__, "--peer", peer, dsn], check=True, capture_output=True, text=True
            ).stdout
            results.append(json.loads(printed))
    print(f"{REQUESTS} requests at once, {ROUNDS} rounds, medians")
    for peer, results in rounds.items():
        drain, connections = (statistics.median(result[name] for result in results) for name in results[0])
        print(f"{peer:14} all served after {drain:.0f} ms, {connections:.0f} connections afterwards (min {MIN_SIZE})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        run_peer(*sys.argv[2:])
    else:
        import greenpg.embedded

        with nullcontext(sys.argv[1]) if sys.argv[1:] else greenpg.embedded.server() as server_dsn:
            main(server_dsn)
