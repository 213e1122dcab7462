"""SQLAlchemy's own tests, of the installed version, on `postgresql+greenpg`. A program of its own:
`make sqlalchemy-suite`.

What of its test tree touches the driver runs twice: on psycopg2 alone (blocking), and on greenpg's dialect and pool
under the hub. Each folder is a process of its own; a test that hangs for `--timeout` seconds has failed, and the folder
goes on behind it. Whatever passes on psycopg2 and fails on greenpg is shown; `EXPLAINED` says of some why.

    python tests/sqlalchemy_suite.py [--hub gevent|eventlet|threads] [--only test/engine ...] [--on patched]

`--on patched` runs it on `postgresql+psycopg2` and SQLAlchemy's own pool, after `greenpg.patch()`. Needs the network
once, for SQLAlchemy's sdist: its tests aren't in the wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from psycopg2_suite import choose_server

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("SQLALCHEMY_SUITE_CACHE", ROOT / ".venv" / "sqlalchemy-suite"))
FOLDERS = ("test/dialect", "test/engine", "test/sql", "test/orm")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

#: Tests that pass on psycopg2 and can't on greenpg, and why. A pattern of the test's name, without its database.
EXPLAINED = {
    r"DialectEventTest::test_connect_(do_connect|replace_params)$": "notes every call on a mock that is no connection, "
    "and greenpg's pool has calls of its own to make on a connection",
}


def unpacked_suite() -> Path:
    """The unpacked sdist of the installed version, downloaded if need be."""
    import sqlalchemy

    name = f"sqlalchemy-{sqlalchemy.__version__}"
    target = CACHE / name
    if not (target / "test").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        archive = CACHE / f"{name}.tar.gz"
        if not archive.exists():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "sqlalchemy"]
            subprocess.run([*command, "--dest", str(CACHE), name.replace("-", "==")], check=True, timeout=600)
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE, [member for member in tar.getmembers() if ".." not in member.name])
    return target


def make_databases(server: dict[str, str]) -> str:
    """What SQLAlchemy's README.unittests asks for. Returns a URL without its scheme."""
    import psycopg2

    def run(dbname: str, *statements: str) -> None:
        conn = psycopg2.connect(**where, dbname=dbname)
        conn.autocommit = True
        with conn.cursor() as cur:
            for statement in statements:
                cur.execute(statement)
        conn.close()

    where = {key: server[key] for key in ("host", "port", "user") if key in server}
    run("postgres", "CREATE DATABASE sqlalchemy_test")
    run("sqlalchemy_test", "CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2")
    return f"://{where['user']}@/sqlalchemy_test?host={where['host']}&port={where['port']}"


# -- one folder, in a process of its own


class Reporter:
    """A pytest plugin: a line for each test, and one before it, in case that it hangs."""

    def __init__(self, file: str, is_done: set[str]) -> None:
        self._file = open(file, "a", buffering=1)  # noqa: SIM115
        self._is_done = is_done

    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = [item for item in items if neutral(item.nodeid) not in self._is_done]

    def pytest_runtest_logstart(self, nodeid, location) -> None:
        self._note(nodeid, FAILED, "it hangs")

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            outcome = SKIPPED if report.outcome == "skipped" else PASSED if report.outcome == "passed" else FAILED
            self._note(report.nodeid, outcome, str(report.longrepr)[-6000:] if outcome == FAILED else "")

    def _note(self, nodeid: str, outcome: str, reason: str) -> None:
        self._file.write(json.dumps([neutral(nodeid), outcome, reason]) + "\n")


def neutral(nodeid: str) -> str:
    """The test's name without the driver's."""
    return re.sub(r"_postgresql\+\w+?_", "_", nodeid)


def run_child(arguments: list[str], mode: str, file: str, timeout: float) -> None:
    if mode in ("greenpg", "patched"):
        hub = os.environ["GREENPG_SUITE_HUB"]
        if hub == "gevent":
            from gevent import monkey

            monkey.patch_all()
        elif hub == "eventlet":
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import eventlet

                eventlet.monkey_patch()
        import greenpg

        greenpg.patch(hub)
    if mode == "greenpg":
        from greenpg.integrations.sqlalchemy import PGDialect_greenpg

        PGDialect_greenpg.driver = "psycopg2"  # so that the tests that are for psycopg2 alone run
    import pytest
    from sqlalchemy.dialects.postgresql import provision

    if os.environ["GREENPG_SUITE_CONTRIB"] == "no":  # the embedded server
        provision._extensions.clear()
    done = set()
    if os.path.exists(file):
        with open(file) as lines:
            done = {json.loads(line)[0] for line in lines}
    sys.path.insert(0, os.getcwd())
    plugins = [Reporter(file, done)]
    status = pytest.main(
        ["-q", "-p", "no:logging", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={timeout}",
         "-o", "faulthandler_exit_on_timeout=true", "--timeout=0", "--maxfail=1000000", *arguments], plugins=plugins
    )  # fmt: skip
    sys.stdout.flush()
    os._exit(int(status))  # whatever threads the tests have left behind


