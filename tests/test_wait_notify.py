"""`conn.notifies` and `conn.wait_notify()`: notifications on a connection of one's own."""

from collections import deque

import psycopg2
import pytest
from kit import Killed, Task, is_waiting, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.errors import ConnectionInUse

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def conn(dsn):
    conn = greenpg.connect(dsn)
    conn.autocommit = True
    with conn.cursor() as cur:
        cur.execute("LISTEN a")
    yield conn
    conn.close()


def notify(admin, *payloads):
    with admin.cursor() as cur:
        for payload in payloads:
            cur.execute("SELECT pg_notify('a', %s)", (payload,))


def waits(conn):
    return is_waiting(conn)


def test_notifies_as_in_psycopg2(conn, admin):
    """Received with every query, and by poll()."""
    notify(admin, "1", "2")
    with conn.cursor() as cur:
        cur.execute("SELECT 1")
    assert [note.payload for note in conn.notifies] == ["1", "2"]
    notify(admin, "3")

    def poll():
        conn.poll()
        return len(conn.notifies) == 3

    wait_until(poll)
    first = conn.notifies[0]
    assert (first.channel, first.payload, first.pid) == ("a", "1", admin.info.backend_pid)
    assert first == (admin.info.backend_pid, "a"), "as psycopg2 compares them"


def test_wait_notify(conn, admin):
    assert conn.wait_notify(timeout=0) is None
    assert conn.wait_notify(timeout=0.02) is None
    waiting = Task(conn.wait_notify)
    wait_until(lambda: waits(conn))
    notify(admin, "1", "2")
    assert waiting.result().payload == "1"
    assert conn.wait_notify(10).payload == "2"
    assert conn.notifies == []


def test_those_that_came_with_a_query(conn, admin):
    notify(admin, "1", "2")
    with conn.cursor() as cur:
        cur.execute("NOTIFY a, 'own'")
        cur.execute("SELECT 1")
    assert [conn.wait_notify(10).payload for _ in range(3)] == ["1", "2", "own"]


def test_notifies_may_be_a_deque(conn, admin):
    conn.notifies = deque(maxlen=2)
    notify(admin, "1", "2", "3")
    with conn.cursor() as cur:
        cur.execute("SELECT 1")
    assert [conn.wait_notify(10).payload for _ in range(2)] == ["2", "3"]


def test_in_a_transaction_it_would_wait_in_vain(conn, admin):
    conn.autocommit = False
    with conn.cursor() as cur:
        cur.execute("SELECT 1")
        with pytest.raises(psycopg2.ProgrammingError, match="commit first, or set autocommit"):
            conn.wait_notify(10)
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cur.execute("SELECT 1/0")
        with pytest.raises(psycopg2.ProgrammingError, match="commit first, or set autocommit"):
            conn.wait_notify(10)
    conn.rollback()
    notify(admin, "1")
    assert conn.wait_notify(10).payload == "1"


def test_other_tasks_are_refused_meanwhile(conn, admin):
    waiting = Task(conn.wait_notify, 20)
    wait_until(lambda: waits(conn))
    cur = conn.cursor()
    for call in (lambda: cur.execute("SELECT 1"), conn.commit, conn.rollback, lambda: conn.wait_notify(1)):
        with pytest.raises(ConnectionInUse):
            call()
    notify(admin, "1")
    assert waiting.result().payload == "1"
    cur.execute("SELECT 1")


def test_close_throws_it_out(conn):
    waiting = Task(conn.wait_notify)
    wait_until(lambda: waits(conn))
    conn.close()
    with pytest.raises(psycopg2.OperationalError):
        waiting.result()
    with pytest.raises(psycopg2.InterfaceError):
        conn.wait_notify(1)


def test_lost_connection(conn, admin):
    waiting = Task(conn.wait_notify)
    wait_until(lambda: waits(conn))
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(psycopg2.OperationalError):
        waiting.result()
    assert conn.closed


def test_lost_before_it_waits(conn, admin):
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
    with pytest.raises(psycopg2.OperationalError):
        conn.wait_notify(10)


@green_only
def test_a_kill_leaves_the_connection_as_it_was(conn, admin):
    waiting = Task(conn.wait_notify)
    wait_until(lambda: waits(conn))
    waiting.throw(Killed())
    waiting.join()
    assert isinstance(waiting.error, Killed)
    assert not waits(conn)
    notify(admin, "1")
    assert conn.wait_notify(10).payload == "1"
    with conn.cursor() as cur:
        cur.execute("SELECT 1")


@green_only
def test_a_timeout_of_the_hub(conn, admin, hub_name):
    module = pytest.importorskip(hub_name)
    heard = []
    for n in range(20):
        with module.Timeout(0.003, False):
            while True:
                heard.append(conn.wait_notify().payload)
        notify(admin, str(n))
    while len(heard) < 20:
        heard.append(conn.wait_notify(10).payload)
    assert heard == [str(n) for n in range(20)]


def test_on_an_asynchronous_connection(dsn, admin):
    conn = greenpg.connect(dsn, async_=True)
    greenpg.wait(conn)
    cur = conn.cursor()
    cur.execute("LISTEN a")
    with pytest.raises(psycopg2.ProgrammingError, match="asynchronous query is underway"):
        conn.wait_notify(1)
    greenpg.wait(conn)
    notify(admin, "1")
    assert conn.wait_notify(10).payload == "1"
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    conn.close()
