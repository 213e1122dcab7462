"""examples/webapp.py as `greenpg demo` runs it: gunicorn, a gevent worker, and requests by HTTP."""

from __future__ import annotations

import html
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from kit import wait_until
from psycopg2.extensions import make_dsn
from test_cli import ENVIRONMENT, ROOT, RunningServer, start_demo

pytestmark = pytest.mark.only_hub("threads")

POOL_SIZE = 10
APPLICATION_NAME = "greenpg-test-webapp"


@pytest.fixture(scope="module")
def app_dsn(dsn):
    return make_dsn(dsn, application_name=APPLICATION_NAME)


@pytest.fixture(scope="module")
def demo(app_dsn, tmp_path_factory):
    running = start_demo(tmp_path_factory.mktemp("demo") / "output", "--dsn", app_dsn, "--pool-size", str(POOL_SIZE))
    yield running
    assert running.stop() == 0


def server_connections(admin):
    """The states of the app's connections, as the server sees them."""
    with admin.cursor() as cur:
        cur.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", (APPLICATION_NAME,))
        return [state for (state,) in cur.fetchall()]


def is_world(value):
    return value.keys() == {"id", "randomNumber"} and all(1 <= number <= 10_000 for number in value.values())


# -- TechEmpower's endpoints


def test_db(demo):
    assert is_world(demo.get_json("/db"))


@pytest.mark.parametrize(
    ("query", "count"),
    [("?queries=20", 20), ("", 1), ("?queries=", 1), ("?queries=0", 1), ("?queries=x", 1), ("?queries=501", 500)],
)
def test_queries(demo, query, count):
    worlds = demo.get_json(f"/queries{query}")
    assert len(worlds) == count
    assert all(map(is_world, worlds))


@pytest.mark.parametrize(("query", "count"), [("?queries=20", 20), ("?queries=-1", 1), ("?queries=1000", 500)])
def test_updates_are_stored(demo, admin, query, count):
    worlds = demo.get_json(f"/updates{query}")
    assert len(worlds) == count
    assert all(map(is_world, worlds))
    with admin.cursor() as cur:
        cur.execute("SELECT id, randomnumber FROM world WHERE id = ANY(%s)", ([world["id"] for world in worlds],))
        assert dict(cur.fetchall()) == {world["id"]: world["randomNumber"] for world in worlds}


def test_fortunes(demo):
    response = demo.get("/fortunes")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    page = response.body.decode()
    assert "<script" not in page
    messages = [html.unescape(message) for message in re.findall(r"<tr><td>\d+</td><td>([^<]*)</td></tr>", page)]
    assert len(messages) == 13
    assert messages == sorted(messages)
    assert "Additional fortune added at request time." in messages
    assert "フレームワークのベンチマーク" in messages
    assert messages[0].startswith("<script>alert(")


def test_tables_are_not_filled_twice(demo, admin, webapp):
    webapp.create_tables(webapp.DSN)
    with admin.cursor() as cur:
        cur.execute("SELECT (SELECT count(*) FROM world), (SELECT count(*) FROM fortune)")
        assert cur.fetchone() == (10_000, 12)


# -- the others


def test_slow(demo):
    assert demo.get_json("/slow?seconds=0.01") == {"slept": 0.01}
    assert demo.get_json("/slow?seconds=-1") == {"slept": 0.0}


@pytest.mark.parametrize("path", ["/slow?seconds=x", "/slow?seconds=nan", "/slow?seconds=1e999", "/burst?count=many"])
def test_bad_value(demo, path):
    response = demo.get(path)
    assert response.status == 400
    assert re.fullmatch(r"(seconds|count) must be a .*number from .*, not '.*'\n", response.body.decode())


def test_unknown_path(demo):
    response = demo.get("/nowhere")
    assert response.status == 404
    assert b"/heartbeat" in response.body


def test_page_needs_nothing_from_outside(demo):
    response = demo.get("/")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    page = response.body.decode()
    assert "/burst" in page
    assert not re.search(r"https?://|@import|url\(|src=", page)


