"""Runs a piece of work and measures it: the time, the CPU time, and for how long nothing else could run in its program.

A task beside it wants to run each 2 ms; the longest by which it came too late is the stall. Of Python's garbage
collector, during which nothing runs either, the longest run is told separately: the stalls contain it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from peers.base import Clock

BEAT_SECONDS = 0.002


@dataclass
class Measured:
    result: Any
    seconds: float
    cpu_seconds: float
    stall_ms: float
    gc_ms: float


class Beats:
    """Notes when the task beside ran."""

    def __init__(self) -> None:
        self.is_over = False
        self.stall_seconds = 0.0
        self._last = time.perf_counter()

    def note(self) -> None:
        now = time.perf_counter()
        self.stall_seconds = max(self.stall_seconds, now - self._last - BEAT_SECONDS)
        self._last = now


class Collections:
    """`with Collections() as collections:` notes how long the runs of the garbage collector take."""

    def __enter__(self) -> Collections:
        self.longest_seconds = 0.0
        gc.callbacks.append(self._note)
        return self

    def _note(self, phase: str, _: object) -> None:
        if phase == "start":
            self._start = time.perf_counter()
        else:
            self.longest_seconds = max(self.longest_seconds, time.perf_counter() - self._start)

    def __exit__(self, *exc_info: object) -> None:
        gc.callbacks.remove(self._note)


def measure_green(work: Callable[[], Any]) -> Measured:
    """`work()` in a program that gevent has patched."""
    import gevent

    def beat() -> None:
        while not beats.is_over:
            gevent.sleep(BEAT_SECONDS)
            beats.note()

    beats = Beats()
    beside = gevent.spawn(beat)
    try:
        gevent.sleep(2 * BEAT_SECONDS)  # so that it beats
        with Collections() as collections, Clock() as clock:
            result = work()
    finally:
        beats.is_over = True
        beside.join()
    return _measured(result, clock, beats, collections)


async def measure_async(work: Callable[[], Awaitable[Any]]) -> Measured:
    """`await work()` on asyncio's loop."""

    async def beat() -> None:
        while not beats.is_over:
            await asyncio.sleep(BEAT_SECONDS)
            beats.note()

    beats = Beats()
    beside = asyncio.ensure_future(beat())
    try:
        await asyncio.sleep(2 * BEAT_SECONDS)
        with Collections() as collections, Clock() as clock:
            result = await work()
    finally:
        beats.is_over = True
        await beside
    return _measured(result, clock, beats, collections)


def _measured(result: Any, clock: Clock, beats: Beats, collections: Collections) -> Measured:
    return Measured(
        result, clock.seconds, clock.cpu_seconds, beats.stall_seconds * 1e3, collections.longest_seconds * 1e3
    )
