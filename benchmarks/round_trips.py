"""What a round trip less is worth: a one-statement transaction at 1 ms of network delay (0.5 ms each way), greenpg's
`pool.cursor()` beside psycopg2 on psycogreen.

    python benchmarks/round_trips.py

Each peer runs in a process of its own, the rounds interleaved; the numbers are medians, and the ratio.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from psycopg2 import extensions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from proxy import Proxy

TRANSACTIONS, ROUNDS, DELAY_EACH_WAY = 200, 5, 0.0005


def run_peer(peer: str, dsn: str) -> None:
    """One round of one peer; prints milliseconds for each transaction."""
    from gevent import monkey

    monkey.patch_all()
    if peer == "greenpg":
        import greenpg

        greenpg.patch()
        pool = greenpg.ConnectionPool(dsn, min_size=1)
        pool.wait()

        def transaction() -> None:
            with pool.cursor() as cur:
                cur.execute("SELECT 1")
    else:
        import psycopg2
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
        conn = psycopg2.connect(dsn)

        def transaction() -> None:
            with conn, conn.cursor() as cur:
                cur.execute("SELECT 1")

    transaction()
    start = time.perf_counter()
    for _ in range(TRANSACTIONS):
        transaction()
    print((time.perf_counter() - start) / TRANSACTIONS * 1e3)


def main() -> None:
    import greenpg.embedded

    rounds: dict[str, list[float]] = {"greenpg": [], "psycogreen": []}
    with greenpg.embedded.Server(port=0) as server:
        parameters = extensions.parse_dsn(server.tcp_dsn)
        with Proxy(parameters["host"], parameters["port"], DELAY_EACH_WAY) as proxy:
            dsn = extensions.make_dsn(server.tcp_dsn, port=proxy.port)
            for _ in range(ROUNDS):
                for peer, results in rounds.items():
                    command = [sys.executable, __file__, "--peer", peer, dsn]
                    results.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {peer: statistics.median(results) for peer, results in rounds.items()}
    for peer, milliseconds in medians.items():
        print(f"{peer:12} {milliseconds:.2f} ms for a one-statement transaction")
    print(f"ratio {medians['greenpg'] / medians['psycogreen']:.2f} (aim: at most 0.72)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        run_peer(*sys.argv[2:])
    else:
        main()
