"""Reads after writes on a primary and a replica that lags: how many are stale, with greenpg's tokens and without.

    python tests/read_your_writes.py [READS [DELAY_MS]]

Each of 20 tasks writes, in every way there is, and reads that back through the cluster's replica.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

TABLE = "CREATE TABLE IF NOT EXISTS own_writes (k int PRIMARY KEY, n int)"


@dataclass
class Found:
    reads: int = 0
    stale: int = 0
    stale_without_token: int = 0
    by_server: dict = field(default_factory=dict)


def run(cluster, reads, tasks=20):
    from kit import run_all

    from greenpg.hubs import hub

    cluster.execute(TABLE)
    query = "SELECT n, inet_server_port() FROM own_writes WHERE k = %s"
    found = Found()

    def write(k, n):
        way = n % 3
        statement = "INSERT INTO own_writes VALUES (%s, %s) ON CONFLICT (k) DO UPDATE SET n = EXCLUDED.n"
        if way == 0:
            cluster.execute(statement, (k, n))
        elif way == 1:
            with cluster.transaction() as conn:
                conn.execute(statement, (k, n))
        else:
            cluster.run(lambda conn: conn.execute(statement, (k, n)))

    def read(k, n):
        if n % 4 == 0:
            return cluster.fetchone(query, (k,), readonly=True)
        isolation = "REPEATABLE READ" if n % 4 == 1 else None
        with cluster.transaction(readonly=True, isolation_level=isolation) as conn:
            return conn.execute(query, (k,)).fetchone()

    def work(k):
        for n in range(reads // tasks):
            write(k, n)
            token = cluster.token
            hub().sleep(0.008 * (n % 5))
            row = read(k, n)
            found.reads += 1
            found.stale += row is None or row[0] != n
            if row is not None:
                found.by_server[row[1]] = found.by_server.get(row[1], 0) + 1
            cluster.token = None  # to see that it matters
            row = cluster.fetchone("SELECT n FROM own_writes WHERE k = %s", (k,), readonly=True)
            found.stale_without_token += row is None or row[0] != n
            cluster.token = token

    cluster.token = None
    while cluster.fetchval("SELECT to_regclass('own_writes')", readonly=True) is None:
        hub().sleep(0.01)
    run_all([lambda k=k: work(k) for k in range(tasks)], timeout=600)
    return found


def main():
    from gevent import monkey

    monkey.patch_all()
    import greenpg

    greenpg.patch()
    from cluster import Pair

    reads, delay = (int(argument) for argument in [*sys.argv[1:], "10000", "20"][:2])
    with Pair(replica_settings={"recovery_min_apply_delay": delay}) as pair:
        cluster = greenpg.Cluster(pair.dsn(), max_size=5)
        cluster.open(wait=True)
        started = time.monotonic()
        found = run(cluster, reads)
        print(f"the replica lags {delay} ms; {found.reads} reads after writes in {time.monotonic() - started:.1f} s")
        print(f"stale: {found.stale}; without the token it would have been {found.stale_without_token}")
        ports = {pair.primary.port: "primary", pair.replica.port: "replica"}
        print("served by", {ports[port]: count for port, count in found.by_server.items()})
        cluster.close()
    return found.stale != 0


if __name__ == "__main__":
    sys.exit(main())
