"""gunicorn's eventlet worker with greenpg, of the gunicorns that have one."""

from __future__ import annotations

import eventlet
from gunicorn.workers.geventlet import EventletWorker

import greenpg

from .worker import GreenWorker


class GreenpgEventletWorker(GreenWorker, EventletWorker):  # type: ignore[misc]
    """gunicorn's eventlet worker with greenpg."""

    @classmethod
    def setup(cls) -> None:
        """Nothing: in a master that eventlet has patched, gunicorn's signal handlers fail. The worker patches later."""

    @staticmethod
    def patch_process() -> None:
        eventlet.monkey_patch()
        greenpg.patch("eventlet")