def test_load(demo, admin):
    paths = ["/db", "/updates?queries=5"] * 1_000
    sizes = []
    with ThreadPoolExecutor(200) as clients:
        responses = [clients.submit(demo.get, path) for path in paths]
        while wait(responses, timeout=0.02).not_done:
            sizes.append(len(server_connections(admin)))
    answers = [response.result() for response in responses]
    assert {answer.status for answer in answers} == {200}
    assert all(map(is_world, (json.loads(answer.body) for answer in answers[::2])))
    assert max(sizes) == POOL_SIZE, sizes
    assert set(server_connections(admin)) == {"idle"}


def test_updates_of_the_same_rows_do_not_deadlock(demo):
    with ThreadPoolExecutor(POOL_SIZE) as clients:
        answers = list(clients.map(demo.get, ["/updates?queries=200"] * 50))
    assert {answer.status for answer in answers} == {200}


def test_heartbeat_is_answered_during_a_burst(demo):
    count, seconds = 80, 0.5
    started = time.monotonic()
    burst = demo.open(f"/burst?count={count}&seconds={seconds}")
    with burst:
        first = burst.readline()
        beats = [demo.get_json("/heartbeat")["pool"] for _ in range(10)]
        took = time.monotonic() - started
        lines = [first, *burst]
    nominal = count * seconds / POOL_SIZE
    assert all(beat["requests_waiting"] for beat in beats), "these were answered after the burst"
    assert took < nominal
    assert time.monotonic() - started >= nominal  # never more than POOL_SIZE at once

    assert lines[-3:-1] == [b"event: end\n", b"data: {}\n"]
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-3] if line.strip()]
    in_order = list(range(count))
    assert [event["task"] for event in events if event["state"] == "running"] == in_order  # the pool is fair
    assert sorted(event["task"] for event in events if event["state"] == "done") == in_order
    assert len(events) == 2 * count


def test_burst_ends_with_its_reader(demo):
    with demo.open("/burst?count=1000&seconds=0.5") as burst:  # 50 s
        burst.readline()

    def is_over():
        pool = demo.get_json("/heartbeat")["pool"]
        return pool["requests_waiting"] == 0 and pool["pool_available"] == pool["pool_size"]

    wait_until(is_over, timeout=20)
    assert is_world(demo.get_json("/db"))


# -- without the demo


@pytest.fixture(scope="module")
def webapp(app_dsn):
    """The module itself, in this process, with a pool of one connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GREENPG_DSN", app_dsn)
        patch.setenv("GREENPG_POOL_SIZE", "1")
        patch.syspath_prepend(ROOT / "examples")
        import webapp
    yield webapp
    webapp.pool.close()
    del sys.modules["webapp"]


def test_pool_timeout_is_a_503(webapp, monkeypatch):
    monkeypatch.setattr(webapp.pool, "timeout", 0.05)
    answers = []
    with webapp.pool.connection(timeout=30):
        environ = {"PATH_INFO": "/db"}
        body = webapp.application(environ, lambda status, headers: answers.append((status, dict(headers))))
    [(status, headers)] = answers
    assert status == "503 Service Unavailable"
    assert headers["Retry-After"] == "5"
    assert headers["Content-Length"] == str(len(b"".join(body)))
    assert b"none of its 1 connections became free in 0.05 s" in b"".join(body)


def test_gunicorn_conf_makes_the_worker_green(app_dsn, webapp, tmp_path):
    webapp.create_tables(app_dsn)
    gunicorn = RunningServer(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn_conf.py", "--bind", "127.0.0.1:0", "webapp"],
        tmp_path / "output",
        cwd=ROOT / "examples",
        env=ENVIRONMENT | {"GREENPG_DSN": app_dsn, "HOME": os.fspath(tmp_path)},
    )
    try:
        started = time.monotonic()
        with ThreadPoolExecutor(10) as clients:
            answers = list(clients.map(gunicorn.get_json, ["/slow?seconds=1"] * 10))
        took = time.monotonic() - started
    finally:
        assert gunicorn.stop() == 0
    assert answers == [{"slept": 1.0}] * 10
    assert took < 5, "the ten took as long as one after the other"
