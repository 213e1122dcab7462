"""Every example runs as its first lines say, as a program of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.only_hub("threads")

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "first_steps.py": ["PostgreSQL", "sum of what 50 greenlets read: 1225", "0 lent, 0 waiting"],
    "bulk_load.py": ["loaded 300000 rows", "the handler says: 300000 rows"],
    "large_object_download.py": ["right: [True, True, True]"],
    "change_data_capture.py": [
        "INSERT public.account: {'id': '1', 'balance': '100'}\n",
        "COMMIT",
        "DELETE public.account",
    ],
    "native_threads.py": [f"squares: {[n * n for n in range(20)]}"],
    "point_adapter.py": [
        "sent: INSERT INTO atable VALUES ('(1.23, 4.56)'::point), (NULL)",
        "received: Point(x=1.23, y=4.56)\nreceived: None\n",
    ],
    "logging_cursor.py": [
        "statements: SELECT 'it''s', pg_sleep(0.02) [ok, ",
        "statements: SELECT 1 / 0 [DivisionByZero, ",
        "error: division by zero",
    ],
    "with_sqlalchemy.py": [
        "200 greenlets on 5 connections have deposited 200",
        "connections opened, after 20 timeouts: 5\n",
        "COPY says: [('1', '200')]",
    ],
    "with_eventlet.py": [f"numbers: {list(range(25))}"],
}
TESTED_ELSEWHERE = {
    "chat.py",
    "gunicorn_conf.py",
    "webapp.py",
    "with_celery.py",
    "with_flask.py",
    "with_flask_sqlalchemy.py",
    "with_pywsgi.py",
    "with_rq.py",
    "with_uwsgi.py",
    "without_a_line.py",
}


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES) | TESTED_ELSEWHERE


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, dsn):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), dsn],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error" if "eventlet" not in name else "default"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in EXAMPLES[name]:
        assert expected in done.stdout


def test_django_site(dsn, tmp_path):
    """Its own tests, and then the site as its wsgi.py says."""
    pytest.importorskip("django")
    from concurrent.futures import ThreadPoolExecutor

    from test_cli import ENVIRONMENT, RunningServer

    environment = ENVIRONMENT | {"GREENPG_DSN": dsn, "PYTHONWARNINGS": "ignore", "HOME": str(tmp_path)}
    site = ROOT / "examples" / "with_django"
    for command in ("migrate", "makemigrations --check", "test"):
        done = subprocess.run(
            [sys.executable, "manage.py", *command.split()],
            cwd=site,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    gunicorn = RunningServer(
        [sys.executable, "-m", "gunicorn", "-k", "gevent", "--bind", "127.0.0.1:0", "wsgi"],
        tmp_path / "output",
        cwd=site,
        env=environment,
    )
    try:
        with ThreadPoolExecutor(50) as clients:
            answers = list(clients.map(gunicorn.get, ["/", "/export"] * 100))
        assert {answer.status for answer in answers} == {200}
        stats = gunicorn.get_json("/pool")
        assert stats["requests_num"] >= 200 and stats["pool_size"] <= 10
    finally:
        assert gunicorn.stop() == 0
