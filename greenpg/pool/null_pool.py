"""`NullConnectionPool`: a limit to the connections, without keeping any."""

from __future__ import annotations

import sys

from ..errors import PoolTimeout
from ..hubs import hub
from .lending import lend
from .opening import replace
from .options import ConnT, check_sizes
from .pool import ConnectionPool


class NullConnectionPool(ConnectionPool[ConnT]):
    """Limits connections without keeping them: each is opened for a request, and closed when nobody waits for it.

    As psycopg_pool's: `min_size` must be 0 (the default), `max_size` None or 0 sets no limit, `check()` does nothing,
    and `wait()` opens a connection to see whether that works.
    """

    _default_min_size = 0
    _keeps_idle = False

    def _check_size(self, min_size: int, max_size: int | None) -> tuple[int, int]:
        if min_size != 0:
            raise ValueError(f"min_size must be 0 for a {type(self).__name__}, not {min_size}")
        return check_sizes(0, max_size or sys.maxsize)

    @property
    def max_size(self) -> int:
        """0: no limit."""
        max_size = super().max_size
        return 0 if max_size == sys.maxsize else max_size

    def wait(self, timeout: float = 30.0) -> None:
        """Suspend until a connection has been opened, to see whether it can be.

        Raises `PoolTimeout`, and closes the pool, if that takes longer than `timeout` seconds.
        """
        deadline = self._core.now() + timeout
        try:
            while True:
                try:
                    slot = lend(self._core, max(deadline - self._core.now(), 0.0))
                    break
                except PoolTimeout:  # perhaps at once, because connecting was refused
                    if self._core.now() >= deadline:
                        raise
                    hub().sleep(0.1)
        except BaseException:
            self.close()
            raise
        slot.forget_loan()
        replace(self._core, slot)

    def check(self) -> None:
        """Nothing to do: there are no idle connections. Doesn't suspend."""
