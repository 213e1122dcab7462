"""psycopg2's own test suite, of the installed version, on greenpg. A program of its own: `make psycopg2-suite`.

The tests that psycopg2 skips in green mode are put back. Each file of the suite runs in a process of its own, first
with psycopg2 alone (blocking), then with greenpg. A test that hangs for `--timeout` seconds counts as failed, and the
file goes on behind it. While a test runs on greenpg, a heartbeat looks whether the hub is blocked.

    python tests/psycopg2_suite.py [--hub gevent|eventlet|threads] [--only test_copy ...] [--delay 30]

Needs the network once, for psycopg2's sdist. It uses Debian's PostgreSQL with its contrib modules where it is
installed, otherwise the embedded one, on which psycopg2 skips or fails the tests of hstore and test_decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("PSYCOPG2_SUITE_CACHE", ROOT / ".venv" / "psycopg2-suite"))
SETTINGS = {"fsync": "off", "wal_level": "logical", "max_prepared_transactions": "20", "max_connections": "100"}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


# -- the suite


def unpacked_suite() -> Path:
    """The folder with the suite's package `tests`, downloaded if need be."""
    import psycopg2

    version = psycopg2.__version__.split()[0]
    target = CACHE / f"psycopg2-{version}"
    if not (target / "tests").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        archive = CACHE / f"psycopg2-{version}.tar.gz"
        if not archive.exists():
            download(version)
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if "/tests/" in member.name and ".." not in member.name]
            tar.extractall(CACHE, members)
    return target


def download(version: str) -> None:
    """pip asks setup.py for metadata even to download, and that asks pg_config, which needn't be installed."""
    with tempfile.TemporaryDirectory() as stub_directory:
        stub = Path(stub_directory, "pg_config")
        stub.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "PostgreSQL 17.0" || echo /nonexistent\n')
        stub.chmod(0o755)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "psycopg2"]
        command += ["--no-build-isolation", "--dest", str(CACHE), f"psycopg2=={version}"]
        path = f"{os.environ['PATH']}:{stub_directory}"
        subprocess.run(command, check=True, env=os.environ | {"PATH": path}, timeout=600)


# -- the server


