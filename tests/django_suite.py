"""Django's own test suite, of the installed version, on greenpg's engine. A program of its own: `make django-suite`.

Each batch of test packages runs in two processes, first on Django's engine with psycopg2 alone (blocking), then on
greenpg's, monkey-patched. What passes on the first alone runs once more, on Django's engine, monkey-patched: what fails
there, too, is the hub's doing (asyncio's loops in one thread). A test that hangs for `--timeout` seconds ends its
process; those behind it in its batch count as failed.

    python tests/django_suite.py [--hub gevent|eventlet|threads] [--only transactions backends.base ...] [--no-pool]

Needs the network once, for Django's sdist. It uses Debian's PostgreSQL with its contrib modules where it is installed,
otherwise the embedded one, on which Django skips some tests of django.contrib.postgres.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("DJANGO_SUITE_CACHE", Path(sys.prefix) / "django-suite"))
PASSED, FAILED = "passed", "failed"
DJANGOS, GREENPGS = "django.db.backends.postgresql", "greenpg.integrations.django"

#: Those that talk to the database most come first.
FIRST = ["backends", "transactions", "transaction_hooks", "requests_tests", "queries", "migrations", "postgres_tests"]
FIRST += ["select_for_update", "db_utils", "servers", "test_utils", "test_runner", "fixtures", "model_fields"]
FIRST += ["introspection", "inspectdb", "dbshell", "delete", "bulk_create", "schema", "constraints", "handlers"]
#: Of two threads of asyncio, which gevent and eventlet make one; and what isn't about databases and takes long.
LEFT_OUT = {"async", "asgi", "i18n", "staticfiles_tests", "template_tests", "admin_scripts", "gis_tests", "view_tests"}
BATCH = 12

_MAX_AGE = "it sets CONN_MAX_AGE, which is refused beside a pool"
EXPLAINED = {
    "backends.base.test_base.ConnectionHealthChecksTests.": _MAX_AGE,
    "servers.tests.LiveServerTestCloseConnectionTest.test_closes_connections": _MAX_AGE,
    "backends.postgresql.tests.Tests.test_connect_pool_setting_ignored_for_psycopg2": "psycopg2 has a pool here",
}

SETTINGS = """
import os
DATABASES = {
    alias: {
        "ENGINE": os.environ["SUITE_ENGINE"], "USER": os.environ["SUITE_USER"], "HOST": os.environ["SUITE_HOST"],
        "PORT": os.environ["SUITE_PORT"], "NAME": "suite_" + alias, "OPTIONS": {},
        "TEST": {"NAME": "test_suite_" + alias},
    }
    for alias in ("default", "other")
}
if os.environ.get("SUITE_NO_POOL"):
    for database in DATABASES.values():
        database["OPTIONS"]["pool"] = False
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "django_outcomes.Runner"
"""


# -- the suite


def unpacked_suite() -> Path:
    """The folder of the suite, downloaded if need be. Raises CalledProcessError where it isn't to be had."""
    import django

    target = CACHE / f"django-{django.__version__}"
    if not (target / "tests" / "runtests.py").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "django"]
            command += ["--dest", directory, f"django=={django.__version__}"]
            # pip's constraints, as make sets them, would forbid what builds Django.
            environment = {name: value for name, value in os.environ.items() if "CONSTRAINT" not in name}
            subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True)
            (archive,) = Path(directory).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                top = tar.getnames()[0].split("/")[0]
                members = [
                    member
                    for member in tar.getmembers()
                    if member.name.startswith(f"{top}/tests/") and ".." not in member.name
                ]
                tar.extractall(directory, members)
            os.replace(Path(directory, top), target)
    return target


def packages(suite: Path) -> list[str]:
    """Those to be run, the ones of FIRST first."""
    found = sorted(path.parent.name for path in suite.glob("tests/*/__init__.py"))
    others = [name for name in found if name not in FIRST]
    return [name for name in FIRST + others if name in found and name not in LEFT_OUT]


# -- one batch, in a process of its own


def run_child(labels: list[str], hub: str, timeout: float) -> None:
    if hub == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif hub == "eventlet":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import eventlet

            eventlet.monkey_patch()
    if hub != "blocking" and os.environ["SUITE_ENGINE"] == DJANGOS:
        import greenpg

        greenpg.patch(hub)
    os.environ["SUITE_TIMEOUT"] = str(timeout)
    sys.path[:0] = [os.getcwd(), str(Path(__file__).parent)]
    sys.argv = ["runtests.py", "--settings=suite_settings", "--parallel=1", "--noinput", "--verbosity=0", *labels]
    runpy.run_path("runtests.py", run_name="__main__")


