"""A real Patroni cluster with synchronous replication, whose primary fails in each way under 100 greenlets that write.

    python tests/patroni_storm.py [--rounds 5] [--client pool|cluster] [WAY ...]        # a minute for each round

What was acknowledged must be there, what was reported as rolled back must not, and each COMMIT in doubt is settled
rightly. It needs what `python examples/cluster/installing.py` asks for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "cluster"))

#: Power is lost; PostgreSQL crashes; Patroni is asked for another primary; the network's cable is pulled; all its
#: processes are stopped.
WAYS = ["kill", "crash", "switch_over", "cut", "freeze"]
MOST = 20  # connections
WATCH = "watch"


class Round:
    """One failure, and what came of it."""

    def __init__(self, cluster, way, client="pool", tasks=100, seconds=3.0):
        import greenpg

        self.cluster, self.way, self._tasks, self._seconds = cluster, way, tasks, seconds
        self.acknowledged, self.undone, self.doubts, self.successes = [], [], [], []
        options = {"min_size": 10, "max_size": MOST, "timeout": 60, "statement_deadline": 1.0}
        if client == "cluster":
            self._client = greenpg.Cluster(cluster.dsn, **options)
            self._client.open()
            self.pool = self._client.primary
        else:
            self._client = self.pool = greenpg.ConnectionPool(
                f"{cluster.dsn} target_session_attrs=read-write", **options
            )
        self._numbers = iter(range(100_000_000))
        self._is_over = False

    def run(self):
        import gevent

        old = self.cluster.leader()
        self.pool.wait()
        self.pool.execute("DROP TABLE IF EXISTS written")
        self.pool.execute("CREATE TABLE written (n int PRIMARY KEY)")
        writers = [gevent.spawn(self._write) for _ in range(self._tasks)]
        gevent.sleep(self._seconds)
        watcher = start_watcher(self.cluster, old)
        began = time.monotonic()
        self._fail(old)
        elected, writable = map(float, watcher.communicate(timeout=120)[0].split())
        limit = writable + 60
        while not (self.successes and self.successes[-1] > writable) and time.monotonic() < limit:
            gevent.sleep(0.01)
        first = next((at for at in self.successes if at > writable), limit)
        gevent.sleep(self._seconds)
        old_ones = sum(slot.server[2] == str(old.port) for slot in self.pool._core.ledger.slots if slot.conn)
        if self.way != "switch_over":
            self.cluster.bring_back(old)
        gevent.sleep(self._seconds)
        self._is_over = True
        gevent.joinall(writers, timeout=90)
        self.gap = first - writable
        faults = self._judge() + [f"{old_ones} connections to the old primary"] * bool(old_ones)
        self.cluster.wait_for(self.cluster.is_whole, 180)
        faults += self._slots()
        self._client.close()
        print(
            f"{self.way}: {len(self.acknowledged)} acknowledged, {len(self.undone)} undone, "
            f"{len(self.doubts)} in doubt ({self.committed} committed); elected after {elected - began:.2f} s, "
            f"takes writes {writable - elected:.2f} s later, first success {self.gap:.2f} s after that; "
            f"{'; '.join(faults) or 'nothing lost'}",
            flush=True,
        )
        return bool(faults)

    def _fail(self, node):
        if self.way == "switch_over":
            self.cluster.switch_over()
        else:
            getattr(self.cluster, self.way)(node)

    def _write(self):
        import gevent
        import psycopg2

        from greenpg import errors

        while not self._is_over:
            number = next(self._numbers)
            try:
                with self.pool.transaction(settle=True) as conn:
                    conn.execute("INSERT INTO written VALUES (%s)", (number,))
            except psycopg2.Error as error:
                in_doubt = errors.commit_outcome(error) == errors.UNKNOWN
                (self.doubts if in_doubt else self.undone).append((number, error))
                gevent.sleep(0.05)  # the pool refuses at once while it knows of no primary
            else:
                self.acknowledged.append(number)
                self.successes.append(time.monotonic())

    def _judge(self):
        from greenpg import errors

        there = {row[0] for row in self.pool.fetchall("SELECT n FROM written")}
        outcomes = [(number, errors.commit_outcome(error, ask=self.pool)) for number, error in self.doubts]
        self.committed = sum(outcome == errors.COMMITTED for _, outcome in outcomes)
        wrong = [(n, outcome) for n, outcome in outcomes if (outcome == errors.COMMITTED) != (n in there)]
        counts = {
            "acknowledged and lost": len(set(self.acknowledged) - there),
            "undone and there": sum(number in there for number, _ in self.undone),
            "settled wrongly": sum(outcome != errors.UNKNOWN for _, outcome in wrong),
            "not settled": sum(outcome == errors.UNKNOWN for _, outcome in outcomes),
        }
        return [f"{count} {what}" for what, count in counts.items() if count]

    def _slots(self):
        """All can be lent, none leads elsewhere than to the primary."""
        leader = str(self.cluster.leader().port)
        lent = [self.pool.getconn(timeout=10) for _ in range(MOST)]
        strays = sum(conn.info.port != int(leader) for conn in lent)
        for conn in lent:
            self.pool.putconn(conn)
        return [f"{strays} connections to others than the primary"] * bool(strays)


def start_watcher(cluster, old):
    """A process of its own, that this one's load doesn't hold up: says when another node was elected, and when that
    took its first write, by a connection straight to it."""
    others = {node.name: node.dsn(application_name="watcher") for node in cluster.nodes if node is not old}
    arguments = [str(cluster.etcd_port), json.dumps(others)]
    watcher = subprocess.Popen([sys.executable, __file__, WATCH, *arguments], stdout=subprocess.PIPE)
    time.sleep(0.5)
    return watcher


def watch(etcd_port, others):
    import psycopg2
    from patroni_cluster import ask_etcd

    conns = {name: psycopg2.connect(dsn) for name, dsn in others.items()}
    while (leader := ask_etcd(etcd_port, "leader").get("leader")) not in conns:
        time.sleep(0.02)
    print(time.monotonic(), flush=True)
    conns[leader].autocommit = True
    with conns[leader].cursor() as cur:
        while True:
            try:
                cur.execute("CREATE TABLE IF NOT EXISTS watched (n int)")
                cur.execute("INSERT INTO watched VALUES (1)")
                break
            except psycopg2.errors.ReadOnlySqlTransaction:
                time.sleep(0.005)
    print(time.monotonic(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each way (default: %(default)s)")
    parser.add_argument("--client", choices=["pool", "cluster"], default="pool", help="default: %(default)s")
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)} (default: all)")
    options = parser.parse_args()
    from gevent import monkey

    monkey.patch_all()
    import logging

    import greenpg

    logging.getLogger("greenpg").setLevel(logging.CRITICAL)

    greenpg.patch()
    from installing import Missing
    from patroni_cluster import PatroniCluster

    is_bad = False
    try:
        with PatroniCluster(nodes=2) as cluster:
            for way in options.ways or WAYS:
                done = []
                for _ in range(options.rounds):
                    done.append(Round(cluster, way, options.client))
                    is_bad |= done[-1].run()
                gaps = [round.gap for round in done]
                print(f"{way}: first success {statistics.median(gaps):.2f} s (median), {max(gaps):.2f} s (longest)\n")
    except Missing as missing:
        sys.exit(str(missing))
    return is_bad


if __name__ == "__main__":
    if sys.argv[1:2] == [WATCH]:
        watch(int(sys.argv[2]), json.loads(sys.argv[3]))
        sys.exit()
    sys.exit(main())
