"""`GreenWorker`: what greenpg adds to a worker class of gunicorn's, whichever it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication

import greenpg

from ...hubs import hub

#: Seconds before the end of graceful_timeout; of a shorter one than twice that, half.
_BEFORE_THE_END = 2.0
#: Seconds that a handler whose statement was cancelled has for its answer.
_FOR_ANSWERS = 0.25


class GreenWorker:
    """To be derived from before the worker class."""

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
