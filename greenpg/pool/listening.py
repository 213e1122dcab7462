"""A pool's LISTEN and NOTIFY. Listening takes a connection of its own: notifications to a lent one would be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..connection.connect.dsn import checked_dsn
from ..connection.cursor import Cursor
from ..errors import PoolClosed
from ..shared.channels import checked_channel, checked_payload
from ..shared.listener import Listener
from ..shared.subscription import Subscription
from .contexts import CursorContext
from .core import PoolCore
from .lifecycle import open_if_needed
from .options import for_libpq


class Listening:
    """The listener of a pool, made at its first use."""

    def __init__(self, core: PoolCore) -> None:
        self._core = core
        self._listener: Listener | None = None

    def subscribe(self, channels: tuple[str, ...], timeout: float | None, max_pending: int | None) -> Subscription:
        """`pool.listen()`. Suspends until the server listens."""
        core, options = self._core, self._core.options
        open_if_needed(core)
        with core.mutex:
            if core.is_closed:
                raise PoolClosed(f"the pool {options.name!r} is already closed")
            if self._listener is None:
                self._listener = Listener(timeout=options.timeout, name=options.name)
                self._listener._take_credentials(self._connect_with)
        return self._listener.subscribe(*channels, timeout=timeout, max_pending=max_pending)

    def notify(self, channel: str, payload: str, timeout: float | None) -> None:
        """`pool.notify()`. Suspends."""
        checked_channel(channel)
        checked_payload(payload)
        block: CursorContext[Cursor] = CursorContext(self._core, None, timeout)
        with block as cur:
            cur.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    def close(self, timeout: float) -> None:
        """Suspends as `Listener.close()` does."""
        if self._listener is not None:
            self._listener.close(timeout)

    def _connect_with(self, connect: Callable[[str], Any]) -> Any:
        credentials = self._core.credentials()
        return credentials.connect(lambda conninfo, kwargs: connect(checked_dsn(conninfo, **for_libpq(kwargs))))
