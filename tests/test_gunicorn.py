"""greenpg.integrations.gunicorn under the real gunicorn."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit import wait_until
from servers_kit import (
    admin_of,
    answer,
    ended_afterwards,
    environment_for,
    side_by_side,
    states,
    stop_under_load,
    storm,
)
from test_cli import ROOT, RunningServer

pytestmark = pytest.mark.only_hub("threads")

BY_CLASS = ["-k", "greenpg.integrations.gunicorn.GreenpgWorker"]
BY_CONFIG = ["-c", "python:greenpg.integrations.gunicorn"]


class Gunicorn(RunningServer):
    """gunicorn, which may complain of the requests that are cut short."""

    def _complaints(self):
        return None


@pytest.fixture
def start(dsn, tmp_path):
    def start_gunicorn(name, *options, app="app", **environment):
        command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *options, app]
        servers.append(Gunicorn(command, tmp_path / name, env=environment_for(dsn, name, tmp_path, **environment)))
        return servers[-1]

    with ended_afterwards() as servers:
        yield start_gunicorn


def has_eventlet():
    return importlib.util.find_spec("gunicorn.workers.geventlet") is not None


@pytest.mark.skipif(not has_eventlet(), reason="this gunicorn has no worker for eventlet")
@pytest.mark.parametrize(("options", "patched"), [([], "True"), (["--preload"], "False")], ids=["", "preload"])
def test_eventlet(start, dsn, options, patched):
    options = ["-k", "greenpg.integrations.gunicorn.GreenpgEventletWorker", *options]
    check_storm_and_stop(start, dsn, options, patched)


def test_200_requests_and_a_stop_under_load(start, dsn):
    side_by_side(lambda options: check_storm_and_stop(start, dsn, options), [BY_CLASS, [*BY_CONFIG, "--preload"]])


def check_storm_and_stop(start, dsn, options, patched="True"):
    name = f"gunicorn{'-'.join(options)}"[:63]
    server = start(name, *options, "--graceful-timeout", "3")
    assert answer(server, "/patched") == (200, f"{patched} True".encode())
    with admin_of(dsn) as admin:
        storm(server, admin, name)
        late = stop_under_load(server, admin, name)
    # They were told in time, by the worker.
    assert {status for status, _ in late} == {500}, server.output.read_text()[-3000:]
    assert "QueryCanceled" in server.output.read_text()
    assert "SIGKILL" not in server.output.read_text()


def test_autopatch(start):
    """gunicorn's own worker, and not a line of greenpg's."""
    server = start("gunicorn-auto", "-k", "gevent", GREENPG_AUTOPATCH="1")
    assert answer(server, "/patched") == (200, b"True True")


def test_flask(start, dsn, admin):
    """examples/with_flask.py: a transaction for each request, of which those that are cut leave nothing."""
    name = "gunicorn-flask"

    create = [sys.executable, "-m", "flask", "--app", "with_flask", "create-table"]
    subprocess.run(create, env=environment_for(dsn, name, ROOT), cwd=ROOT / "examples", check=True, timeout=60)
    try:
        server = start(name, *BY_CLASS, "--graceful-timeout", "3", app="with_flask:app")
        storm(server, admin, name, body=b"welcome")
        assert answer(server, "/refused")[0] == 403
        assert server.get_json("/count") == {"visitors": 200}
        stop_under_load(server, admin, name, "/?seconds={}", body=b"welcome")
        assert admin.execute("SELECT count(*) FROM flask_visitor").fetchone() == (205,)
    finally:
        admin.execute("DROP TABLE flask_visitor")


def test_a_quick_stop_and_a_short_grace(start, admin):
    name = "gunicorn-short"
    server = start(name, *BY_CLASS, "--graceful-timeout", "1")
    with ThreadPoolExecutor(5) as clients:
        slow = [clients.submit(answer, server, "/?60") for _ in range(5)]
        wait_until(lambda: states(admin, name).count("active") == 5)
        assert server.stop() == 0
        assert all(request.result()[0] != 200 for request in slow)
    assert "SIGKILL" not in server.output.read_text()
    wait_until(lambda: states(admin, name) == [], 5)


def test_an_idle_worker_ends_at_once(start, admin):
    name = "gunicorn-idle"
    server = start(name, *BY_CLASS)
    assert answer(server, "/") == (200, b"42")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 15  # not graceful_timeout, which is 30
    assert states(admin, name) == []


def test_a_hung_worker_says_where_its_greenlets_are(start, admin):
    name = "gunicorn-hung"
    server = start(name, *BY_CLASS, "--timeout", "2", "--graceful-timeout", "2")
    with ThreadPoolExecutor(2) as clients:
        slow = clients.submit(answer, server, "/?60")
        wait_until(lambda: states(admin, name).count("active") == 1)
        clients.submit(answer, server, "/hang")
        wait_until(lambda: "has hung" in server.output.read_text(), 20)
        wait_until(lambda: states(admin, name) == [], 10)
        assert slow.result()[0] != 200
    # The master starts another one.
    wait_until(lambda: answer(server, "/") == (200, b"42"), 20)
    output = server.output.read_text()
    assert re.search(r'app\.py", line \d+, in application\s+while True', output)  # the one that hangs
    assert "pool.fetchval" in output  # the one that waits
    server.stop()
