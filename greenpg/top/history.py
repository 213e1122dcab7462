"""What pools were like in the last minutes: a sample a second, for as long as it's wanted."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from ..hubs import hub
from ..pool.lifecycle import living_pools
from ..pool.pool import ConnectionPool

#: Seconds between samples, how many are kept, and how long they're taken after the last look.
INTERVAL = 1.0
LENGTH = 300
_ABANDONED = 3600.0

PERCENTILES = (50, 95, 99)


class _PoolHistory:
    """One pool's samples."""

    def __init__(self, pool: ConnectionPool) -> None:
        pool.keep_histograms()
        self._stats = pool.get_stats()
        self._histograms = pool.get_histograms()
        self.samples: deque[dict[str, Any]] = deque(maxlen=LENGTH)

    def sample(self, pool: ConnectionPool, now: float, seconds: float) -> None:
        stats, histograms = pool.get_stats(), pool.get_histograms()
        sample: dict[str, Any] = {
            "time": round(now, 3),
            "used": stats["pool_lent"],
            "idle": stats["pool_available"],
            "waiting": stats["requests_waiting"],
            "per_second": round(max(stats["requests_num"] - self._stats["requests_num"], 0) / seconds, 1),
        }
        for name in ("wait_ms", "hold_ms"):
            counts = {bound: count - self._histograms[name][bound] for bound, count in histograms[name].items()}
            sample[name] = percentiles(counts)
        self._stats, self._histograms = stats, histograms
        self.samples.append(sample)


class History:
    """Samples of some pools, or of all that there are."""

    def __init__(self, pools: tuple[ConnectionPool, ...] = ()) -> None:
        self._given = pools
        self._is_stopped = False
        self._by_id: dict[int, _PoolHistory] = {}
        self._is_sampling = False
        self._ends_at = 0.0
        self._sampled_at = 0.0

    def pools(self) -> list[ConnectionPool]:
        """Those to be shown, by name."""
        found = self._given or [pool for pool in living_pools() if isinstance(pool, ConnectionPool)]
        return sorted(found, key=lambda pool: pool.name)

    def stop(self) -> None:
        """Take no more samples. Doesn't suspend."""
        self._is_stopped = True

    def look(self, seconds: float = _ABANDONED) -> None:
        """Somebody looks: go on sampling for so long. Doesn't suspend."""
        self._ends_at = max(self._ends_at, time.monotonic() + seconds)
        if not self._is_sampling:
            self._is_sampling = True
            self._sampled_at = time.monotonic()
            self._by_id.clear()
            self._add_new()
            hub().spawn(self._sample_on)

    def of(self, pool: ConnectionPool) -> list[dict[str, Any]]:
        """The pool's samples, the oldest first."""
        history = self._by_id.get(id(pool))
        return [] if history is None else list(history.samples)

    def _add_new(self) -> dict[int, ConnectionPool]:
        pools = {id(pool): pool for pool in self.pools()}
        self._by_id = {key: self._by_id.get(key) or _PoolHistory(pool) for key, pool in pools.items()}
        return pools

    def _sample_on(self) -> None:
        try:
            while not self._is_stopped and time.monotonic() < self._ends_at:
                hub().sleep(INTERVAL)
                now = time.monotonic()
                seconds, self._sampled_at = now - self._sampled_at, now
                for key, pool in self._add_new().items():
                    self._by_id[key].sample(pool, time.time(), seconds)
        finally:
            self._is_sampling = False


def percentiles(counts: dict[str, int]) -> dict[str, float] | None:
    """Of a histogram: the places within the ranges are estimates. None without any."""
    total = sum(count for count in counts.values() if count > 0)
    if not total:
        return None
    found: dict[str, float] = {}
    for percent in PERCENTILES:
        wanted, below, lower = total * percent / 100, 0, 0.0
        for bound, count in counts.items():
            if count > 0 and below + count >= wanted:
                upper = lower if bound == "inf" else float(bound)
                found[f"p{percent}"] = round(lower + (upper - lower) * (wanted - below) / count, 3)
                break
            below += max(count, 0)
            lower = lower if bound == "inf" else float(bound)
    return found
