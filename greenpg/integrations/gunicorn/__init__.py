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

`GreenpgEventletWorker` does the first two on eventlet's worker, which newer gunicorns don't have any more. There, with
`--preload`, the worker patches what the master has imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .eventlet_worker import GreenpgEventletWorker
    from .gevent_worker import GreenpgWorker

__all__ = ["GreenpgEventletWorker", "GreenpgWorker", "worker_class"]

#: For `-c python:greenpg.integrations.gunicorn`: gunicorn's setting.
worker_class = f"{__name__}.GreenpgWorker"


def __getattr__(name: str) -> Any:
    # Each in its room, since neither of gevent and eventlet may be imported in the other's programs.
    if name == "GreenpgWorker":
        from .gevent_worker import GreenpgWorker

        return GreenpgWorker
    if name == "GreenpgEventletWorker":
        from .eventlet_worker import GreenpgEventletWorker

        return GreenpgEventletWorker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
