"""Greenlets that write and read by `greenpg.Cluster`, and keep account of what they were told.

Each writer counts in a row of its own, and knows by how much it has been told that it did: after every transaction it
sees whether a COMMIT that was acknowledged is gone, or one in doubt was settled wrongly.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import gevent
import psycopg2
from patroni_cluster import Node, PatroniCluster

import greenpg
from greenpg import errors

WRITERS, READERS = 12, 12
PAUSE = 0.06  # seconds between two transactions of a task
TICK = 0.25  # seconds that a column of the page's chart stands for
OUTAGE = 0.5  # seconds without a write that are one
MOST_EVENTS = 40


class Load:
    """The tasks, and what the page shows of them."""

    def __init__(self, patroni: PatroniCluster, cluster: greenpg.Cluster) -> None:
        self._patroni = patroni
        self._cluster = cluster
        self._tasks: list[gevent.Greenlet] = []
        self._nodes = {node.postgres: node.name for node in patroni.nodes}
        self._roles: dict[str, str | None] = {}
        self._leader: str | None = None
        #: The only one that Patroni makes the primary, should that fail.
        self._synchronous: str | None = None
        self._members: dict[str, dict[str, Any]] = {}
        self._wrote_at = self._began = time.monotonic()
        self._elected_at: float | None = None
        #: What was done since the last tick, and since the beginning.
        self._now: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.ticks: deque[dict[str, int]] = deque(maxlen=240)
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._tick_number = self._event_number = 0

    def start(self) -> None:
        """Make the table, and begin."""
        self._cluster.run(self._make_table)
        token = self._cluster.token  # passed on, for a replica may not know the table yet
        tasks = [(self._write, number) for number in range(WRITERS)] + [(self._read, token)] * READERS
        self._tasks = [gevent.spawn(*task) for task in [*tasks, (self._tick,), (self._look,)]]

    def stop(self) -> None:
        gevent.killall(self._tasks)

    def note(self, text: str, is_fault: bool = False) -> None:
        """Something has happened."""
        self._event_number += 1
        at = round(time.monotonic() - self._began, 1)
        self.events.append({"number": self._event_number, "at": at, "text": text, "is_fault": is_fault})

    # -- the tasks

    @staticmethod
    def _make_table(conn: greenpg.Connection) -> None:
        conn.execute("CREATE TABLE tally (writer int PRIMARY KEY, n int) WITH (fillfactor = 10)")
        conn.execute("INSERT INTO tally SELECT writer, 0 FROM generate_series(0, %s) AS writer", (WRITERS - 1,))

    def _write(self, writer: int) -> None:
        told = 0
        while True:
            try:
                with self._cluster.primary.transaction(settle=True) as conn:
                    update = "UPDATE tally SET n = n + 1 WHERE writer = %s RETURNING n"
                    found: Any = conn.execute(update, (writer,)).fetchone()
                    counted = found[0]
                    if counted != told + 1:
                        self._count("lost" if counted <= told else "wrong")
            except psycopg2.Error as error:
                self._count("errors")
                if errors.commit_outcome(error) == errors.UNKNOWN and self._settle(error):
                    told = counted
            else:
                told = counted
                self._wrote()
                self._read_back(writer, told)
            gevent.sleep(PAUSE)

    def _settle(self, error: psycopg2.Error) -> bool:
        """Whether the COMMIT that was in doubt has taken place: asked until somebody knows."""
        self._count("doubts")
        while (outcome := errors.commit_outcome(error, ask=self._cluster.primary)) == errors.UNKNOWN:
            gevent.sleep(0.2)
        self._count("settled")
        return outcome == errors.COMMITTED

    def _wrote(self) -> None:
        now = time.monotonic()
        gap, self._wrote_at = now - self._wrote_at, now
        if gap > OUTAGE:
            of_election = f", {now - self._elected_at:.1f} s after the election" if self._elected_at else ""
            self.note(f"writes again, after {gap:.1f} s{of_election}")
        self._elected_at = None
        self._count("writes")

    def _read_back(self, writer: int, told: int) -> None:
        """What this task has just written, from a replica if that has it."""
        question = "SELECT n, inet_server_port() FROM tally WHERE writer = %s"
        try:
            found, port = self._cluster.fetchone(question, (writer,), readonly=True)
        except psycopg2.Error:
            self._count("errors")
            return
        self._count(self._nodes[port])
        if found < told:
            self._count("stale")

    def _read(self, token: str | None) -> None:
        self._cluster.token = token
        while True:
            try:
                _, port = self._cluster.fetchone("SELECT sum(n), inet_server_port() FROM tally", readonly=True)
            except psycopg2.Error:
                self._count("errors")
            else:
                self._count(self._nodes[port])
            gevent.sleep(PAUSE)

    def _count(self, what: str) -> None:
        self._now[what] += 1
        self.totals[what] += 1

    # -- what the page shows

    def _tick(self) -> None:
        while True:
            gevent.sleep(TICK)
            self._tick_number += 1
            self.ticks.append({"number": self._tick_number, **self._now})
            self._now.clear()

    def _look(self) -> None:
        """What Patroni says, beside what the cluster's object has found out by itself."""
        while True:
            try:
                leader = self._patroni.leader()
                synchronous = self._patroni.synchronous() if leader else None
                self._members = self._patroni.members()
            except OSError:
                leader = synchronous = None
            name = leader.name if leader else None
            synchronous = synchronous if synchronous != name else None  # it was, until it was elected
            if name != self._leader:
                self._elected_at = time.monotonic() if name else None
                self.note(f"Patroni: {name} is elected" if name else "Patroni: there is no leader")
                self._leader = name
            if name and synchronous != self._synchronous:
                yes = f"{synchronous} is synchronous, and could take over"
                self.note(f"Patroni: {yes if synchronous else 'nobody could take over yet'}")
            self._synchronous = synchronous
            for node, found in self._seen():
                if self._roles.get(node.name, found["role"]) != found["role"]:
                    self.note(f"greenpg: {node.name} is {found['role'] or 'out'}")
                self._roles[node.name] = found["role"]
            gevent.sleep(0.2)

    def _seen(self) -> list[tuple[Node, dict[str, Any]]]:
        """The nodes, with what the cluster's object knows of them."""
        seen = {str(node["host"]).rpartition(":")[2]: node for node in self._cluster.nodes}
        return [(node, seen[str(node.port)]) for node in self._patroni.nodes]

    def state(self) -> dict[str, Any]:
        """All that the page shows. Doesn't suspend."""
        nodes = []
        for node, found in self._seen():
            member = self._members.get(node.name, {})
            nodes.append(
                {
                    "name": node.name,
                    "port": node.port,
                    "fault": node.fault,
                    "role": found["role"],
                    "lag": found["lag"],
                    "position": found["position"],
                    "in_rotation": found["in_rotation"],
                    "error": found["error"],
                    "patroni": member.get("replication_state") or member.get("state"),
                    "is_leader": node.name == self._leader,
                    "is_synchronous": node.name == self._synchronous,
                    "timeline": member.get("timeline"),
                }
            )
        stats = self._cluster.primary.get_stats()
        return {
            "nodes": nodes,
            "ticks": list(self.ticks),
            "tick": TICK,
            "totals": self.totals,
            "events": list(self.events),
            "waiting": stats["requests_waiting"],
            "connections": stats["pool_size"],
            "silent_for": round(time.monotonic() - self._wrote_at, 1),
            "time": round(time.monotonic() - self._began, 1),
        }
