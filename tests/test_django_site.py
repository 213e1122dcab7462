"""The engine under `gunicorn -k gevent`: whatever is done to requests, the pool is whole afterwards."""

from __future__ import annotations

import collections
import http.client
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import wait_until
from servers_kit import ended_afterwards, states
from test_cli import ENVIRONMENT, RunningServer

pytest.importorskip("django")
pytestmark = pytest.mark.only_hub("threads")

TESTS = Path(__file__).parent
POOL_SIZE = 10
STREAMED = 5_000


class Site(RunningServer):
    """The site under gunicorn, which complains of the requests that are killed."""

    def __init__(self, directory, environment, *options):
        command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "--bind", "127.0.0.1:0", "--graceful-timeout", "2"]
        command += [*options, "django_site.wsgi"]
        super().__init__(command, directory / "output", cwd=TESTS, env=environment | {"HOME": os.fspath(directory)})
        self.port = int(self._address()[1])

    def status_of(self, path):
        """The status of the response; what comes instead of one."""
        try:
            return self.get(path).status
        except (http.client.HTTPException, ConnectionError) as error:
            return type(error).__name__

    def leave(self, path):
        """A client that goes away when the first bytes of the body are there."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        status, _ = (response := connection.getresponse()).status, response.read(5000)
        response.close()
        connection.close()
        return f"left at {status}"

    def stop(self, signal_number=signal.SIGTERM):
        processes = self._processes()
        self.process.send_signal(signal_number)
        try:
            status = self.process.wait(20)
            wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), timeout=10)
        finally:
            self._kill(processes)
        return status


def environment_for(dsn, name, **more):
    return ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "PYTHONWARNINGS": "ignore",
        "DJANGO_SETTINGS_MODULE": "django_site.settings",
        "DJANGO_SITE_DSN": dsn,
        "DJANGO_SITE_NAME": name,
        **more,
    }


@pytest.fixture(scope="module")
def filled(dsn):
    """The site's tables, with rows to stream."""
    import greenpg

    command = [sys.executable, "django_site/manage.py", "migrate", "--run-syncdb", "--verbosity=0"]
    subprocess.run(command, cwd=TESTS, env=environment_for(dsn, "migrate"), check=True, timeout=60)
    with greenpg.ConnectionPool(dsn, min_size=1) as pool:
        pool.execute("DELETE FROM django_site_item")
        pool.execute(
            "INSERT INTO django_site_item (name, data, made) "
            "SELECT 'streamed', '{}', now() FROM generate_series(1, %s)",
            (STREAMED,),
        )
    return dsn


@pytest.fixture
def start(filled, tmp_path):
    def start_site(name, *options, **environment):
        sites.append(Site(tmp_path, environment_for(filled, name, **environment), *options))
        return sites[-1]

    with ended_afterwards() as sites:
        yield start_site


def rows(admin):
    with admin.cursor() as cursor:
        cursor.execute("SELECT name, count(*) FROM django_site_item GROUP BY name")
        return dict(cursor.fetchall())


# What each path is answered with. A killed greenlet's client gets nothing.
EXPECTED = {
    "/read": {200},
    "/orm": {200},
    "/in_atomic": {200},
    "/copy": {200},
    "/stream": {200},
    "/spawned": {200},
    "/left_open": {200},
    "/errors": {500},
    "/integrity_error": {500},
    "/timed_out": {503},
    "/killed": {"RemoteDisconnected", 500},
    "/killed_in_atomic": {"RemoteDisconnected", 500},
}


def test_400_requests_of_all_kinds(start, admin):
    name = "django-storm"
    site = start(name)
    paths = [*itertools.islice(itertools.cycle([*EXPECTED, "leave /stream"]), 400)]
    random.Random(18).shuffle(paths)
    sizes, answers, is_over = [], collections.defaultdict(collections.Counter), threading.Event()

    def request(path):
        is_left = path.startswith("leave ")
        answers[path][(site.leave if is_left else site.status_of)(path.removeprefix("leave "))] += 1

    def watch():
        while not is_over.wait(0.02):
            sizes.append(len(states(admin, name)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(200) as clients:
            list(clients.map(request, paths))
    finally:
        is_over.set()
        watcher.join()
    unexpected = {path: answers[path] for path in EXPECTED if answers[path].keys() - EXPECTED[path]}
    assert not unexpected, f"{unexpected}\n{site.output.read_text()[-3000:]}"
    assert 0 < max(sizes) <= POOL_SIZE, sizes
    wait_until(lambda: set(states(admin, name)) == {"idle"})
    stats = site.get_json("/pool")
    assert stats["requests_waiting"] == 0
    assert stats["pool_available"] == stats["pool_size"] <= POOL_SIZE
    assert rows(admin) == {"streamed": STREAMED}
    # All of them are there for the next ones.
    with ThreadPoolExecutor(POOL_SIZE) as clients:
        assert set(clients.map(site.status_of, ["/orm?seconds=0.5"] * POOL_SIZE)) == {200}
    assert site.get_json("/pool")["pool_available"] == POOL_SIZE
    complaints = [line for line in site.output.read_text().splitlines() if line.startswith("WARNING greenpg")]
    assert all("rolling back returned connection" in line for line in complaints), complaints
    assert len(complaints) == answers["/left_open"].total()
    assert site.stop() == 0


def test_nothing_runs_on_at_the_server_after_sigterm(start, admin):
    name = "django-sigterm"
    site = start(name)
    with ThreadPoolExecutor(15) as clients:
        slow = [clients.submit(site.status_of, "/in_atomic?seconds=60") for _ in range(15)]
        wait_until(lambda: states(admin, name).count("active") == POOL_SIZE)
        site.stop()
        assert not any(request.result() == 200 for request in slow)
    wait_until(lambda: states(admin, name) == [], timeout=25)
    assert rows(admin) == {"streamed": STREAMED}


def test_preloaded_and_patched_too_early(start, admin, tmp_path):
    """Django is imported in gunicorn's master, and monkey-patched in its worker."""
    name = "django-preload"
    site = start(name, "--preload", "--workers", "2")
    with ThreadPoolExecutor(40) as clients:
        assert set(clients.map(site.status_of, ["/orm", "/in_atomic"] * 40)) == {200}
    assert len(states(admin, name)) <= 2 * POOL_SIZE
    assert site.stop() == 0
