"""A pool's LISTEN and NOTIFY. Listening takes a connection of its own: notifications to a lent one would be lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import PoolClosed
from ..shared.channels import checked_channel, checked_payload
from ..shared.listener import Listener
from ..shared.subscription import Subscription
from .parameters import for_libpq


class Notifying:
    """The part of `ConnectionPool` that listens and notifies."""

    _listener: Listener | None = None

    if TYPE_CHECKING:  # what it uses of the pool
        name: str
        timeout: float
        conninfo: Any
        kwargs: Any
        cursor: Any
        _mutex: Any
        _closed: bool
        _open_if_needed: Any

    def listen(self, *channels: str, timeout: float | None = None, max_pending: int | None = None) -> Subscription:
        """`with pool.listen("orders") as subscription:` subscribes to the channels, as `Listener.subscribe()` does.

        All subscriptions of a pool share one connection, which is opened for the first of them, is not counted in
        `max_size`, and is closed with the pool. Suspends, for at most `timeout` seconds (None: the pool's), until the
        server listens. Raises what `Listener.subscribe()` raises, and `PoolClosed`.
        """
        self._open_if_needed()
        with self._mutex:
            if self._closed:
                raise PoolClosed(f"the pool {self.name!r} is already closed")
            if self._listener is None:
                self._listener = Listener(
                    self.conninfo, kwargs=_for_listener(self.kwargs), timeout=self.timeout, name=self.name
                )
        return self._listener.subscribe(*channels, timeout=timeout, max_pending=max_pending)

    def notify(self, channel: str, payload: str = "", *, timeout: float | None = None) -> None:
        """Send a notification, in a transaction of its own. Suspends as `cursor()` does.

        Raises ValueError for a payload of 8000 bytes or more, and for a name that can't be a channel. To notify as part
        of another transaction, execute `SELECT pg_notify(channel, payload)` in it.
        """
        checked_channel(channel)
        checked_payload(payload)
        with self.cursor(timeout=timeout) as cur:
            cur.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    def _close_listener(self, timeout: float) -> None:
        if self._listener is not None:
            self._listener.close(timeout)


def _for_listener(kwargs: Any) -> Any:
    if not callable(kwargs):
        return for_libpq(kwargs or {})

    def find_kwargs() -> Mapping[str, Any]:
        return for_libpq(kwargs())

    return find_kwargs
