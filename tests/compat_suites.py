"""The originals' own test suites against the facades of `greenpg.compat`. A program of its own: `make compat-suites`.

Downloads the tests of pgclient, queries and psycopg2-managed-connection into a cache (their sdists on PyPI are without
tests, so from GitHub, by commit), changes nothing in them but the import, and runs them on the embedded server. Of
queries, the tests are left out that replace its insides by mocks: they say nothing about a facade.

    python tests/compat_suites.py [--hub gevent|eventlet|threads] [--only queries] [--from DIRECTORY]

`--from` names a directory with checked-out repositories, `gmr+queries` and so on, for machines that don't reach GitHub.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("COMPAT_SUITES_CACHE", ROOT / ".venv" / "compat-suites"))
HUBS = ("gevent", "eventlet", "threads")


@dataclass(frozen=True)
class Suite:
    repository: str
    commit: str
    files: tuple[str, ...]
    #: (pattern, replacement): the one import that changes.
    rewrite: tuple[tuple[str, str], ...]
    left_out: str


SUITES = {
    "pgclient": Suite(
        "prawn-cake/pgclient",
        "91f61f51e151fedbc275436c648027f782660eb5",
        ("pgclient/tests.py", "pgclient/system_test/system_test.py"),
        ((r"\bfrom pgclient\b", "from greenpg.compat.pgclient"),),
        "nothing (test_reconnection skips itself)",
    ),
    "psycopg2-managed-connection": Suite(
        "disqus/psycopg2-managed-connection",
        "93c81647dbbb0973274722c1acacd9db07244ac4",
        ("tests.py", "README.rst"),
        (
            (r"\bfrom pgmanagedconnection\b", "from greenpg.compat.pgmanagedconnection"),
            (r"\byield_fixture\b", "fixture"),  # gone from pytest
        ),
        "nothing",
    ),
    "queries": Suite(
        "gmr/queries",
        "6995ad18ee2b7fe2ce36d75f50979a47e3e2171d",
        ("tests/integration_tests.py", "tests/utils_tests.py", "tests/pool_exception_tests.py"),
        (
            (r"(?m)^import queries$", "from greenpg.compat import queries"),
            (r"\bfrom queries\b", "from greenpg.compat.queries"),
        ),
        "pool, manager and connection tests (the structure of its own pool, with fake handles), results, session and "
        "tornado tests (mocks of its insides): none of them talks to a database",
    ),
}

#: What runs in the process of a suite: a user's start-up, then pytest.
RUN = """
import sys, unittest.mock, warnings
warnings.simplefilter("ignore")
hub, *arguments = sys.argv[1:]
sys.modules["mock"] = unittest.mock
if hub == "gevent":
    from gevent import monkey; monkey.patch_all()
elif hub == "eventlet":
    import eventlet; eventlet.monkey_patch()
import greenpg, pytest
greenpg.patch(hub)
sys.exit(pytest.main(arguments))
"""


def unpacked(suite: Suite, checked_out: Path | None) -> Path:
    """The folder with the repository, downloaded if need be."""
    if checked_out is not None:
        return checked_out / suite.repository.replace("/", "+")
    target = CACHE / f"{suite.repository.rpartition('/')[2]}-{suite.commit}"
    if not target.is_dir():
        url = f"https://codeload.github.com/{suite.repository}/tar.gz/{suite.commit}"
        with urllib.request.urlopen(url, timeout=60) as response:
            archive = io.BytesIO(response.read())
        with tarfile.open(fileobj=archive) as tar:
            members = [member for member in tar.getmembers() if ".." not in member.name and member.name[0] != "/"]
            tar.extractall(CACHE, members)
    return target


def run(name: str, suite: Suite, hub: str, source: Path, environment: dict[str, str]) -> bool:
    """Run the suite's tests, rewritten, and report. Did they all pass?"""
    with tempfile.TemporaryDirectory(prefix="greenpg-compat-") as directory:
        for file in suite.files:
            text = (source / file).read_text()
            for pattern, replacement in suite.rewrite:
                text = re.sub(pattern, replacement, text)
            Path(directory, Path(file).name).write_text(text)
        report = Path(directory, "report.xml")
        files = [Path(file).name for file in suite.files]
        options = ["-q", "-p", "no:cacheprovider", "--rootdir=.", f"--junitxml={report}", "--timeout=60", *files]
        options += ["--doctest-glob=*.rst", "-c", os.devnull]
        finished = subprocess.run(
            [sys.executable, "-c", RUN, hub, *options],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if not report.exists():
            print(finished.stdout, finished.stderr, sep="\n")
            return False
        totals = next(xml.etree.ElementTree.parse(report).iter("testsuite")).attrib
    count, skipped = int(totals["tests"]), int(totals["skipped"])
    bad = int(totals["failures"]) + int(totals["errors"])
    print(f"{name} on {hub}: {count - bad - skipped} of {count} pass, {skipped} skipped; left out: {suite.left_out}")
    if bad:
        print(finished.stdout)
    return not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hub", choices=HUBS, action="append", help="default: all of them")
    parser.add_argument("--only", choices=sorted(SUITES), action="append")
    parser.add_argument("--from", dest="checked_out", type=Path, help="a directory with checked-out repositories")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    names = options.only or sorted(SUITES)
    sources = {name: unpacked(SUITES[name], options.checked_out) for name in names}

    import psycopg2

    from greenpg.embedded import Server

    with Server(port=0) as server:
        parts = psycopg2.extensions.parse_dsn(server.dsn)
        admin = psycopg2.connect(server.dsn)
        admin.autocommit = True
        admin.cursor().execute("CREATE DATABASE test")
        admin.close()
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PGHOST": parts["host"],
            "PGPORT": parts["port"],
            "PGUSER": parts["user"],
            "PGDATABASE": parts["dbname"],
            "POSTGRES_PORT": parts["port"],
        }
        environment.pop("QUERIES_MAX_POOL_SIZE", None)
        outcomes = [
            run(name, SUITES[name], hub, sources[name], environment) for name in names for hub in options.hub or HUBS
        ]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
