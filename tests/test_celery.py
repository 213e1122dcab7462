"""greenpg.integrations.celery in real workers, which run examples/with_celery.py on a broker of files."""

from __future__ import annotations

import re
import signal
import sys

import pytest
from kit import wait_until
from servers_kit import POOL_SIZE, admin_of, environment_for, side_by_side, states
from test_cli import RunningServer

from greenpg.integrations import celery as integration

celery = pytest.importorskip("celery")
pytestmark = pytest.mark.only_hub("threads")


class Worker(RunningServer):
    """A worker, and a way to send it tasks."""

    def __init__(self, dsn, directory, pool, *options):
        self._name = f"celery-{pool}"
        directory = directory / pool
        self._inbox, self._outbox = directory / "broker", directory / "outbox"
        (self._inbox / "control").mkdir(parents=True)
        self._outbox.mkdir()
        self._sender = celery.Celery(broker="filesystem://", set_as_current=False)
        self._sender.conf.broker_transport_options = {
            "data_folder_in": str(self._outbox),
            "data_folder_out": str(self._outbox),
            "control_folder": str(self._inbox / "control"),
        }
        environment = environment_for(
            dsn,
            self._name,
            directory,
            BROKER="filesystem://",
            BROKER_FOLDER=str(self._inbox),
            TMPDIR=str(directory),
            SHUTDOWN_AFTER="1.5",
        )
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "--without-mingle"]
        command += ["--without-gossip", "-l", "info", *options]
        super().__init__(command, directory / "log", env=environment, cwd=directory)

    def _address(self):
        return re.search(r"celery@\S+ ready", self.log)

    def _complaints(self):
        return None

    @property
    def log(self):
        return self.output.read_text()

    def send(self, *tasks):
        """Tasks as (name, argument, ...), all at once. Returns the last one's id."""
        sent = [self._sender.send_task(name, arguments) for name, *arguments in tasks]
        self._deliver()
        return sent[-1].id

    def revoke(self, task):
        self._sender.control.revoke(task, terminate=True)
        self._deliver()

    def _deliver(self):
        # kombu's reader takes messages that its writer has only begun, and loses them: so they come by a rename.
        for message in sorted(self._outbox.glob("*.msg")):
            message.rename(self._inbox / message.name)

    def queued(self):
        """How many tasks are in the queue."""
        return len(list(self._inbox.glob("*.celery.msg")))

    def done(self, admin):
        """The numbers of its tasks that have committed."""
        rows = admin.execute("SELECT number FROM celery_done WHERE worker = %s ORDER BY 1", (self._name,))
        return [number for (number,) in rows.fetchall()]

    def states(self, admin):
        return states(admin, self._name)

    def pids(self, admin):
        rows = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (self._name,))
        return {pid for (pid,) in rows.fetchall()}


@pytest.fixture
def table(admin):
    admin.execute("DROP TABLE IF EXISTS celery_done")
    admin.execute("CREATE TABLE celery_done (number int, worker text DEFAULT current_setting('application_name'))")
    yield
    admin.execute("DROP TABLE celery_done")


@pytest.fixture
def start(dsn, table, tmp_path):
    started = []

    def start_worker(pool, *options):
        worker = Worker(dsn, tmp_path, pool, *options)
        started.append(worker)
        return worker

    yield start_worker
    for worker in started:
        if worker.process.poll() is None:
            worker.stop(signal.SIGQUIT)


def test_workers(start, dsn):
    def check(pool):
        with admin_of(dsn) as admin:
            if pool == "prefork":
                check_processes(start(pool, "-c", "2"), admin)
                return
            worker = start(pool, "-c", "200")
            assert worker.states(admin) == []  # the pool is opened by the first task
            worker.send(("tasks.at_import",))
            wait_until(lambda: worker.done(admin) == [1])
            check_storm(worker, admin)
            check_ends(worker, admin)
            check_stop(worker, admin)

    side_by_side(check, ["gevent", "eventlet", "prefork"])


def check_storm(worker, admin):
    """200 tasks at once, by at most 10 connections."""
    before, sizes = worker.done(admin), []
    worker.send(*[("with_celery.work", number, 0.02) for number in range(10, 210)])

    def are_all_done():
        sizes.append(len(worker.states(admin)))
        return worker.done(admin) == [*before, *range(10, 210)]

    wait_until(are_all_done, 20)
    assert 0 < max(sizes) <= POOL_SIZE


