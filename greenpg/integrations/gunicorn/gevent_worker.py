"""gunicorn's gevent worker with greenpg."""

from __future__ import annotations

from typing import Any

from gevent import monkey
from gevent.util import format_run_info
from gunicorn.workers.ggevent import GeventWorker

import greenpg

from ...connection.running import cancel_running_natively
from .worker import GreenWorker

#: Seconds for cancelling when a worker is aborted: gunicorn kills it a second later.
_AT_ABORT = 0.5


class GreenpgWorker(GreenWorker, GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker with greenpg."""

    @staticmethod
    def patch_process() -> None:
        monkey.patch_all()
        greenpg.patch("gevent")

    def handle_abort(self, sig: int, frame: Any) -> None:
        info = "\n".join(format_run_info())
        self.log.critical("Worker (pid: %s) has hung. This is where its greenlets are:\n%s", self.pid, info)
        cancel_running_natively(_AT_ABORT)
        super().handle_abort(sig, frame)