def run_batch(labels, engine, hub, suite, server, timeout, *, pool=True):
    """What became of each test: {id: (outcome, reason)}; and the process's last words if it didn't end well."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "suite_settings.py").write_text(SETTINGS)
        outcomes = Path(directory, "outcomes")
        outcomes.touch()
        environment = os.environ | {
            "SUITE_ENGINE": engine,
            "SUITE_HOST": server.get("host", ""),
            "SUITE_PORT": server.get("port", ""),
            "SUITE_USER": server.get("user", ""),
            "SUITE_NO_POOL": "" if pool else "1",
            "SUITE_OUTCOMES": str(outcomes),
            "PYTHONPATH": os.pathsep.join([directory, str(ROOT)]),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, __file__, "--child", "--hub", hub, "--timeout", str(timeout), "--only", *labels]
        with tempfile.TemporaryFile("w+") as log:
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=suite / "tests")
            try:
                status = child.wait(7200)
            finally:
                child.kill()
            log.seek(0)
            last_words = log.read()[-3000:]
        tests = {}
        for line in outcomes.read_text().splitlines():
            test, outcome, reason = json.loads(line)
            if tests.get(test, ("",))[0] != FAILED or tests[test][1] == "it hangs":
                tests[test] = (outcome, reason)
    return tests, "" if status in (0, 1) and tests else f"ended with status {status}:\n{last_words}"


# -- the report


def passing(tests):
    return {test for test, (outcome, _) in tests.items() if outcome == PASSED}


def explained(test):
    """Why it can't pass on greenpg's engine; None: it should."""
    return next((reason for name, reason in EXPLAINED.items() if test.startswith(name)), None)


def compare(batches, hub, suite, server, timeout, pool):
    totals = [0, 0, 0]
    known, of_the_hub, lost = [], [], []
    for labels in batches:
        reference, trouble = run_batch(labels, DJANGOS, "blocking", suite, server, timeout)
        if trouble:
            print(f"{' '.join(labels)} (psycopg2 alone): {trouble}", flush=True)
        tests, trouble = run_batch(labels, GREENPGS, hub, suite, server, timeout, pool=pool)
        if trouble:
            print(f"{' '.join(labels)} (greenpg): {trouble}", flush=True)
        wanted, kept = passing(reference), passing(tests)
        totals = [a + b for a, b in zip(totals, (len(reference), len(wanted), len(wanted & kept)), strict=True)]
        print(
            f"{len(reference)} tests, {len(wanted)} pass, {len(wanted & kept)} of them on greenpg: {labels}", flush=True
        )
        missing = sorted(wanted - kept)
        known += [test for test in missing if explained(test)]
        missing = [test for test in missing if not explained(test)]
        if missing and hub != "threads":
            # Is it the engine, or what the hub has made of Python?
            control, _ = run_batch(missing, DJANGOS, hub, suite, server, timeout)
            of_the_hub += [test for test in missing if test not in passing(control)]
            missing = [test for test in missing if test in passing(control)]
        for test in missing:
            outcome, reason = tests.get(test, (FAILED, "did not run"))
            print(f"\n{outcome.upper()} on greenpg's engine ({hub}) only: {test}\n{reason}", flush=True)
        lost += missing
    print(f"{totals[0]} tests, {totals[1]} pass with psycopg2 alone, {totals[2]} of these on greenpg's engine")
    print(f"{len(of_the_hub)} fail under {hub} with Django's own engine as well:")
    for test in of_the_hub:
        print(f"  {test}")
    print(f"{len(known)} can't pass:")
    for test in known:
        print(f"  {test}: {explained(test)}")
    print(f"{len(lost)} are lost:")
    for test in lost:
        print(f"  {test}")
    return not lost


def main() -> int:
    parser = argparse.ArgumentParser(description="Django's own test suite on greenpg's engine")
    parser.add_argument("--hub", default="gevent", choices=("gevent", "eventlet", "threads", "blocking"))
    parser.add_argument("--only", nargs="*", default=[], metavar="LABEL", help="as transactions; default: nearly all")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each test; default: 120")
    parser.add_argument("--no-pool", action="store_true", help='with "pool": False')
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.only, arguments.hub, arguments.timeout)
        return 0
    sys.path.insert(0, str(ROOT / "tests"))
    from psycopg2_suite import choose_server

    suite = unpacked_suite()
    labels = arguments.only or packages(suite)
    batches = [labels[start : start + BATCH] for start in range(0, len(labels), BATCH)]
    description, context = choose_server()
    print(f"{suite.name}'s suite; hub: {arguments.hub}; {description}", flush=True)
    with context as server:
        good = compare(batches, arguments.hub, suite, server, arguments.timeout, not arguments.no_pool)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