def check_ends(worker, admin):
    """Whatever becomes of a task: its connection is kept, and idle again."""
    before, connections = worker.done(admin), worker.pids(admin)
    worker.send(*[(f"tasks.{what}", number) for number in range(1000, 1015) for what in ("leave_open", "fail")])
    worker.send(("tasks.stopped", 1500), ("tasks.stopped_softly", 1501))
    wait_until(lambda: worker.done(admin) == [*before, *range(1000, 1015), 1501])
    # Celery's own words where it keeps the limit, and its exception where greenpg does.
    wait_until(lambda: re.search(r"Hard time limit \(0\.3s\)|(?<!Soft)TimeLimitExceeded\(0\.3", worker.log))
    wait_until(lambda: "SoftTimeLimitExceeded(0.3" in worker.log)
    wait_until(lambda: set(worker.states(admin)) == {"idle"})
    task = worker.send(("tasks.work_once", 1600, 60))
    wait_until(lambda: "active" in worker.states(admin))
    worker.revoke(task)
    wait_until(lambda: set(worker.states(admin)) == {"idle"})
    worker.send(*[("with_celery.work", number, 0.2) for number in range(1700, 1710)])
    wait_until(lambda: worker.done(admin) == [*before, *range(1000, 1015), 1501, *range(1700, 1710)])
    assert worker.pids(admin) == connections
    assert not re.search("lost|leak", worker.log), worker.log[-3000:]


def check_stop(worker, admin):
    """SIGTERM while 4 tasks take 0.7 s, and 6 a minute, of which 2 may be run again."""
    before = worker.done(admin)
    quick = [("with_celery.work", number, 0.7) for number in range(2000, 2004)]
    slow = [("tasks.work_once", number, 60) for number in range(3000, 3004)]
    again = [("with_celery.work", number, 60) for number in range(4000, 4002)]
    worker.send(*quick, *slow, *again)
    wait_until(lambda: worker.states(admin).count("active") == POOL_SIZE)
    assert worker.stop() == 0
    assert worker.done(admin) == [*before, *range(2000, 2004)], worker.log[-3000:]
    assert len(re.findall(r"ERROR.*tasks\.work_once\[.*QueryCanceled", worker.log)) == 4, worker.log[-3000:]
    assert worker.queued() == 2
    assert worker.states(admin) == []


def check_processes(worker, admin):
    worker.send(*[("with_celery.work", number) for number in range(20)], ("tasks.stopped_softly", 501))
    wait_until(lambda: worker.done(admin) == [*range(20), 501])
    assert worker.stop() == 0
    wait_until(lambda: worker.states(admin) == [], 5)


# -- without a worker


@pytest.fixture
def app():
    return celery.Celery(set_as_current=False)


def test_bad_options(app, dsn):
    with pytest.raises(TypeError, match="max_size: .*conninfo"):
        integration.setup(app, max_size=3)
    with pytest.raises(TypeError, match="per_task: .*conninfo"):
        integration.setup(app, per_task="transaction")
    with pytest.raises(ValueError, match="per_task"):
        integration.setup(app, dsn, per_task="nothing")
    with pytest.raises(ValueError, match="negative"):
        integration.setup(app, dsn, shutdown_after=-1)


def test_without_a_database(app):
    assert integration.setup(app) is None

    @app.task
    def answer():
        return 42

    assert answer() == answer.apply().get() == 42


def test_a_task_that_is_called(app, dsn):
    """Its connection is the task's there, too, and outside of tasks there is none."""
    db = integration.setup(app, dsn, max_size=1, timeout=5)

    @app.task
    def outer():
        conn = db.connection
        return conn is inner() and conn.execute("SELECT 42").fetchone()

    @app.task
    def inner():
        return db.connection

    try:
        for _ in range(2):
            assert outer() == (42,)
        with pytest.raises(RuntimeError, match="no task"):
            db.connection  # noqa: B018
        with db.transaction() as conn, pytest.raises(RuntimeError, match="no task"):
            assert conn.execute("SELECT 1").fetchone() == (1,)
            db.connection  # noqa: B018
        assert "0 lent" in repr(db.pool)
    finally:
        db.pool.close()
