"""What a scenario asks of a peer, and how its tasks are run and measured: greenlets, native threads, asyncio.

A peer's class has these operations, each of which takes a connection out of the pool and gives it back; asyncio's are
coroutines. Each statement is `SELECT 1`, its row is fetched, and returned.

    acquire_release()   without a statement
    one_statement()     in autocommit
    one_transaction()   the same in a transaction
    five_statements()   five of them in one transaction
    close()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SELECT = "SELECT 1"
LONG_SECONDS = 3600.0
"""For the pools' timeouts: with 10,000 tasks the last waits for long, and that is what is measured."""
BATCH = 100
"""So many operations between two looks at the clock."""


class Clock:
    """`with Clock() as clock:` measures what is in the block; then `numbers()` for the operations' latencies."""

    def __enter__(self) -> Clock:
        self._cpu, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu

    def numbers(self, latencies: list[float]) -> dict[str, float]:
        """`latencies`: of each operation, in seconds."""
        latencies.sort()
        count = len(latencies)
        middle, longest = latencies[count // 2], latencies[-1]
        return {
            "per_second": count / self.seconds,
            "cpu_us": self.cpu_seconds / count * 1e6,
            "p50_ms": middle * 1e3,
            "p99_ms": latencies[count * 99 // 100] * 1e3,
            "max_ms": longest * 1e3,
            "max_over_median": longest / middle,
        }


class BlockingPool:
    """A peer whose operations are plain calls. How it runs its tasks is the subclass's."""

    size: int

    def run_tasks(self, number: int, function: Callable[[], object]) -> Clock:
        """Run `function()` in as many tasks at once; the clock runs from when all are there until all are done."""
        raise NotImplementedError

    def measure(self, operation: str, tasks: int, loops: int, *, warm_up: int = 10) -> dict[str, float]:
        """`tasks` tasks do the operation `loops` times each; a latency includes the wait for a connection.

        `warm_up`: how often `size` tasks do it before, without being measured.
        """
        work = getattr(self, operation)
        self._warm_up(work, warm_up)
        latencies: list[float] = []

        def loop() -> None:
            clock, note = time.perf_counter, latencies.append
            for _ in range(loops):
                start = clock()
                work()
                note(clock() - start)

        return self.run_tasks(tasks, loop).numbers(latencies)

    def measure_alone(self, operation: str, seconds: float, *, warm_up: int = 10) -> dict[str, float]:
        """The operation again and again in one task, uncontended, for so long."""
        work = getattr(self, operation)
        self._warm_up(work, warm_up)
        times, end = 0, time.perf_counter() + seconds
        with Clock() as clock:
            while time.perf_counter() < end:
                times += BATCH
                for _ in range(BATCH):
                    work()
        return {"us": clock.seconds / times * 1e6, "cpu_us": clock.cpu_seconds / times * 1e6}

    def _warm_up(self, work: Callable[[], Any], loops: int) -> None:
        def loop() -> None:
            for _ in range(loops):
                check(work())

        self.run_tasks(self.size, loop)


class GeventPool(BlockingPool):
    def run_tasks(self, number: int, function: Callable[[], object]) -> Clock:
        import gevent

        tasks = [gevent.spawn(function) for _ in range(number)]  # none runs before this one waits
        with Clock() as clock:
            gevent.joinall(tasks, raise_error=True)
        return clock


def check(result: Any) -> None:
    """Acquire and release gives nothing, all others the row, of the peer's own row class."""
    assert result is None or tuple(result) == (1,), result
