"""Celery 5: psycopg2 green in `-P gevent` and `-P eventlet` workers, and a connection, or a transaction, for each task.

    app = Celery("tasks", broker=...)
    db = greenpg.integrations.celery.setup(app, "postgresql://app@db/app", max_size=10)

    @app.task
    def transfer(amount):
        with db.cursor() as cur:
            cur.execute(...)

`celery -A tasks worker -P gevent -c 200`. Time limits, revoking and a worker's shutdown cancel a task's statement at the
server, and keep its connection.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, overload

import celery
from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

import greenpg
from greenpg import hubs
from greenpg.hubs import hub

from .unit import Keeps, Unit, checked_keeps, new_pool

__all__ = ["TaskDatabase", "setup"]

_SHUTDOWN = 5.0


class TaskDatabase:
    """What a task works with. Outside of tasks, `cursor()` and `transaction()` lend a connection for their block."""

    def __init__(self, pool: greenpg.ConnectionPool[Any], keeps: Keeps) -> None:
        self.pool = pool
        self._keeps: Keeps = keeps
        self._units: weakref.WeakKeyDictionary[Any, Unit] = weakref.WeakKeyDictionary()

    @property
    def connection(self) -> greenpg.Connection:
        """The task's connection: lent at the first use, which may suspend, and returned when the task ends.

        RuntimeError outside of a task, and in a greenlet that a task has spawned.
        """
        unit = self._units.get(_current())
        if unit is None:
            raise RuntimeError(
                "no task of this Celery app runs here: use `with db.cursor()` or `with db.transaction()`. (A Task class "
                "of your own has to derive from app.Task, after greenpg's setup())"
            )
        return unit.connection

    def cursor(self, cursor_factory: Callable[..., Any] | None = None) -> AbstractContextManager[Any]:
        """`with db.cursor() as cur:` is a transaction of its own: commit at its end, or rollback if it raises. Within
        `db.transaction()`, or with a transaction for each task, a part of that one. Suspends.
        """
        return self._unit().cursor(cursor_factory)

    def transaction(self, **options: Any) -> AbstractContextManager[greenpg.Connection]:
        """`with db.transaction() as conn:`, with `conn.transaction()`'s options; within another one, a savepoint."""
        return self._unit().transaction(**options)

    def _unit(self) -> Unit:
        return self._units.get(_current()) or Unit(self.pool, "connection")

    @contextmanager
    def task(self) -> Iterator[None]:
        """Around a task: what it keeps ends with it. A task that another one calls is a part of that one."""
        current = _current()
        if current in self._units:
            yield
            return
        unit = self._units[current] = Unit(self.pool, self._keeps)
        try:
            yield
        except BaseException as error:
            unit.end(error)
            raise
        else:
            unit.end()
        finally:
            del self._units[current]


def _current() -> Any:
    import threading

    current = hub().current()
    # A native thread's identity is a number, which can't be referred to weakly.
    return threading.current_thread() if isinstance(current, int) else current


@overload
def setup(app: celery.Celery, *, shutdown_after: float | None = None) -> None: ...
@overload
def setup(
    app: celery.Celery,
    conninfo: str | Callable[[], str],
    *,
    per_task: Keeps = "connection",
    shutdown_after: float | None = None,
    **options: Any,
) -> TaskDatabase: ...
def setup(
    app: celery.Celery,
    conninfo: str | Callable[[], str] | None = None,
    *,
    per_task: Keeps = "connection",
    shutdown_after: float | None = None,
    **options: Any,
) -> TaskDatabase | None:
    """Make the app's workers green, and end their statements with them. Call it once, beside the app; doesn't suspend.

    psycopg2 is patched here if the program is monkey-patched, which celery does at its start for `-P gevent` and
    `-P eventlet`, and else when a worker starts, for native threads: there soft time limits end a statement, too.

    With `conninfo`, and `options` (`ConnectionPool`'s), it returns the database for the tasks. With
    `per_task="connection"` (default) `db.connection` is the task's until it ends, and what has not been committed is rolled
    back; with "transaction" all that a task does is one transaction, which is committed when it returns (an error of the
    commit is the task's) and rolled back when it raises. The pool opens itself at the first use, in the worker.

    At a warm shutdown (SIGTERM) Celery waits for its tasks for as long as they take. `shutdown_after` seconds later
    `greenpg.shutdown()` cancels what they run; their task fails then. Default: None, never.

    soft_time_limit, which Celery leaves out with gevent and eventlet, is kept there by greenpg.
    """
    keeps = checked_keeps(per_task, "per_task")
    if conninfo is None and options:
        raise TypeError(f"{', '.join(options)}: these are a pool's options, which needs conninfo as well")
    if not greenpg.is_patched() and hubs.monkey_patched_hub() is not None:
        greenpg.patch()
    database = None if conninfo is None else TaskDatabase(new_pool(conninfo, **options), keeps)
    _wrap_tasks(app, database)
    lifetime = _Lifetime(shutdown_after)
    signals.worker_init.connect(lifetime.begin, weak=False)
    signals.worker_shutting_down.connect(lifetime.begin_to_end, weak=False)
    signals.worker_shutdown.connect(lifetime.end, weak=False)
    signals.worker_process_shutdown.connect(lifetime.end, weak=False)
    return database


class _Lifetime:
    """A worker's start and its end."""

    def __init__(self, shutdown_after: float | None) -> None:
        self._shutdown_after = shutdown_after

    def begin(self, **_: Any) -> None:
        if not greenpg.is_patched() and hubs.monkey_patched_hub() is None:
            greenpg.patch("threads")

    def begin_to_end(self, how: str = "", **_: Any) -> None:
        if self._shutdown_after is not None:
            hub().spawn(self._end_later, self._shutdown_after)

    def _end_later(self, seconds: float) -> None:
        hub().sleep(seconds)
        greenpg.shutdown(_SHUTDOWN)

    def end(self, **_: Any) -> None:
        greenpg.shutdown(_SHUTDOWN)


def _wrap_tasks(app: celery.Celery, database: TaskDatabase | None) -> None:
    base: Any = app.Task

    class Task(base):  # type: ignore[misc]
        """The app's Task, whose connection is returned when it ends."""

        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with _soft_time_limit(self):
                if database is None:
                    return super().__call__(*args, **kwargs)
                with database.task():
                    return super().__call__(*args, **kwargs)

    app.Task = Task


@contextmanager
def _soft_time_limit(task: Any) -> Iterator[None]:
    """Keep the limit where Celery doesn't: with green threads, in a worker."""
    name = hub().name
    limit = None
    if name != "threads" and not task.request.called_directly:
        limit = (task.request.timelimit or (None, None))[1] or task.soft_time_limit
    if not limit:
        yield
        return
    timeout: Any
    if name == "gevent":
        from gevent import Timeout as timeout
    else:
        from eventlet import Timeout as timeout
    with timeout(limit, SoftTimeLimitExceeded(limit)):
        yield
