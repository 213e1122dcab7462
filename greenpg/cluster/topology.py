"""Who is what in a cluster, and how new it is: by asking each server again and again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from ..hubs import Event, hub
from .nodes import LOOK_TIMEOUT, PRIMARY, REPLICA, Node, PrimaryLog

logger = logging.getLogger("greenpg.cluster")


class Topology:
    """The nodes, and the tasks that look at them."""

    def __init__(
        self, nodes: list[Node], interval: float, max_lag: float | None, new_primary: Callable[[], object]
    ) -> None:
        self.nodes = nodes
        self._interval = interval
        self._max_lag = max_lag
        self._new_primary = new_primary
        self._log = PrimaryLog()
        self._mutex = hub().mutex()
        self._pid = 0
        self._resting: dict[Node, Event] = {}
        self._waiting: list[Event] = []
        self._primary: Node | None = None
        self.is_stopped = False

    # -- the tasks

    def ensure_watching(self) -> None:
        """Start the tasks, once in each process. Doesn't suspend."""
        if self._pid == os.getpid() or self.is_stopped:
            return
        self._pid = os.getpid()
        self._mutex = hub().mutex()
        self._resting, self._waiting = {}, []
        for node in self.nodes:
            node.was_looked_at = False
            hub().spawn(_watch, self, node, self._pid)

    def stop(self) -> None:
        """End the tasks soon. Doesn't suspend."""
        self.is_stopped = True
        with self._mutex:
            events = [*self._resting.values(), *self._waiting]
        for event in events:
            event.set()

    def is_over(self, pid: int) -> bool:
        return self.is_stopped or pid != os.getpid()

    def look(self, node: Node) -> None:
        """Suspends."""
        before = node.role
        node.look()
        with self._mutex:
            if node.role == PRIMARY:
                self._log.note(node.looked_at, node.position)
                is_new = self._primary not in (None, node)
                self._primary = node
            else:
                is_new = False
                if node is self._primary:
                    self._primary, is_new = None, True
            node.lag = self._log.lag_of(node.position, node.looked_at)
            waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()
        if node.role != before:
            logger.info("%s is %s now%s", node, node.role or "out", f": {node.error}" if node.error else "")
        if is_new:
            self._new_primary()

    def rest(self, node: Node) -> None:
        """Suspend until the node is to be looked at again."""
        event = hub().event()
        with self._mutex:
            self._resting[node] = event
        if not self.is_stopped:
            event.wait(hub().now() + self._interval)

    # -- who may be read from

    @property
    def primary(self) -> Node | None:
        """Which server was the primary when it was last looked at."""
        return self._primary

    def wait_for_looks(self, deadline: float) -> None:
        """Suspend until every node was looked at once, which takes no longer than a connect."""
        self.ensure_watching()
        while not all(node.was_looked_at for node in self.nodes) and not self.is_stopped:
            event = hub().event()
            with self._mutex:
                self._waiting.append(event)
            if all(node.was_looked_at for node in self.nodes) or not event.wait(deadline):
                return

    def replicas(self) -> list[Node]:
        """Those that can be read from. Doesn't suspend."""
        oldest = hub().now() - self._interval - LOOK_TIMEOUT
        return [
            node
            for node in self.nodes
            if node.role == REPLICA
            and node.looked_at >= oldest
            and (self._max_lag is None or node.lag <= self._max_lag)
        ]


def _watch(topology: Topology, node: Node, pid: int) -> None:
    while not topology.is_over(pid):
        try:
            topology.look(node)
        except Exception:
            logger.exception("looking at %s failed", node)
        topology.rest(node)
