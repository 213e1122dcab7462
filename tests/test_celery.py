"""greenpg.integrations.celery in real workers, on a broker of files."""

from __future__ import annotations

import re
import signal
import sys

import pytest
from kit import wait_until
from servers_kit import POOL_SIZE, environment_for, states
from test_cli import RunningServer

celery = pytest.importorskip("celery")
pytestmark = pytest.mark.only_hub("threads")


class Worker(RunningServer):
    """A worker, and a way to send it tasks."""

    def __init__(self, dsn, name, directory, pool, *options):
        self._inbox, self._outbox = directory / "broker", directory / "outbox"
        (self._inbox / "control").mkdir(parents=True)
        self._outbox.mkdir()
        self._sender = celery.Celery(broker="filesystem://", set_as_current=False)
        self._sender.conf.broker_transport_options = {
            "data_folder_in": str(self._outbox),
            "data_folder_out": str(self._outbox),
            "control_folder": str(self._inbox / "control"),
        }
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "--without-mingle"]
        super().__init__(
            [*command, "--without-gossip", "-l", "info", *options],
            directory / "log",
            env=environment_for(dsn, name, directory, SERVERS_BROKER=str(self._inbox), TMPDIR=str(directory)),
            cwd=directory,
        )

    def _address(self):
        return re.search(r"celery@\S+ ready", self.log)

    def _complaints(self):
        return None

    @property
    def log(self):
        return self.output.read_text()

    def send(self, *tasks):
        """Tasks as (name, argument, ...), all at once. Returns the last one's id."""
        sent = [self._sender.send_task(f"tasks.{name}", arguments) for name, *arguments in tasks]
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


@pytest.fixture
def done(admin):
    """The numbers of the tasks that have committed."""

    def numbers():
        rows = admin.execute("SELECT number FROM celery_done").fetchall()
        return sorted(number for (number,) in rows)

    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS celery_done; CREATE TABLE celery_done (number int)")
    yield numbers
    with admin.cursor() as cur:
        cur.execute("DROP TABLE celery_done")


@pytest.fixture
def start(dsn, tmp_path):
    started = []

    def start_worker(name, pool, *options):
        worker = Worker(dsn, name, tmp_path, pool, *options)
        started.append(worker)
        return worker

    yield start_worker
    for worker in started:
        if worker.process.poll() is None:
            worker.stop(signal.SIGQUIT)


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_200_tasks_and_a_stop_under_load(start, done, admin, pool):
    name = f"celery-{pool}"
    worker = start(name, pool, "-c", "200")
    assert states(admin, name) == []  # the pool is opened by the first task
    worker.send(*[("work", number, 0.02) for number in range(200)])
    sizes = []

    def all_done():
        sizes.append(len(states(admin, name)))
        return len(done()) == 200

    wait_until(all_done, 20)
    assert done() == list(range(200))
    assert 0 < max(sizes) <= POOL_SIZE
    quick = [("work", 1000 + number, 0.7) for number in range(4)]
    slow = [("work", 2000 + number, 60) for number in range(4)] + [("work_late", 3000 + number, 60) for number in range(2)]
    worker.send(*quick, *slow)
    wait_until(lambda: states(admin, name).count("active") == POOL_SIZE)
    assert worker.stop() == 0
    assert done()[200:] == [1000, 1001, 1002, 1003], worker.log[-3000:]
    assert len(re.findall(r"ERROR.*tasks\.work\[.*QueryCanceled", worker.log)) == 4, worker.log[-3000:]
    assert worker.queued() == 2  # work_late is for the next worker
    assert states(admin, name) == []


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_what_tasks_leave_behind(start, done, admin, pool):
    name = f"celery-ends-{pool}"
    worker = start(name, pool, "-c", "20")
    worker.send(("at_import",))
    wait_until(lambda: done() == [1], 10)
    worker.send(*[(what, number) for number in range(100, 115) for what in ("leave_open", "fail")])
    worker.send(("stopped", 500), ("stopped_softly", 501))
    wait_until(lambda: done() == [1, *range(100, 115), 501], 10)
    # Celery's own words where it keeps the limit, and its exception where greenpg does.
    wait_until(lambda: re.search(r"Hard time limit \(0\.3s\)|(?<!Soft)TimeLimitExceeded\(0\.3", worker.log), 10)
    wait_until(lambda: "SoftTimeLimitExceeded(0.3" in worker.log, 10)
    wait_until(lambda: set(states(admin, name)) == {"idle"}, 5)
    task = worker.send(("work", 600, 60))
    wait_until(lambda: states(admin, name).count("active") == 1, 10)
    worker.revoke(task)
    wait_until(lambda: set(states(admin, name)) == {"idle"}, 10)
    # The connections were kept, and all of them are there.
    pids = server_pids(admin, name)
    worker.send(*[("work", 700 + number, 0.3) for number in range(10)])
    wait_until(lambda: done()[17:] == [*range(700, 710)], 10)
    assert pids <= server_pids(admin, name)
    assert worker.stop() == 0
    assert states(admin, name) == []
    assert not re.search("lost|leak", worker.log), worker.log[-3000:]


def server_pids(admin, name):
    rows = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchall()
    return {pid for (pid,) in rows}


def test_processes(start, done, admin):
    import time; T=time.monotonic(); P=lambda w: print(w, time.monotonic()-T)
    name = "celery-prefork"
    worker = start(name, "prefork", "-c", "2")
    worker.send(*[("work", number) for number in range(20)], ("stopped_softly", 501))
    P("start")
    wait_until(lambda: done() == [*range(20), 501], 10)
    P("1")
    worker.send(*[("work", number) for number in range(600, 610)])
    wait_until(lambda: done()[21:] == [*range(600, 610)], 10)
    P("2")
    assert worker.stop() == 0
    P("stop"); print(worker.log)
    wait_until(lambda: states(admin, name) == [], 5)
