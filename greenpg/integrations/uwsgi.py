"""uWSGI: one line in the app's module makes psycopg2 green, and leaves nothing running at the server.

    greenpg.integrations.uwsgi.setup()

    uwsgi --master --gevent 1000 --gevent-early-monkey-patch --module app \\
        --hook-master-start 'unix_signal:15 gracefully_kill_them_all'

Early or late patching (`--gevent-monkey-patch`), with `--lazy-apps` or without. The last line makes SIGTERM let the
requests finish, which uWSGI by itself doesn't; with `--die-on-term` they are ended at once, and so are their
statements.
"""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import greenpg
from greenpg.hubs import hub

__all__ = ["setup"]

#: Seconds before the end of worker-reload-mercy; of a shorter one than twice that, half.
_BEFORE_THE_END = 2.0
#: uWSGI's own default, in seconds.
_MERCY = 60.0
#: Seconds that the end of a worker waits for servers that don't answer.
_AT_THE_END = 5.0


def setup(*, shutdown_after: float | None = None) -> None:
    """Make the workers green, and end their statements with them. Call it once, before pools are made; doesn't suspend.

    psycopg2 is patched for gevent with `--gevent` (or `--loop gevent`), and else for native threads. A worker that has
    to stop, or to reload, waits for its requests, which uWSGI doesn't bound with gevent. `shutdown_after` seconds later
    (None: shortly before `--worker-reload-mercy` is over) `greenpg.shutdown()` cancels what they run, and they fail.
    Whichever way a worker exits, `greenpg.shutdown()` is called (`uwsgi.atexit`; one that was there is called first).

    Outside of uWSGI it does nothing. Raises ValueError for a negative `shutdown_after`.
    """
    if shutdown_after is not None and not shutdown_after >= 0:
        raise ValueError(f"shutdown_after can't be negative: {shutdown_after!r}")
    try:
        import uwsgi
    except ImportError:
        return
    options = uwsgi.opt
    is_gevent = "gevent" in options or options.get("loop") == b"gevent"
    with warnings.catch_warnings():
        if "gevent-monkey-patch" in options:  # which comes when the worker begins
            warnings.simplefilter("ignore", RuntimeWarning)
        greenpg.patch("gevent" if is_gevent else "threads")
    uwsgi.atexit = functools.partial(_end, getattr(uwsgi, "atexit", None))
    if is_gevent:
        seconds = _seconds_of_mercy(options) if shutdown_after is None else shutdown_after
        begin = functools.partial(_begin, seconds)
        if uwsgi.worker_id():  # lazy-apps
            begin()
        else:
            _after_fork(uwsgi, begin)


def _seconds_of_mercy(options: Any) -> float:
    mercy = float(options.get("worker-reload-mercy", _MERCY))
    return max(mercy - _BEFORE_THE_END, mercy / 2)


def _after_fork(uwsgi: Any, begin: Callable[[], None]) -> None:
    previous = getattr(uwsgi, "post_fork_hook", None)
    if uwsgi.masterpid() and (previous is None or "uwsgidecorators" in sys.modules):
        # It takes the hook for itself when it's imported, and keeps a list.
        from uwsgidecorators import postfork

        postfork(begin)
        return

    def hook() -> None:
        if previous is not None:
            previous()
        begin()

    uwsgi.post_fork_hook = hook


def _begin(seconds: float) -> None:
    # In a task, since that runs when uWSGI has its own handler of the signal in gevent's loop: the first one decides.
    hub().spawn(_watch, seconds)


def _watch(seconds: float) -> None:
    import gevent

    gevent.signal_handler(signal.SIGHUP, _cut, seconds)


def _cut(seconds: float) -> None:
    hub().sleep(seconds)
    greenpg.shutdown(_AT_THE_END)


def _end(previous: Callable[[], object] | None) -> None:
    if previous is not None:
        previous()
    greenpg.shutdown(_AT_THE_END)