def run_folder(
    folder: str, mode: str, suite: Path, url: str, options: argparse.Namespace
) -> dict[str, tuple[str, str]]:
    """What became of each test: {name: (outcome, reason)}."""
    driver = "greenpg" if mode == "greenpg" else "psycopg2"
    target = [folder]
    if folder == "test/dialect":
        target = ["test/dialect/postgresql", "test/dialect/test_all.py", "test/dialect/test_suite.py"]
    environment = os.environ | {"GREENPG_SUITE_HUB": options.hub, "PYTHONPATH": str(ROOT)}
    environment["GREENPG_SUITE_CONTRIB"] = "no" if options.embedded else "yes"
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "outcomes")
        # -s: else the tests would take SQLAlchemy from the sdist, without its C extensions.
        command = [
            sys.executable,
            "-s",
            __file__,
            "--child",
            file,
            "--on",
            mode,
            "--timeout",
            str(options.timeout),
            "--",
        ]
        command += [*target, "--dburi", f"postgresql+{driver}{url}", "--nomemory"]
        if options.k:
            command += ["-k", options.k]
        tests: dict[str, tuple[str, str]] = {}
        while True:
            before = len(tests)
            with tempfile.TemporaryFile("w+") as log:
                child = subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=suite, check=False)
                if os.path.exists(file):
                    with open(file) as lines:
                        for line in lines:
                            name, outcome, reason = json.loads(line)
                            tests[name] = (outcome, reason)
                if child.returncode in (0, 1):
                    return tests
                log.seek(0)
                print(
                    f"{folder} ({mode}): a process ended with status {child.returncode}:\n{log.read()[-3000:]}",
                    flush=True,
                )
            if len(tests) == before:
                return tests


# -- the report


def passing(tests: dict[str, tuple[str, str]]) -> set[str]:
    return {name for name, (outcome, _) in tests.items() if outcome == PASSED}


def explanation(name: str) -> str | None:
    return next((reason for pattern, reason in EXPLAINED.items() if re.search(pattern, name)), None)


def plain_outcomes(folder: str, suite: Path, url: str, options: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """On psycopg2 alone; with --again, as noted by an earlier run."""
    file = CACHE / f"{suite.name}-{folder.replace('/', '-')}.json"
    if not (options.again and file.exists()):
        file.write_text(json.dumps(run_folder(folder, "psycopg2", suite, url, options)))
    return {name: (outcome, reason) for name, (outcome, reason) in json.loads(file.read_text()).items()}


def compare(suite: Path, url: str, options: argparse.Namespace) -> bool:
    folders = options.only or FOLDERS
    print(f"{'folder':26} {'tests':>6} {'psycopg2':>9} {options.on:>9}   passes of those that pass on psycopg2")
    totals = [0, 0, 0, 0]
    failures: list[tuple[str, str]] = []
    for folder in folders:
        plain = plain_outcomes(folder, suite, url, options)
        green = run_folder(folder, options.on, suite, url, options)
        wanted, kept = passing(plain), passing(plain) & passing(green)
        failures += [(name, green.get(name, (FAILED, "did not run"))[1]) for name in sorted(wanted - kept)]
        numbers = [len(plain), len(wanted), len(passing(green)), len(kept)]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        print(f"{folder:26} {numbers[0]:6} {numbers[1]:9} {numbers[2]:9}   {numbers[3]} of {numbers[1]}", flush=True)
    print(f"{'all':26} {totals[0]:6} {totals[1]:9} {totals[2]:9}   {totals[3]} of {totals[1]}")
    for name, reason in failures:
        why = explanation(name)
        print(f"\nEXPLAINED {name}: {why}" if why else f"\nFAILED on {options.on} only: {name}\n{reason}")
    return all(explanation(name) for name, _ in failures)


def main() -> int:
    parser = argparse.ArgumentParser(description="SQLAlchemy's own tests on greenpg")
    parser.add_argument("--hub", default="gevent", choices=("gevent", "eventlet", "threads"))
    parser.add_argument("--on", default="greenpg", choices=("greenpg", "patched", "psycopg2"))
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="PATH", help="as test/engine; default: all four folders"
    )
    parser.add_argument("-k", help="pytest's -k")
    parser.add_argument("--again", action="store_true", help="take the outcomes on psycopg2 alone from the last run")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each test; default: 120")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("pytest_arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.pytest_arguments, options.on, options.child, options.timeout)
    suite = unpacked_suite()
    description, context = choose_server()
    options.embedded = description.startswith("the embedded")
    print(f"SQLAlchemy's suite, {suite.name}; hub: {options.hub}; {description}", flush=True)
    with context as server:
        return 0 if compare(suite, make_databases(server), options) else 1


if __name__ == "__main__":
    sys.exit(main())
