"""greenpg.integrations.celery in real workers, on a broker of files."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from kit import wait_until
from servers_kit import POOL_SIZE, environment_for, states
from test_cli import RunningServer

pytest.importorskip("celery")
pytestmark = pytest.mark.only_hub("threads")

POOLS = ["gevent", "eventlet"]


class Worker(RunningServer):
    def _address(self):
        return re.search(r"celery@\S+ ready", self.output.read_text())

    def _complaints(self):
        return None


class Celery:
    """A worker, and a way to send it tasks."""

    def __init__(self, dsn, name, directory, pool, *options):
        broker = directory / "broker"
        (broker / "control").mkdir(parents=True)
        self.environment = environment_for(dsn, name, directory, SERVERS_BROKER=str(broker))
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "--without-mingle"]
        command += ["--without-gossip", "-l", "info", *options]
        self.worker = Worker(command, directory / "output", env=self.environment, cwd=directory)

    def send(self, code):
        """Run the code in a process of its own, with `tasks`. Returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", f"import tasks; {code}"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def output(self):
        return self.worker.output.read_text()


@pytest.fixture
def done(admin):
    """The numbers of the tasks that have committed."""
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS celery_done; CREATE TABLE celery_done (number int)")
    yield lambda: sorted(number for (number,) in admin.execute("SELECT number FROM celery_done").fetchall())
    with admin.cursor() as cur:
        cur.execute("DROP TABLE celery_done")


@pytest.fixture
def start(dsn, tmp_path):
    started = []

    def start_worker(name, pool, *options):
        celery = Celery(dsn, name, tmp_path, pool, *options)
        started.append(celery)
        return celery

    yield start_worker
    for celery in started:
        if celery.worker.process.poll() is None:
            celery.worker.stop(signal.SIGQUIT)


@pytest.mark.parametrize("pool", POOLS)
def test_200_tasks_and_a_stop_under_load(start, done, admin, pool):
    name = f"celery-{pool}"
    celery = start(name, pool, "-c", "200")
    celery.send("[tasks.work.delay(number, 0.02) for number in range(200)]")
    sizes = []

    def all_done():
        sizes.append(len(states(admin, name)))
        return len(done()) == 200

    try:
        wait_until(all_done, 60)
    finally:
        print(len(done()), states(admin, name), celery.output[-3000:])
    assert done() == list(range(200))
    assert 0 < max(sizes) <= POOL_SIZE
    celery.send("[tasks.work.delay(1000 + n, 1.5) for n in range(5)]; [tasks.work.delay(2000 + n, 60) for n in range(5)]")
    wait_until(lambda: states(admin, name).count("active") == 10, 20)
    assert celery.worker.stop() == 0
    assert done()[200:] == [1000, 1001, 1002, 1003, 1004], celery.output[-3000:]
    assert len(re.findall(r"ERROR.*tasks\.work\[.*QueryCanceled", celery.output)) == 5, celery.output[-3000:]
    wait_until(lambda: states(admin, name) == [], 5)


def test_what_tasks_leave_behind(start, done, admin):
    name = "celery-limits"
    celery = start(name, "gevent", "-c", "20")
    celery.send("[(tasks.leave_open.delay(n), tasks.fail.delay(100 + n)) for n in range(20)]")
    celery.send("tasks.stopped.delay(500); tasks.stopped_softly.delay(501)")
    wait_until(lambda: done() == [*range(20), 501], 30)
    wait_until(lambda: "TimeLimitExceeded(1" in celery.output.replace("SoftTimeLimitExceeded", ""), 10)
    wait_until(lambda: set(states(admin, name)) == {"idle"}, 5)
    task = celery.send("print(tasks.work.delay(600, 60).id)")
    wait_until(lambda: states(admin, name).count("active") == 1, 10)
    celery.send(f"tasks.app.control.revoke({task!r}, terminate=True)")
    wait_until(lambda: set(states(admin, name)) == {"idle"}, 10)
    # The connections were kept, and all of them are there.
    celery.send("[tasks.work.delay(700 + n, 0.5) for n in range(10)]")
    wait_until(lambda: done()[21:] == [*range(700, 710)], 20)
    assert celery.worker.stop() == 0
    assert states(admin, name) == []
    assert not re.search("lost|leak", celery.output), celery.output[-3000:]


def test_processes(start, done, admin):
    name = "celery-prefork"
    celery = start(name, "prefork", "-c", "2")
    celery.send("[tasks.work.delay(n) for n in range(20)]; tasks.stopped_softly.delay(501)")
    wait_until(lambda: done() == [*range(20), 501], 30)
    celery.send("[tasks.work.delay(n) for n in range(600, 610)]")
    wait_until(lambda: done()[21:] == [*range(600, 610)], 20)
    assert celery.worker.stop() == 0
    wait_until(lambda: states(admin, name) == [], 5)
