"""Asynchronous connections (`async_=True`): they work under `patch()`, and `greenpg.wait()` drives them by the hub."""

import psycopg2
import pytest
from kit import Killed, Task, is_waiting, run_all, wait_until
from proxy import Proxy
from psycopg2 import extensions, extras

import greenpg
from greenpg.errors import ConnectionInUse, WaitTimeout

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def conn(dsn):
    conn = psycopg2.connect(dsn, async_=True)
    greenpg.wait(conn)
    yield conn
    conn.close()


def waits(conn):
    return is_waiting(conn)


def test_connecting_returns_before_there_is_a_connection(dsn):
    conn = greenpg.connect(dsn, async_=True)
    assert isinstance(conn, greenpg.Connection)
    assert conn.async_ == 1
    assert conn.isexecuting()
    greenpg.wait(conn)
    assert not conn.isexecuting()
    assert conn.status == extensions.STATUS_READY
    conn.close()


def test_query(conn):
    cur = conn.cursor()
    cur.execute("SELECT %s, pg_sleep(0.05)", ("x",))
    assert conn.isexecuting()
    with pytest.raises(psycopg2.ProgrammingError):
        cur.fetchone()
    greenpg.wait(conn)
    assert cur.fetchone() == ("x", "")


def test_psycopg2s_own_loop_works_too(dsn):
    conn = psycopg2.connect(dsn, async_=True)
    extras.wait_select(conn)
    cur = conn.cursor()
    cur.execute("SELECT 1")
    extras.wait_select(conn)
    assert cur.fetchone() == (1,)
    conn.close()


def test_an_error_of_the_query(conn):
    cur = conn.cursor()
    cur.execute("SELECT 1/0")
    with pytest.raises(psycopg2.errors.DivisionByZero):
        greenpg.wait(conn)
    cur.execute("SELECT 1")
    greenpg.wait(conn)
    assert cur.fetchone() == (1,)


def test_an_error_of_connecting(dsn):
    conn = greenpg.connect(dsn, dbname="there is none", async_=True)
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        greenpg.wait(conn)
    conn.close()


def test_other_tasks_run_meanwhile(dsn):
    """The last one to be asked for lets all the others go: one after the other they would wait for ever."""

    def sleeper():
        conn = greenpg.connect(dsn, async_=True)
        greenpg.wait(conn)
        cur = conn.cursor()
        cur.execute("SELECT pg_advisory_xact_lock_shared(7)")
        greenpg.wait(conn, timeout=20)
        conn.close()

    holder = greenpg.connect(dsn)
    holder.cursor().execute("SELECT pg_advisory_xact_lock(7)")
    sleepers = [Task(sleeper) for _ in range(10)]

    def blocked():
        cur = holder.cursor()
        cur.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cur.fetchone()[0] == 10

    wait_until(blocked)
    holder.commit()
    for task in sleepers:
        task.result()
    holder.close()


def test_a_transaction_by_execute(conn, admin):
    """An asynchronous connection is always in autocommit, but BEGIN is a statement like any other."""
    cur = conn.cursor()
    for statement in ("CREATE TEMP TABLE t (n int)", "BEGIN", "INSERT INTO t VALUES (1)", "ROLLBACK"):
        cur.execute(statement)
        greenpg.wait(conn)
    cur.execute("SELECT count(*) FROM t")
    greenpg.wait(conn)
    assert cur.fetchone() == (0,)


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.commit(),
        lambda conn: conn.rollback(),
        lambda conn: conn.reset(),
        lambda conn: conn.set_session(readonly=True),
        lambda conn: setattr(conn, "autocommit", False),
        lambda conn: conn.set_client_encoding("LATIN1"),
        lambda conn: conn.tpc_begin(conn.xid(1, "a", "b")),
        lambda conn: conn.cursor("named"),
        lambda conn: conn.cursor().executemany("SELECT %s", [(1,)]),
    ],
    ids=["commit", "rollback", "reset", "set_session", "autocommit", "encoding", "tpc", "named cursor", "executemany"],
)
def test_psycopg2s_limits(conn, call):
    """Documented in the README: these are refused, and the connection is unharmed."""
    with pytest.raises(psycopg2.ProgrammingError, match="async"):
        call(conn)
    cur = conn.cursor()
    cur.execute("SELECT 1")
    greenpg.wait(conn)
    assert cur.fetchone() == (1,)


def test_one_query_at_a_time(conn):
    first, second = conn.cursor(), conn.cursor()
    first.execute("SELECT 1")
    with pytest.raises(psycopg2.ProgrammingError, match="asynchronous query is underway"):
        second.execute("SELECT 2")
    greenpg.wait(conn)
    assert first.fetchone() == (1,)


def test_one_task_waits_at_a_time(conn):
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(0.2)")
    waiting = Task(greenpg.wait, conn)
    wait_until(lambda: waits(conn))
    with pytest.raises(ConnectionInUse):
        greenpg.wait(conn)
    waiting.result()


def test_timeout_cancels_nothing(conn):
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(0.3), 'done'")
    with pytest.raises(WaitTimeout, match=r"within 0\.02 s"):
        greenpg.wait(conn, timeout=0.02)
    greenpg.wait(conn)
    assert cur.fetchone()[1] == "done"


def test_timeout_of_connecting(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"]) as proxy:
        proxy.stall()
        conn = greenpg.connect(server.tcp_dsn, port=proxy.port, async_=True)
        with pytest.raises(WaitTimeout):
            greenpg.wait(conn, timeout=0.1)
        conn.close()


@green_only
def test_kill_cancels_nothing(conn):
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(0.3), 'done'")
    waiting = Task(greenpg.wait, conn)
    wait_until(lambda: waits(conn))
    waiting.throw(Killed())
    waiting.join()
    assert isinstance(waiting.error, Killed)
    greenpg.wait(conn)
    assert cur.fetchone()[1] == "done"


def test_cancel(conn, admin):
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(60)")

    def has_begun():  # a request that comes before the query finds nothing to cancel
        with admin.cursor() as look:
            look.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (conn.info.backend_pid,))
            return look.fetchone() == ("active",)

    wait_until(has_begun)
    conn.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        greenpg.wait(conn)


def test_close_throws_the_waiting_task_out(conn):
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(60)")
    waiting = Task(greenpg.wait, conn)
    wait_until(lambda: waits(conn))
    conn.close()
    with pytest.raises(psycopg2.Error):
        waiting.result()


def test_connections_of_psycopg2s_own_class(dsn):
    """As there are under patch(connect=False)."""
    from psycopg2._psycopg import _connect

    def select(n):
        conn = _connect(dsn, async_=True)
        assert type(conn) is extensions.connection
        greenpg.wait(conn)
        cur = conn.cursor()
        cur.execute("SELECT %s", (n,))
        greenpg.wait(conn, timeout=20)
        try:
            return cur.fetchone()[0]
        finally:
            conn.close()

    assert run_all([lambda n=n: select(n) for n in range(5)]) == list(range(5))


def test_notifications(conn, admin):
    cur = conn.cursor()
    cur.execute("LISTEN a")
    greenpg.wait(conn)
    admin.cursor().execute("NOTIFY a, 'x'")
    assert conn.wait_notify(10).payload == "x"
