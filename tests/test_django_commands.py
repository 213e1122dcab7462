"""The engine under Django's commands, in Celery, and beside psycopg 3: in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from kit import wait_until
from servers_kit import states
from test_django_site import TESTS, environment_for

pytest.importorskip("django")
pytestmark = pytest.mark.only_hub("threads")


def manage(dsn, *arguments, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "django_site/manage.py", *arguments],
        cwd=TESTS,
        env=environment_for(dsn, "manage", **environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def databases_for_tests(admin):
    with admin.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%%'")
        return [name for (name,) in cursor.fetchall()]


@pytest.mark.parametrize(
    ("green", "options"),
    [
        ("", []),
        ("1", []),
        ("", ["--keepdb"]),
        ("1", ["--keepdb"]),
        ("", ["--parallel", "2"]),  # Python's multiprocessing.Pool doesn't work under gevent, whatever the engine
    ],
    ids=" ".join,
)
def test_the_test_runner(dsn, admin, green, options):
    database = json.dumps({"TEST": {"NAME": "test_of_django"}})
    for _ in range(2 if "--keepdb" in options else 1):
        done = manage(
            dsn, "test", "django_site.site_tests", *options, DJANGO_SITE_GREEN=green, DJANGO_SITE_DATABASE=database
        )
        assert done.returncode == 0, done.stderr
        assert "Ran 5 tests" in done.stderr and "OK" in done.stderr
    left = databases_for_tests(admin)
    if "--keepdb" in options:
        assert left == ["test_of_django"]
        with admin.cursor() as cursor:
            cursor.execute("DROP DATABASE test_of_django")
    else:
        assert left == []


@pytest.mark.parametrize("options", [[], ["--parallel", "2"]], ids=" ".join)
def test_the_test_runner_with_an_alias_for_replicas(dsn, admin, options):
    """TEST MIRROR: the tests know nothing of it."""
    done = manage(
        dsn,
        "test",
        "django_site.site_tests",
        *options,
        DJANGO_SITE_DATABASE=json.dumps({"TEST": {"NAME": "test_of_django"}}),
        DJANGO_SITE_REPLICA=json.dumps({"ENGINE": "greenpg.integrations.django", "OPTIONS": {"replica_of": "default"}}),
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 5 tests" in done.stderr and "OK" in done.stderr
    assert databases_for_tests(admin) == []


def test_check(dsn):
    done = manage(dsn, "check", "--database", "default", DJANGO_SITE_GREEN="1")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    done = manage(dsn, "check", "--database", "default", DJANGO_SITE_DATABASE='{"CONN_MAX_AGE": 60}')
    assert done.returncode == 1
    assert "greenpg.E001" in done.stderr and "Set CONN_MAX_AGE to 0" in done.stderr


def test_inspectdb_and_dbshell(dsn):
    assert manage(dsn, "migrate", "--run-syncdb").returncode == 0
    done = manage(dsn, "inspectdb", "django_site_item")
    assert "class DjangoSiteItem(models.Model):" in done.stdout and "data = models.JSONField()" in done.stdout
    if subprocess.run(["sh", "-c", "command -v psql"], capture_output=True, check=False).returncode == 0:
        done = manage(dsn, "dbshell", "--", "-Atc", "SELECT count(*) > 0 FROM django_migrations")
        assert (done.returncode, done.stdout) == (0, "t\n"), done.stderr


def test_runserver(dsn, admin, tmp_path):
    name = "django-runserver"
    output = tmp_path / "output"
    with output.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-u", "django_site/manage.py", "runserver", "--noreload", "127.0.0.1:0"],
            cwd=TESTS,
            env=environment_for(dsn, name, PYTHONUNBUFFERED="1"),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "Quit the server" in output.read_text() or server.poll() is not None, timeout=30)
        (port,) = _listening(server.pid)
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/in_atomic", timeout=30) as response:
                assert response.read() == b"in_atomic\n"
        assert len(states(admin, name)) <= 10
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)


def _listening(pid):
    """The ports on which the process listens."""
    inodes = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        if target.startswith("socket:"):
            inodes.add(target[8:-1])
    with open(f"/proc/{pid}/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes]


# -- beside psycopg 3


@pytest.fixture
def psycopg3(tmp_path):
    """A folder with a psycopg in it that nobody may import."""
    package = tmp_path / "site" / "psycopg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('psycopg 3 was imported')\n")
    return str(package.parent)


def run(program, dsn, *path, **environment):
    environment = environment_for(dsn, "program", **environment)
    environment["PYTHONPATH"] = os.pathsep.join([*path, environment["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_engine_takes_psycopg2_though_psycopg3_is_there(dsn, psycopg3):
    program = """
