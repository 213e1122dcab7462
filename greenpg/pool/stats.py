"""Counters of a pool, under psycopg_pool's names."""

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

    def __init__(self) -> None:
        for counter in _COUNTERS:
            setattr(self, counter, 0)

    def as_dict(self) -> dict[str, int]:
        """All counters, as whole numbers."""
        return {counter: int(getattr(self, counter)) for counter in _COUNTERS}
