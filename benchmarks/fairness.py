"""Is a fair pool slower? 100 greenlets loop on 10 connections: greenpg's pool serves in the order of asking, a pool on
psycogreen and gevent's semaphore doesn't.

    python benchmarks/fairness.py [DSN]

Each peer runs in a process of its own, the rounds interleaved; the numbers are medians of the rounds, and ratios.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

TASKS, CONNECTIONS, LOOPS, ROUNDS = 100, 10, 200, 5


def run_peer(peer: str, dsn: str) -> None:
    """One round of one peer; prints its numbers."""
    from gevent import monkey

    monkey.patch_all()
    import gevent

    one_statement, one_transaction = {"greenpg": greenpg_pool, "psycogreen": semaphore_pool}[peer](dsn)
    results = {}
    for name, work in (("autocommit", one_statement), ("transaction", one_transaction)):
        gevent.joinall([gevent.spawn(work) for _ in range(CONNECTIONS)], raise_error=True)  # warm up
        latencies = []

        def loop(work=work, latencies=latencies):
            for _ in range(LOOPS):
                start = time.perf_counter()
                work()
                latencies.append(time.perf_counter() - start)

        cpu, start = time.process_time(), time.perf_counter()
        gevent.joinall([gevent.spawn(loop) for _ in range(TASKS)], raise_error=True)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        results[name] = {
            "per_second": len(latencies) / seconds,
            "cpu_us": cpu / len(latencies) * 1e6,
            "median_ms": statistics.median(latencies) * 1e3,
            "max_ms": max(latencies) * 1e3,
        }
    print(json.dumps(results))


def greenpg_pool(dsn: str):
    import greenpg

    greenpg.patch()
    pool = greenpg.ConnectionPool(dsn, min_size=CONNECTIONS)
    pool.wait()

    def one_transaction():
        with pool.cursor() as cur:
            cur.execute("SELECT 1")
            cur.fetchone()

    return lambda: pool.fetchone("SELECT 1"), one_transaction


def semaphore_pool(dsn: str):
    """What people write on psycogreen: a bounded semaphore and a list of connections."""
    import psycopg2
    from gevent.lock import BoundedSemaphore
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
    free = [psycopg2.connect(dsn) for _ in range(CONNECTIONS)]
    green = [psycopg2.connect(dsn) for _ in range(CONNECTIONS)]
    for conn in green:
        conn.autocommit = True
    semaphore = BoundedSemaphore(CONNECTIONS)

    def one_statement(idle=green):
        with semaphore:
            conn = idle.pop()
            try:
                with conn.cursor() as cur:
                    cur.execute("SELECT 1")
                    cur.fetchone()
            finally:
                idle.append(conn)

    def one_transaction(idle=free):
        with semaphore:
            conn = idle.pop()
            try:
                with conn, conn.cursor() as cur:
                    cur.execute("SELECT 1")
                    cur.fetchone()
            finally:
                idle.append(conn)

    return one_statement, one_transaction


def main(dsn: str) -> None:
    rounds: dict[str, list[dict]] = {"greenpg": [], "psycogreen": []}
    for _ in range(ROUNDS):
        for peer, results in rounds.items():
            printed = subprocess.run(
                [sys.executable, __file__, "--peer", peer, dsn], check=True, capture_output=True, text=True
            ).stdout
            results.append(json.loads(printed))

    def median(peer: str, scenario: str, value: str) -> float:
        return statistics.median(result[scenario][value] for result in rounds[peer])

    print(f"{TASKS} greenlets on {CONNECTIONS} connections, SELECT 1, {ROUNDS} interleaved rounds, medians")
    print("| scenario | pool | per second | ratio | CPU us | median ms | max ms | max / median |")
    print("|---|---|---|---|---|---|---|---|")
    for scenario in ("autocommit", "transaction"):
        for peer in rounds:
            rate, middle, longest = (median(peer, scenario, name) for name in ("per_second", "median_ms", "max_ms"))
            print(
                f"| {scenario} | {peer} | {rate:,.0f} | {rate / median('psycogreen', scenario, 'per_second'):.2f} "
                f"| {median(peer, scenario, 'cpu_us'):.0f} | {middle:.2f} | {longest:.1f} | {longest / middle:.1f} |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        run_peer(*sys.argv[2:])
    else:
        import greenpg.embedded

        with nullcontext(sys.argv[1]) if sys.argv[1:] else greenpg.embedded.server() as server_dsn:
            main(server_dsn)
