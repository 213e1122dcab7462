"""examples/with_flask_sqlalchemy.py under `gunicorn -k gevent`, with kills and timeouts; and Alembic."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import sqlalchemy
from kit import wait_until
from psycopg2 import extensions
from test_cli import ENVIRONMENT, ROOT, RunningServer

pytestmark = pytest.mark.only_hub("threads")

APPLICATION_NAME = "greenpg-test-flask"
POOL_SIZE = 10


@pytest.fixture
def url(dsn):
    where = extensions.parse_dsn(dsn)
    return (
        f"postgresql+greenpg://{where['user']}@/{where['dbname']}?host={where['host']}&port={where['port']}"
        f"&application_name={APPLICATION_NAME}"
    )


@pytest.fixture
def environment(url):
    # Flask-SQLAlchemy is older than Python 3.14.
    return ENVIRONMENT | {"DATABASE_URL": url, "PYTHONWARNINGS": "default"}


@pytest.fixture
def app(environment, admin, tmp_path):
    where = {"cwd": ROOT / "examples", "env": environment}
    create = [sys.executable, "-m", "flask", "--app", "with_flask_sqlalchemy", "create-tables"]
    subprocess.run(create, check=True, timeout=60, **where)
    options = ["-c", "gunicorn_conf.py", "--pythonpath", "../tests", "--graceful-timeout", "5", "-b", "127.0.0.1:0"]
    command = [sys.executable, "-m", "gunicorn", *options, "flask_killing_app:app"]
    running = RunningServer(command, tmp_path / "output", **where)
    yield running
    if running.process.returncode is None:
        running.process.terminate()
        running.process.wait(20)
    with admin.cursor() as cur:
        cur.execute("DROP TABLE flask_visit")


def states(admin):
    """Of the app's connections, as the server sees them."""
    with admin.cursor() as cur:
        cur.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", (APPLICATION_NAME,))
        return [state for (state,) in cur.fetchall()]


def test_200_requests_with_timeouts(app, admin):
    """Never more than 10 connections, none left in a transaction, none lost, and none opened anew."""
    slow = [f"/slow?seconds=1&limit={random.uniform(0.005, 0.05):.3f}" for _ in range(400)]
    paths = ["/visit?path=/a"] * 400 + slow
    random.Random(17).shuffle(paths)
    most = 0
    with ThreadPoolExecutor(200) as clients:
        responses = [clients.submit(app.get, path) for path in paths]
        while wait(responses, timeout=0.02).not_done:
            most = max(most, len(states(admin)))
    answers = [response.result() for response in responses]
    assert sorted(answer.status for answer in answers) == [200] * 400 + [504] * 400
    assert most <= POOL_SIZE
    assert set(states(admin)) == {"idle"}
    pool = app.get_json("/pool")
    assert f"Connections in pool: {POOL_SIZE} " in pool["status"]
    assert pool["stats"]["connections_num"] == POOL_SIZE
    counts = [json.loads(answer.body).get("count") for answer in answers if answer.status == 200]
    assert max(counts) == 400, "a visit that was acknowledged is not there"


def test_clients_that_go_away(app, admin):
    """gunicorn goes on with their requests; nothing is lost either."""
    for _ in range(30):
        app.open("/slow?seconds=0.2").close()
    wait_until(lambda: set(states(admin)) == {"idle"}, timeout=20)
    assert len(states(admin)) <= POOL_SIZE
    assert app.get_json("/visit")["count"] == 1


def test_greenlets_that_are_killed(app, admin):
    """GreenletExit, or an exception of no known class, in a statement, a COMMIT, or while they wait in the line."""

    def ask(path):
        try:
            return app.get(path).status
        except (OSError, http.client.HTTPException):
            return "killed"

    killed = 0
    with ThreadPoolExecutor(100) as clients:
        responses = [clients.submit(ask, path) for path in ["/slow?seconds=0.1", "/visit"] * 200]
        while wait(responses, timeout=0.02).not_done:
            killed += app.get_json("/kill")["killed"]
            assert len(states(admin)) <= POOL_SIZE
    outcomes = [response.result() for response in responses]
    assert killed > 50 and outcomes.count("killed") + outcomes.count(500) > 30
    assert outcomes.count(200) > 10
    wait_until(lambda: set(states(admin)) == {"idle"}, timeout=20)
    assert len(states(admin)) <= POOL_SIZE
    wait_until(lambda: "Current Checked out connections: 0 " in app.get_json("/pool")["status"])
    pool = app.get_json("/pool")
    if tuple(map(int, sqlalchemy.__version__.split(".")[:3])) >= (2, 0, 56):  # its issue 13699
        assert pool["stats"]["connections_num"] <= POOL_SIZE, pool


ALEMBIC_ENV = """
from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config
connectable = engine_from_config(config.get_section(config.config_ini_section), prefix="sqlalchemy.")
with connectable.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
connectable.dispose()
"""


def test_alembic(url, admin, tmp_path):
    def alembic(*arguments):
        command = [sys.executable, "-m", "alembic", *arguments]
        return subprocess.run(command, check=True, timeout=60, cwd=tmp_path, env=ENVIRONMENT, capture_output=True)

    alembic("init", "migrations")
    ini = tmp_path / "alembic.ini"
    lines = ini.read_text().splitlines()
    ini.write_text(
        "\n".join(f"sqlalchemy.url = {url}" if line.startswith("sqlalchemy.url") else line for line in lines)
    )
    (tmp_path / "migrations" / "env.py").write_text(ALEMBIC_ENV)
    alembic("revision", "-m", "first", "--rev-id", "1")
    (script,) = (tmp_path / "migrations" / "versions").glob("1_*.py")
    text = script.read_text()
    head, _ = text.split("def upgrade()")
    script.write_text(
        head
        + """def upgrade():
    op.create_table("alembic_thing", sa.Column("id", sa.Integer, primary_key=True))
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY alembic_index ON alembic_thing (id)")


def downgrade():
    op.drop_table("alembic_thing")
"""
    )

    def has_index():
        with admin.cursor() as cur:
            cur.execute("SELECT to_regclass('alembic_index') IS NOT NULL")
            return cur.fetchone()[0]

    try:
        alembic("upgrade", "head")
        assert has_index()
        alembic("downgrade", "base")
        assert not has_index()
    finally:
        with admin.cursor() as cur:
            cur.execute("DROP TABLE IF EXISTS alembic_version, alembic_thing")
