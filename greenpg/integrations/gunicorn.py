"""gunicorn: worker classes in which psycopg2 is green from the start, and that leave nothing running at the server.

    gunicorn -k greenpg.integrations.gunicorn.GreenpgWorker app
    gunicorn -c python:greenpg.integrations.gunicorn app

Both are the same. What they do beyond gunicorn's own gevent worker:

- psycopg2 is patched right after the monkey-patching and before the app is imported; with `--preload` both happen in
  the master, before it imports the app.
- A worker that is told to stop lets its requests finish. Shortly before `graceful_timeout` is over, when gunicorn
  would kill it, it calls `greenpg.shutdown()`: what still runs at the server is cancelled, and the worker exits by
  itself.
- A worker that gunicorn aborts, since it has hung for `timeout`, logs where its greenlets are, and cancels what they
  run.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gevent import monkey
from gevent.util import format_run_info
from gunicorn.app.base import BaseApplication
from gunicorn.workers.ggevent import GeventWorker

import greenpg

from ..connection.running import cancel_running_natively
from ..hubs import hub

__all__ = ["GreenpgWorker", "worker_class"]

#: For `-c python:greenpg.integrations.gunicorn`: gunicorn's setting.
worker_class = f"{__name__}.GreenpgWorker"

#: Seconds before the end of graceful_timeout; of a shorter one than twice that, half.
_BEFORE_THE_END = 2.0
#: Seconds that a handler whose statement was cancelled has for its answer.
_FOR_ANSWERS = 0.25
#: Seconds for cancelling when a worker is aborted: gunicorn kills it a second later.
_AT_ABORT = 0.5


class _Worker:
    """What greenpg adds to a worker class of gunicorn's."""

    if TYPE_CHECKING:
        cfg: Any
        log: Any

    @classmethod
    def setup(cls) -> None:
        """gunicorn calls this in its master, before it imports the app there (with `--preload`)."""
        load = BaseApplication.wsgi

        def wsgi(app: Any) -> Any:
            cls.patch_process()
            return load(app)

        if not hasattr(load, "is_greenpgs"):
            wsgi.is_greenpgs = True  # type: ignore[attr-defined]
            BaseApplication.wsgi = wsgi

    @staticmethod
    def patch_process() -> None:
        """Monkey-patch the process, and psycopg2. Again is harmless."""
        raise NotImplementedError

    def patch(self) -> None:
        self.patch_process()
        super().patch()  # type: ignore[misc]

    def run(self) -> None:
        try:
            super().run()  # type: ignore[misc]
        finally:
            greenpg.shutdown(self._seconds_before_the_end() / 2)

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)  # type: ignore[misc]
        hub().spawn(self._last_call)

    def _last_call(self) -> None:
        """End before gunicorn's master kills this process, which would leave its statements running."""
        seconds = self._seconds_before_the_end()
        hub().sleep(max(self.cfg.graceful_timeout - seconds, 0.0))
        self.log.warning("graceful_timeout is nearly over: cancelling what runs at the database")
        greenpg.shutdown(seconds / 2)
        hub().sleep(min(_FOR_ANSWERS, seconds / 4))
        sys.exit(0)

    def _seconds_before_the_end(self) -> float:
        return min(_BEFORE_THE_END, float(self.cfg.graceful_timeout) / 2)


class GreenpgWorker(_Worker, GeventWorker):  # type: ignore[misc]
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
