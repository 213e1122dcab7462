"""Client-side deadlines, on all hubs."""

import psycopg2
import pytest
from kit import statements_running, usable, wait_until
from psycopg2 import extensions

import greenpg
from greenpg import errors
from greenpg.connection import interrupting


def test_deadline_of_a_block(conn, admin):
    with conn.deadline(0.1):
        conn.cursor().execute("SELECT pg_sleep(0.01)")
        with pytest.raises(errors.DeadlineExceeded, match=r"block took longer than its deadline of 0\.1 s") as caught:
            conn.cursor().execute("SELECT pg_sleep(60)")
    assert isinstance(caught.value, extensions.QueryCanceledError)
    assert isinstance(caught.value, psycopg2.OperationalError)
    assert caught.value.pgcode == "57014"
    wait_until(lambda: statements_running(admin) == [])
    assert usable(conn)
    conn.cursor().execute("SELECT pg_sleep(0.15)")  # no deadline any more


def test_deadline_of_the_connection(conn):
    assert conn.statement_deadline is None
    conn.statement_deadline = 0.1
    for _ in range(3):
        conn.cursor().execute("SELECT pg_sleep(0.05)")
    with pytest.raises(errors.DeadlineExceeded, match=r"statement took longer than its deadline of 0\.1 s"):
        conn.cursor().execute("SELECT pg_sleep(60)")
    assert usable(conn)
    conn.statement_deadline = None
    conn.cursor().execute("SELECT pg_sleep(0.15)")


def test_the_earliest_deadline_counts(conn):
    conn.statement_deadline = 60
    with conn.deadline(60), conn.deadline(0.05), conn.deadline(30):
        with pytest.raises(errors.DeadlineExceeded, match=r"0\.05 s"):
            conn.cursor().execute("SELECT pg_sleep(60)")
    assert usable(conn)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_senseless_deadlines(conn, seconds):
    with pytest.raises(ValueError, match="positive number of seconds"):
        conn.deadline(seconds)
    with pytest.raises(ValueError, match="positive number of seconds"):
        conn.statement_deadline = seconds


@pytest.mark.usual_times
def test_deadline_when_the_network_stalls(through_proxy, monkeypatch):
    monkeypatch.setattr(interrupting, "END_TIMEOUT", 0.3)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.cursor().execute("SELECT 1")
    proxy.stall()
    with conn.deadline(0.1), pytest.raises(errors.DeadlineExceeded):
        conn.cursor().execute("SELECT 1")
    assert conn.closed


def test_deadline_of_a_pool(make_pool):
    pool = make_pool(min_size=1, statement_deadline=0.1)
    with pytest.raises(errors.DeadlineExceeded), pool.cursor() as cur:
        cur.execute("SELECT pg_sleep(60)")
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
    assert pool.get_stats()["connections_num"] == 1, "the connection was kept"
