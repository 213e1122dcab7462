"""Histograms of waiting and holding times, for pools made with `histograms=True`."""

from __future__ import annotations

from bisect import bisect_left

#: Upper bounds in milliseconds; what is longer is counted under "inf".
BOUNDS_MS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)


class Histograms:
    """Counts how long requests waited, and connections were held."""

    __slots__ = ("_hold", "_wait")

    def __init__(self) -> None:
        self._wait = [0] * (len(BOUNDS_MS) + 1)
        self._hold = [0] * (len(BOUNDS_MS) + 1)

    def waited(self, seconds: float) -> None:
        self._wait[bisect_left(BOUNDS_MS, seconds * 1000.0)] += 1

    def held(self, seconds: float) -> None:
        self._hold[bisect_left(BOUNDS_MS, seconds * 1000.0)] += 1

    def as_dict(self) -> dict[str, dict[str, int]]:
        """By name and upper bound."""
        names = [*(f"{bound:g}" for bound in BOUNDS_MS), "inf"]
        return {
            "wait_ms": dict(zip(names, self._wait, strict=True)),
            "hold_ms": dict(zip(names, self._hold, strict=True)),
        }
