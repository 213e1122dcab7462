"""The end of the process: what it runs at servers ends with it."""

from __future__ import annotations

import atexit
import logging

from ..connection.running import cancel_running, cancel_running_natively
from ..hubs import hub
from .core import PoolCore
from .lifecycle import close_pool, open_cores

logger = logging.getLogger("greenpg")

#: Seconds that the interpreter's exit may take longer, for servers that don't answer.
AT_EXIT = 2.0


def shutdown(timeout: float = 5.0) -> None:
    """Close all pools of the process, and cancel all statements that its connections are running.

    For a program that is told to end (SIGTERM): its statements would go on at the server. Whoever waits for a pool's
    connection gets `errors.PoolClosed`, whoever waits for a statement `psycopg2.errors.QueryCanceled`; a COMMIT that is
    under way isn't cancelled. Connections outside of pools stay open. A process that ends without calling this (by
    `sys.exit()`, an exception, the end of its program) cancels what it runs when the interpreter exits.

    Suspends until nothing runs any more, for at most `timeout` seconds. Raises ValueError for a negative timeout.
    """
    if not timeout >= 0:
        raise ValueError(f"timeout can't be negative: {timeout!r}")
    deadline = hub().now() + timeout
    cores = open_cores()
    closed: list[None] = []
    all_closed = hub().event()

    def close(core: PoolCore) -> None:
        try:
            close_pool(core, max(deadline - hub().now(), 0.0))
        finally:
            closed.append(None)
            if len(closed) == len(cores):
                all_closed.set()

    for core in cores:
        hub().spawn(close, core)
    if cores:
        hub().sleep(0)  # first nobody gets a connection any more
    left = cancel_running(deadline)
    if cores and not all_closed.wait(deadline):
        logger.warning("shutdown: not all pools were closed within %g s", timeout)
    if left:
        logger.warning("shutdown: %d statements could not be cancelled within %g s", len(left), timeout)


atexit.register(cancel_running_natively, AT_EXIT)