@contextlib.contextmanager
def debian_server(bin_directory: str):
    """Debian's PostgreSQL in a throw-away directory; as nobody if we are root, which PostgreSQL refuses to run as."""
    directory = tempfile.mkdtemp(prefix="greenpg-suite-", dir="/tmp")
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    if as_nobody:
        shutil.chown(directory, "nobody")
    environment = {"PATH": f"{bin_directory}:/usr/bin:/bin", "LC_ALL": "C", "HOME": directory}

    def run(*command: str) -> None:
        subprocess.run(
            [*as_nobody, *command], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=120, cwd=directory
        )

    data = f"{directory}/data"
    options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    try:
        run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = f"-k {directory} -h 127.0.0.1 -p {port} {options}"
        run("pg_ctl", "-w", "-D", data, "-l", f"{directory}/log", "-o", options, "start")
        try:
            yield {"host": directory, "port": str(port), "user": "postgres"}
        finally:
            run("pg_ctl", "-w", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def embedded_server():
    from psycopg2.extensions import parse_dsn

    from greenpg import embedded

    with embedded.server(settings=SETTINGS, port=0) as dsn:
        yield parse_dsn(dsn)


@contextlib.contextmanager
def slow_network(server: dict[str, str], delay: float):
    """The server through a proxy that holds everything back: what blocks the hub shows then."""
    if not delay:
        yield server
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from proxy import Proxy

    with Proxy("127.0.0.1", server["port"], delay) as proxy:
        yield server | {"host": "127.0.0.1", "port": str(proxy.port)}


def choose_server():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    with_contrib = [path for path in found if Path(path).parents[1].joinpath("lib", "hstore.so").exists()]
    if with_contrib:
        directory = str(Path(with_contrib[-1]).parent)
        return f"PostgreSQL with contrib modules, {directory}", debian_server(directory)
    return "the embedded PostgreSQL, without contrib modules", embedded_server()


def create_database(server: dict[str, str]) -> None:
    import psycopg2

    where = {key: server[key] for key in ("host", "port", "user") if key in server}
    conn = psycopg2.connect(**where, dbname="postgres")
    conn.autocommit = True
    with conn.cursor() as cur:
        cur.execute("CREATE DATABASE psycopg2_test")
    conn.close()
    conn = psycopg2.connect(**where, dbname="psycopg2_test")
    conn.autocommit = True
    with conn.cursor() as cur, contextlib.suppress(psycopg2.Error):
        cur.execute("CREATE EXTENSION hstore")
    conn.close()


# -- one file, in a process of its own


class Outcomes(unittest.TestResult):
    """Notes each test's outcome, and those during which the hub was blocked."""

    def __init__(self, is_guarded: bool, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.stalls: dict[str, float] = {}
        self._is_guarded = is_guarded
        self._guard = None

    def startTest(self, test):
        super().startTest(test)
        faulthandler.dump_traceback_later(self._timeout, exit=True)
        self.outcomes[test.id()] = PASSED
        print(json.dumps([test.id(), FAILED, "it hangs", 0]), flush=True)  # until stopTest() says otherwise
        if self._is_guarded:
            from kit import Guard

            self._guard = Guard()
            self._guard.__enter__()

    def stopTest(self, test):
        if self._guard is not None:
            self._guard.__exit__()
            if self._guard.stalls:
                self.stalls[test.id()] = max(self._guard.stalls)
        outcome = self.outcomes[test.id()]
        print(
            json.dumps([test.id(), outcome, self.reasons.get(test.id(), ""), self.stalls.get(test.id(), 0)]), flush=True
        )
        super().stopTest(test)

    def _note(self, test, outcome, reason):
        self.outcomes[test.id()] = outcome
        self.reasons[test.id()] = reason

    def addError(self, test, err):
        super().addError(test, err)
        self._note(test, FAILED, self.errors[-1][1])

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._note(test, FAILED, self.failures[-1][1])

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._note(test, SKIPPED, reason)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, FAILED, str(err[1]))


def run_child(name: str, mode: str, timeout: float, done_before: set[str]) -> None:
    if mode == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif mode == "eventlet":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import eventlet

            eventlet.monkey_patch()
    if mode != "blocking":
        import greenpg

        greenpg.patch(mode)
        if name == "test_green":  # it sets callbacks of its own, which greenpg would not let stand
            from psycopg2 import _psycopg, extensions

            from greenpg.connection.connect import connecting

            connecting.settle = lambda: None
            extensions.set_wait_callback = _psycopg.set_wait_callback
    is_guarded = mode in ("gevent", "eventlet")
    if is_guarded:
        import kit  # noqa: F401 - before psycopg2's suite makes errors of warnings
    # PSYCOPG2_TEST_GREEN is not set: so psycopg2 doesn't know that it is green, and skips nothing for it.
    module = __import__(f"tests.{name}", fromlist=["test_suite"])
    left = unittest.TestSuite(test for test in flattened(module.test_suite()) if test.id() not in done_before)
    left.run(Outcomes(is_guarded, timeout))
    sys.stdout.flush()
    os._exit(0)  # whatever threads the tests have left behind


def flattened(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flattened(test)
        else:
            yield test


def run_file(name: str, mode: str, suite: Path, server: dict[str, str], timeout: float) -> dict:
    """What became of each test: {id: (outcome, reason, seconds that the hub was blocked)}."""
    environment = os.environ | {
        "PSYCOPG2_TESTDB": "psycopg2_test",
        "PSYCOPG2_TESTDB_HOST": server["host"],
        "PSYCOPG2_TESTDB_PORT": server["port"],
        "PSYCOPG2_TESTDB_USER": server["user"],
        "PSYCOPG2_TEST_REPL_DSN": "",
        "PYTHONPATH": os.pathsep.join([str(suite), str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, __file__, "--child", name, "--hub", mode, "--timeout", str(timeout), "--done"]
    tests: dict[str, tuple[str, str, float]] = {}
    while True:
        before = len(tests)
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
            child = subprocess.Popen([*command, *tests], env=environment, stdout=output, stderr=log, cwd=suite)
            try:
                status = child.wait(timeout=20 * timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
            output.seek(0)
            for line in output:
                if line.startswith('["tests.'):
                    test, *outcome = json.loads(line)
                    tests[test] = tuple(outcome)
            if status == 0:
                return tests
            log.seek(0)
            print(f"{name} ({mode}): a process ended with status {status}:\n{log.read()[-2000:]}", flush=True)
        if len(tests) == before:
            return tests


# -- the report


def passing(tests: dict) -> set[str]:
    return {test for test, (outcome, _, _) in tests.items() if outcome == PASSED}


def compare(names: list[str], hub: str, suite: Path, server: dict[str, str], timeout: float) -> bool:
    print(f"{'file':26} {'tests':>6} {'blocking':>9} {'greenpg':>9}   passes of those that pass blocking")
    totals = [0, 0, 0, 0]
    failures, stalls = [], {}
    for name in names:
        blocking = run_file(name, "blocking", suite, server, timeout)
        green = run_file(name, hub, suite, server, timeout)
        wanted, kept = passing(blocking), passing(blocking) & passing(green)
        failures += [(test, green.get(test, (FAILED, "did not run", 0))[1]) for test in sorted(wanted - kept)]
        stalls |= {test: seconds for test, (_, _, seconds) in green.items() if seconds}
        numbers = [len(blocking), len(wanted), len(passing(green)), len(kept)]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        print(f"{name:26} {numbers[0]:6} {numbers[1]:9} {numbers[2]:9}   {numbers[3]} of {numbers[1]}", flush=True)
    print(f"{'all':26} {totals[0]:6} {totals[1]:9} {totals[2]:9}   {totals[3]} of {totals[1]}")
    for test, reason in failures:
        print(f"\nFAILED on {hub} only: {test}\n{reason}")
    for test, seconds in stalls.items():
        print(f"BLOCKED the hub for {seconds * 1000:.0f} ms: {test}")
    if not stalls and hub != "threads":
        print("no test blocked the hub for more than 50 ms")
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(description="psycopg2's own test suite on greenpg")
    parser.add_argument("--hub", default="gevent", choices=("gevent", "eventlet", "threads", "blocking"))
    parser.add_argument("--only", nargs="*", default=[], metavar="FILE", help="as test_copy; default: all")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each test; default: 60")
    parser.add_argument("--delay", type=float, default=0, help="of the network, in ms each way; default: 0")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--done", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child, arguments.hub, arguments.timeout, set(arguments.done))
    suite = unpacked_suite()
    names = arguments.only or sorted(path.stem for path in suite.joinpath("tests").glob("test_*.py"))
    description, context = choose_server()
    print(f"psycopg2's suite, {suite.name}; hub: {arguments.hub}; {description}", flush=True)
    with context as direct, slow_network(direct, arguments.delay / 1000) as server:
        create_database(direct)
        return 0 if compare(names, arguments.hub, suite, server, arguments.timeout) else 1


if __name__ == "__main__":
    sys.exit(main())
