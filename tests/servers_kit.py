"""A server of each kind in a process of its own: 200 requests at once on a pool of 10, and SIGTERM under load."""

from __future__ import annotations

import http.client
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from kit import wait_until
from psycopg2.extensions import make_dsn
from test_cli import ENVIRONMENT

import greenpg

TESTS = Path(__file__).parent
POOL_SIZE = 10


def dsn_for(dsn, name):
    """Connections are called `name`, and the server's own look at its clients is off, so that nothing but the process
    itself can have ended what it ran."""
    return make_dsn(dsn, application_name=name, options="-c client_connection_check_interval=0")


def environment_for(dsn, name, home, **more):
    """Of a server's process."""
    return ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS / "servers", TESTS.parent / "examples"])),
        "PYTHONWARNINGS": "ignore",
        "GREENPG_DSN": dsn_for(dsn, name),
        "HOME": os.fspath(home),
        **more,
    }


@contextmanager
def admin_of(dsn):
    """An autocommit connection of this thread's."""
    with closing(greenpg.connect(dsn, application_name="admin")) as conn:
        conn.autocommit = True
        yield conn


@contextmanager
def ended_afterwards():
    """Gives a list: of the servers that the block puts into it, those that still run at its end are stopped."""
    servers = []
    try:
        yield servers
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.stop()


def side_by_side(check, cases):
    """Call `check(case)` for all cases at the same time, since most of it is waiting."""
    with ThreadPoolExecutor(len(cases)) as threads:
        for done in [threads.submit(check, case) for case in cases]:
            done.result()


def states(admin, name):
    """Of the process's connections, as the server sees them."""
    with admin.cursor() as cursor:
        cursor.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", (name,))
        return [state for (state,) in cursor.fetchall()]


def answer(server, path):
    """Status and body; what came instead of them."""
    try:
        response = server.get(path)
        return response.status, response.body
    except (http.client.HTTPException, OSError) as error:
        return type(error).__name__, b""


def storm(server, admin, name, path="/", body=b"42"):
    """200 requests at once: all are answered, by at most 10 connections."""
    with ThreadPoolExecutor(200) as clients:
        answers = [clients.submit(answer, server, path) for _ in range(200)]
        sizes = []
        while not all(request.done() for request in answers):
            sizes.append(len(states(admin, name)))
        assert {request.result() for request in answers} == {(200, body)}, server.output.read_text()[-3000:]
    assert 0 < max(sizes) <= POOL_SIZE, sizes


def stop_under_load(server, admin, name, path="/?{}", in_time=0.5, body=b"42"):
    """SIGTERM while 5 requests take `in_time` seconds and 5 a minute. Returns the answers to the latter."""
    with ThreadPoolExecutor(10) as clients:
        quick = [clients.submit(answer, server, path.format(in_time)) for _ in range(5)]
        slow = [clients.submit(answer, server, path.format(60)) for _ in range(5)]
        wait_until(lambda: states(admin, name).count("active") == POOL_SIZE)
        status = server.stop()
        output = server.output.read_text()
        assert {request.result() for request in quick} == {(200, body)}, output[-3000:]
        assert status == 0, output[-3000:]
    wait_until(lambda: states(admin, name) == [], 5)
    return [request.result() for request in slow]
