"""Celery 5.5: green `-P gevent` and `-P eventlet` workers, and a connection, or a transaction, for each task.

    app = Celery("tasks", broker=...)
    db = greenpg.integrations.celery.setup(app, "postgresql://app@db/app", max_size=10)

    @app.task
    def transfer(amount):
        with db.cursor() as cur:
            cur.execute(...)

`celery -A tasks worker -P gevent -c 200`. Time limits, revoking and a worker's shutdown cancel a task's statement at
the server, and keep its connection.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, overload

import celery
from celery import concurrency, signals
from celery.exceptions import Reject, SoftTimeLimitExceeded, TaskPredicate, TimeLimitExceeded

import greenpg
from greenpg import hubs
from greenpg.hubs import hub

from .unit import Keeps, Unit, checked_keeps, new_pool

__all__ = ["TaskDatabase", "setup"]

#: Seconds that the end of a worker waits for servers that don't answer.
_AT_THE_END = 5.0


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
                "no task of this Celery app runs here: use `with db.cursor()` or `with db.transaction()`. (A Task "
                "class of your own has to derive from app.Task, after greenpg's setup())"
            )
        return unit.connection

    def cursor(self, cursor_factory: Callable[..., Any] | None = None) -> AbstractContextManager[Any]:
        """`with db.cursor() as cur:` is a transaction of its own: commit at its end, or rollback if it raises. Within
        `db.transaction()`, or with a transaction for each task, a part of that one. Suspends.
        """
        return self._unit().cursor(cursor_factory)

    def transaction(self, **options: Any) -> AbstractContextManager[greenpg.Connection]:
        """`with db.transaction() as conn:`, with `conn.transaction()`'s options; within another one, a savepoint.

        Suspends.
        """
        return self._unit().transaction(**options)

    def _unit(self) -> Unit:
        return self._units.get(_current()) or Unit(self.pool, "connection")

    @contextmanager
    def task(self) -> Iterator[None]:
        """Around a task: what it keeps ends with it. A task that another one calls is a part of that one.

        Leaving it suspends.
        """
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
    `per_task="connection"` (default) `db.connection` is the task's until it ends, and what has not been committed is
    rolled back; with "transaction" all that a task does is one transaction, which is committed when it returns (an
    error of the commit is the task's) and rolled back when it raises. The pool opens itself at the first use, in the
    worker. Without, it's for tasks that get their connections elsewhere: their own pools, SQLAlchemy, Django.

    At a warm shutdown (SIGTERM) Celery waits for its tasks for as long as they take. `shutdown_after` seconds later
    `greenpg.shutdown()` cancels what they run. Their task fails then, or goes back to the queue if it has `acks_late`.
    Default: None, never. Processes (`-P prefork`) know nothing of it.

    Limits that Celery leaves out are kept by greenpg: soft_time_limit with gevent, with eventlet time_limit as well.

    Raises TypeError for a pool's options without `conninfo`, ValueError for an unknown `per_task`, a negative
    `shutdown_after`, and what `ConnectionPool()` raises.
    """
    keeps = checked_keeps(per_task, "per_task")
    if shutdown_after is not None and not shutdown_after >= 0:
        raise ValueError(f"shutdown_after can't be negative: {shutdown_after!r}")
    if conninfo is None and (options or keeps == "transaction"):
        names = ", ".join(options) or "per_task"
        raise TypeError(f"{names}: for the tasks' database, which needs conninfo as well")
    if not greenpg.is_patched() and hubs.monkey_patched_hub() is not None:
        greenpg.patch()
    database = None if conninfo is None else TaskDatabase(new_pool(conninfo, **options), keeps)
    worker = _Worker(shutdown_after)
    _wrap_tasks(app, database, worker)
    signals.worker_init.connect(worker.begin, weak=False)
    signals.worker_shutting_down.connect(worker.begin_to_end, weak=False)
    signals.worker_shutdown.connect(worker.end, weak=False)
    signals.worker_process_shutdown.connect(worker.end, weak=False)
    return database


class _Worker:
    """A worker's start and its end, and its limits."""

    def __init__(self, shutdown_after: float | None) -> None:
        self._shutdown_after = shutdown_after
        #: What its tasks run has been cancelled, because it ends.
        self.is_cut = False
        #: Of the command line, in seconds.
        self.time_limit: float | None = None
        self.soft_time_limit: float | None = None

    def begin(self, sender: Any, **_: Any) -> None:
        self.time_limit, self.soft_time_limit = sender.time_limit, sender.soft_time_limit
        if hubs.monkey_patched_hub() is not None:
            return
        if concurrency.get_implementation(sender.pool_cls).is_green:
            warnings.warn(
                "greenpg: this worker's pool is for green threads, but nothing is monkey-patched. Celery does that for "
                "-P gevent and -P eventlet on its command line only, not for the setting worker_pool",
                RuntimeWarning,
                stacklevel=2,
            )
        if not greenpg.is_patched():
            greenpg.patch("threads")

    def begin_to_end(self, **_: Any) -> None:
        # Called in a signal handler, which must not be suspended.
        if self._shutdown_after is not None:
            hub().spawn(self._cut, self._shutdown_after)

    def _cut(self, seconds: float) -> None:
        hub().sleep(seconds)
        self.is_cut = True
        greenpg.shutdown(_AT_THE_END)

    def end(self, **_: Any) -> None:
        greenpg.shutdown(_AT_THE_END)


def _wrap_tasks(app: celery.Celery, database: TaskDatabase | None, worker: _Worker) -> None:
    base: Any = app.Task

    class Task(base):  # type: ignore[misc]
        """The app's Task, whose connection is returned when it ends."""

        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                with _limits(self, worker), nullcontext() if database is None else database.task():
                    return super().__call__(*args, **kwargs)
            except TaskPredicate:  # a retry is in the queue already
                raise
            except Exception as error:
                if worker.is_cut and self.acks_late and not self.request.called_directly:
                    raise Reject(error, requeue=True) from error
                raise

    app.Task = Task


@contextmanager
def _limits(task: Any, worker: _Worker) -> Iterator[None]:
    """Keep the limits that Celery doesn't."""
    name = hub().name
    if name == "threads" or task.request.called_directly:
        yield
        return
    hard, soft = task.request.timelimit or (None, None)
    soft = soft or task.soft_time_limit or worker.soft_time_limit
    if name == "gevent":
        from gevent import Timeout

        with Timeout(soft or None, SoftTimeLimitExceeded(soft)):
            yield
        return
    import eventlet

    hard = hard or task.time_limit or worker.time_limit
    at_last = eventlet.Timeout(hard or None)
    try:
        with eventlet.Timeout(soft or None, SoftTimeLimitExceeded(soft)):
            yield
    except eventlet.Timeout as timeout:
        if timeout is not at_last:
            raise
        raise TimeLimitExceeded(hard) from None
    finally:
        at_last.cancel()
