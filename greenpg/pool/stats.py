"""Counters of a pool: psycopg_pool's under its names, and greenpg's own after them."""

from __future__ import annotations

_COUNTERS = (
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_errors",
    "usage_ms",
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
    "requests_timeouts",
    "connections_evicted",
    "connections_leaked",
    "deadlocks",
    "statements_multiplexed",
)


class Stats:
    """Counts since the pool was made, or since `pop_stats()`. Times in milliseconds, with fractions until shown."""

    __slots__ = _COUNTERS

    requests_num: int
    requests_queued: int
    requests_wait_ms: float
    requests_errors: int
    usage_ms: float
    returns_bad: int
    connections_num: int
    connections_ms: float
    connections_errors: int
    connections_lost: int
    #: Of the requests' errors, those by timeout.
    requests_timeouts: int
    #: Connections that weren't lent again because of what was found: not those that were too old.
    connections_evicted: int
    #: Held longer than `leak_after`, or taken back from a task that had ended.
    connections_leaked: int
    deadlocks: int
    #: Single statements that shared a connection.
    statements_multiplexed: int

    def __init__(self) -> None:
        for counter in _COUNTERS:
            setattr(self, counter, 0)

    def as_dict(self) -> dict[str, int]:
        """All counters, as whole numbers."""
        return {counter: int(getattr(self, counter)) for counter in _COUNTERS}
