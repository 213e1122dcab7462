"""A pool's LISTEN and NOTIFY. Listening takes a connection of its own: notifications to a lent one would be lost."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from ..connection.connect.credentials import Credentials
from ..errors import PoolClosed
from ..shared.channels import checked_channel, checked_payload
from ..shared.listener import Listener
from ..shared.subscription import Subscription
from .contexts import run_one_shot
from .core import PoolCore
from .lifecycle import open_if_needed
from .options import dsn_from
from .pooler import can_be_servers, find_mode, lends_sessions, refused

_ROWCOUNT = operator.attrgetter("rowcount")


class Listening:
    """The listener of a pool, made at its first use."""

    def __init__(self, core: PoolCore) -> None:
        self._core = core
        self._listener: Listener | None = None

    def subscribe(self, channels: tuple[str, ...], timeout: float | None, max_pending: int | None) -> Subscription:
        """`pool.listen()`. Suspends until the server listens."""
        core, options = self._core, self._core.options
        open_if_needed(core)
        if self._listener is None:
            with core.mutex:
                pids = [slot.conn.info.backend_pid for slot in core.ledger.slots if slot.conn and not slot.conn.closed]
            self._check_pooler(pids)
        with core.mutex:
            if core.is_closed:
                raise PoolClosed(f"the pool {options.name!r} is already closed")
            if self._listener is None:
                self._listener = Listener(timeout=options.timeout, name=options.name)
                self._listener._take_credentials(self._connect_with)
        subscription = self._listener.subscribe(*channels, timeout=timeout, max_pending=max_pending)
        if core.pooler is None:
            try:
                self._check_pooler([self._listener.backend_pid])
            except BaseException:
                subscription.close()
                raise
        return subscription

    def _check_pooler(self, pids: Iterable[int | None]) -> None:
        """NotSupportedError if a pooler wouldn't let the server's session be kept. `pids`: of the connections."""
        core, options = self._core, self._core.options
        if options.direct_conninfo is not None:
            return
        if options.pooler is None and all(pid is None or can_be_servers(pid) for pid in pids):
            return
        mode = find_mode(core, None)
        if not lends_sessions(mode):
            raise refused(mode, "LISTEN is of a session: name the server itself by direct_conninfo=")

    def notify(self, channel: str, payload: str, timeout: float | None) -> None:
        """`pool.notify()`. Suspends."""
        checked_channel(channel)
        checked_payload(payload)
        run_one_shot(self._core, "SELECT pg_notify(%s, %s)", (channel, payload), _ROWCOUNT, None, timeout)

    def close(self, timeout: float) -> None:
        """Suspends as `Listener.close()` does."""
        if self._listener is not None:
            self._listener.close(timeout)

    def _connect_with(self, connect: Callable[[str], Any]) -> Any:
        credentials, direct = self._core.credentials(), self._core.options.direct_conninfo
        if direct is not None:
            credentials = Credentials(direct, None)
        return credentials.connect(lambda conninfo, kwargs: connect(dsn_from(conninfo, kwargs)))