import django
django.setup()
from django.db import connection
connection.ensure_connection()
import greenpg
assert isinstance(connection.connection, greenpg.Connection)
"""
    done = run(program, dsn, psycopg3)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def unusable_psycopg3(psycopg3):
    """Django looks for it, finds it, and goes back to psycopg2."""
    with open(os.path.join(psycopg3, "psycopg", "__init__.py"), "w") as file:
        file.write("raise ImportError\n")
    return psycopg3


#: It may be installed, for the benchmarks.
WITHOUT_PSYCOPG3 = """
import sys
sys.modules["psycopg"] = None
"""
LATE_CHOICE = """
import warnings
import greenpg
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    greenpg.patch("threads")
    import django
    django.setup()
    from django.db import connection
    connection.ensure_connection()
print(*[str(each.message) for each in caught if "psycopg 3" in str(each.message)], sep="\\n")
"""


def test_patch_says_so_if_django_takes_psycopg3(dsn, unusable_psycopg3):
    engine = '{"ENGINE": "django.db.backends.postgresql", "OPTIONS": {}}'
    done = run(LATE_CHOICE, dsn, unusable_psycopg3, DJANGO_SITE_DATABASE=engine)
    assert done.stdout.startswith("psycopg 3 is installed beside psycopg2"), done.stderr
    assert done.stdout.count("psycopg 3 is") == 1
    assert run(WITHOUT_PSYCOPG3 + LATE_CHOICE, dsn, DJANGO_SITE_DATABASE=engine).stdout == "\n"
    assert run(LATE_CHOICE, dsn, unusable_psycopg3).stdout == "\n"


def test_loaded_with_psycopg3_already(dsn, tmp_path):
    """As django.contrib.postgres does where it comes first; a real psycopg 3 isn't needed to see it."""
    program = """
import sys, types
choice = types.ModuleType("django.db.backends.postgresql.psycopg_any")
choice.is_psycopg3 = True
sys.modules[choice.__name__] = choice
import warnings, greenpg
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    greenpg.patch("threads")
assert "Django takes it" in str(caught[-1].message)
import greenpg.integrations.django.base
"""
    done = run(program, dsn)
    assert "ImproperlyConfigured: psycopg 3 is installed beside psycopg2" in done.stderr
    assert "first in INSTALLED_APPS" in done.stderr


def test_used_before_the_fork_and_the_monkey_patching(dsn):
    """As by an AppConfig.ready() in a preloading server; the tasks are no requests, so nothing announces them."""
    program = """
import os
import django
django.setup()
from django.db import connection, transaction

def work():
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(0.2)")
        (pid,) = cursor.fetchone()
        with connection.cursor() as another:
            another.execute("SELECT pg_backend_pid()")
            assert another.fetchone() == (pid,)
        return pid

work()
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
from gevent import monkey
monkey.patch_all()
import gevent
tasks = [gevent.spawn(work) for _ in range(5)]
gevent.joinall(tasks, raise_error=True)
assert len({task.value for task in tasks}) == 5
os._exit(0)
"""
    done = run(program, dsn)
    assert done.returncode == 0, done.stderr


def test_patched_before_the_monkey_patching(dsn):
    program = """
import greenpg
greenpg.patch()
from gevent import monkey
monkey.patch_all()
import django
django.setup()
from django.db import connection
import gevent

def work():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.5)")

tasks = [gevent.spawn(work) for _ in range(5)]
gevent.sleep(0.3)
assert connection.pool.get_stats()["pool_size"] == 5
gevent.joinall(tasks, raise_error=True)
assert greenpg.hubs.hub().name == "gevent"
"""
    done = run(program, dsn)
    assert done.returncode == 0, done.stderr


def test_celery(dsn, admin, tmp_path):
    """Tasks that don't close, tasks that fail, and tasks that are killed by their time limit."""
    pytest.importorskip("celery")
    name = "django-celery"
    assert manage(dsn, "migrate", "--run-syncdb").returncode == 0
    environment = environment_for(
        dsn, name, DJANGO_SITE_BROKER=str(tmp_path), DJANGO_SITE_POOL='{"max_size": 5, "timeout": 30}'
    )
    command = [sys.executable, "-m", "celery", "--app", "django_site.tasks", "worker", "--pool", "gevent"]
    command += ["--concurrency", "20", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
    output = tmp_path / "output"
    with output.open("w") as file:
        worker = subprocess.Popen(command, cwd=TESTS, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from django_site.tasks import main; main()"],
            cwd=TESTS,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr + output.read_text()
        outcomes = json.loads(done.stdout)
        assert outcomes["good"] == 20 and outcomes["failed"] == 10 and outcomes["late"] == 5, outcomes
        wait_until(lambda: set(states(admin, name)) <= {"idle"})
        assert len(states(admin, name)) <= 5
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(20)
        finally:
            worker.kill()
    assert json.loads(done.stdout)["available"] == outcomes["size"]
