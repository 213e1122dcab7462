"""`ConnectionPool` on a real server."""

import gc
import logging
import time
import weakref

import psycopg2
import psycopg2.extras
import pytest
from kit import Task, either_pool, is_waiting, run_all, wait_until

import greenpg
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


def backend_pid(conn):
    return conn.info.backend_pid


# -- opening and closing


@either_pool
def test_opens_itself_at_first_use(make_pool):
    pool = make_pool(min_size=1)
    assert pool.closed
    assert "not open yet" in repr(pool)
    with pool.connection() as conn:
        assert isinstance(conn, greenpg.Connection)
    assert not pool.closed


@either_pool
def test_open_false_waits_to_be_opened(make_pool):
    pool = make_pool(min_size=1, open=False)
    with pytest.raises(greenpg.PoolClosed, match="not open yet: call open"):
        pool.getconn()
    pool.open()
    pool.open()
    with pool.connection():
        pass


def test_open_and_wait(make_pool):
    pool = make_pool(min_size=3, open=False)
    pool.open(wait=True)
    assert pool.get_stats()["pool_available"] == 3
    pool.wait()


def test_wait_raises_and_closes_when_the_server_is_not_there(make_pool, tmp_path):
    pool = make_pool(f"host={tmp_path}", min_size=2)
    with pytest.raises(greenpg.PoolTimeout, match=r"0 of 2 connections after 0\.20 s.*No such file"):
        pool.wait(timeout=0.2)
    assert pool.closed


def test_with_block_closes(make_pool, admin):
    with make_pool(min_size=2, kwargs={"application_name": "with_block"}) as pool:
        pool.wait()
    assert pool.closed
    with pytest.raises(greenpg.PoolClosed, match="already closed"):
        pool.getconn()
    with pytest.raises(greenpg.PoolClosed, match="make a new one"):
        pool.open()
    pool.close()
    wait_until(lambda: count_backends(admin, "with_block") == 0)


def count_backends(admin, application_name):
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (application_name,))
        return cur.fetchone()[0]


@either_pool
def test_close_sends_waiting_tasks_away_and_closes_lent_connections_later(make_pool):
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    waiting = [Task(pool.getconn) for _ in range(3)]
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 3)
    pool.close()
    for task in waiting:
        with pytest.raises(greenpg.PoolClosed, match="closed while the request was waiting"):
            task.result()
    conn.cursor().execute("SELECT 1")  # still the borrower's
    conn.rollback()
    pool.putconn(conn)
    assert conn.closed


def test_forgotten_pool_is_collected(dsn, make_pool):
    pool = greenpg.ConnectionPool(dsn, min_size=2)
    pool.wait()
    with pool.connection() as conn:
        pass
    ref, conn_ref = weakref.ref(pool), weakref.ref(conn)
    del pool, conn
    hub().sleep(0.05)
    gc.collect()
    assert ref() is None
    assert conn_ref() is None


def test_forgotten_pool_that_tries_to_connect_is_collected(tmp_path):
    pool = greenpg.ConnectionPool(f"host={tmp_path}", min_size=1, open=True)
    workers = pool._core.workers
    wait_until(lambda: workers.last_error)
    ref = weakref.ref(pool)
    del pool
    gc.collect()
    wait_until(lambda: ref() is None)
    wait_until(lambda: not workers.resting)


# -- lending


@either_pool
def test_block_commits_and_rolls_back(make_pool, admin):
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS pool_block; CREATE TABLE pool_block (n int)")
    pool = make_pool(min_size=1)
    with pool.cursor() as cur:
        cur.execute("INSERT INTO pool_block VALUES (1)")
    with pytest.raises(ZeroDivisionError), pool.cursor() as cur:
        cur.execute("INSERT INTO pool_block VALUES (2)")
        1 / 0  # noqa: B018
    with pool.connection() as conn:
        conn.cursor().execute("INSERT INTO pool_block VALUES (3)")
    with pytest.raises(psycopg2.errors.UndefinedTable), pool.connection() as conn:
        conn.cursor().execute("INSERT INTO pool_block VALUES (4)")
        conn.cursor().execute("SELECT * FROM no_such_table")
    with admin.cursor() as cur:
        cur.execute("SELECT n FROM pool_block ORDER BY n; ")
        assert cur.fetchall() == [(1,), (3,)]
        cur.execute("DROP TABLE pool_block")


def test_cursor_of_a_factory_and_closed_after_the_block(make_pool):
    pool = make_pool(min_size=1)
    with pool.cursor(psycopg2.extras.RealDictCursor) as cur:
        cur.execute("SELECT 1 AS one")
        assert cur.fetchone() == {"one": 1}
    assert cur.closed
    with pytest.raises(TypeError), pool.cursor(cursor_factory=lambda *args: None):
        pass
    assert pool.get_stats()["pool_available"] == 1


def test_never_more_than_max_size(make_pool, admin):
    pool = make_pool(min_size=0, max_size=5, kwargs={"application_name": "max_size"})
    most = 0

    def work():
        with pool.cursor() as cur:
            cur.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'max_size'")
            nonlocal most
            most = max(most, cur.fetchone()[0])
            cur.execute("SELECT pg_sleep(0.01)")

    run_all([work] * 60)
    assert most <= 5
    assert pool.get_stats()["pool_size"] == 5


def test_oldest_used_first(make_pool):
    pool = make_pool(min_size=3)
    pool.wait()
    pids = []
    for _ in range(6):
        with pool.connection() as conn:
            pids.append(backend_pid(conn))
    assert len(set(pids)) == 3
    assert pids[:3] == pids[3:]


@either_pool
def test_first_come_first_served(make_pool):
    pool = make_pool(min_size=1)
    order = []

    def work(n):
        with pool.cursor() as cur:
            order.append(n)
            cur.execute("SELECT pg_sleep(0.002)")

    pool.wait()
    tasks = []
    for n in range(50):
        tasks.append(Task(work, n))
        # Native threads start in any order; each gets into the line before the next is started.
        wait_until(lambda n=n: len(order) + pool.get_stats()["requests_waiting"] == n + 1)
    for task in tasks:
        task.result()
    assert order == list(range(50))


@either_pool
def test_who_returns_and_asks_again_goes_to_the_end_of_the_line(make_pool):
    pool = make_pool(min_size=1)
    log = []
    conn = pool.getconn()

    def other():
        with pool.connection():
            log.append("other")

    task = Task(other)
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    pool.putconn(conn)
    with pool.connection():
        log.append("again")
    task.result()
    assert log == ["other", "again"]


def test_pg_sleep_of_100_tasks_on_10_connections_runs_ten_at_a_time(make_pool):
    pool = make_pool(min_size=10)
    pool.wait()

    def work():
        with pool.cursor() as cur:
            cur.execute("SELECT clock_timestamp(), pg_sleep(0.05)")
            cur.execute("SELECT clock_timestamp()")

    run_all([work] * 100)  # the guard watches the hub
    stats = pool.get_stats()
    assert stats["pool_size"] == 10
    assert stats["requests_num"] == 100
    assert stats["requests_queued"] >= 80


def test_grows_one_connection_at_a_time_and_only_as_needed(make_pool):
    pool = make_pool(min_size=1, max_size=10)
    pool.wait()
    for _ in range(20):
        with pool.connection():
            pass
    assert pool.get_stats()["pool_size"] == 1
    conns = [pool.getconn() for _ in range(4)]
    assert pool.get_stats()["pool_size"] == 4
    for conn in conns:
        pool.putconn(conn)


# -- returning


def test_putconn_refuses_what_it_has_not_lent(make_pool, dsn):
    pool, other = make_pool(min_size=1, name="mine"), make_pool(min_size=1, name="other")
    foreign = greenpg.connect(dsn)
    with pytest.raises(ValueError, match="to pool 'mine', it doesn't come from any pool"):
        pool.putconn(foreign)
    foreign.close()
    with other.connection() as conn, pytest.raises(ValueError, match="it comes from pool 'other'"):
        pool.putconn(conn)
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(ValueError, match="it has been returned already"):
        pool.putconn(conn)
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        pool.putconn(None)
    assert pool.get_stats()["pool_available"] == 1


def test_transaction_left_open_is_rolled_back_with_a_warning(make_pool, caplog):
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    conn.cursor().execute("CREATE TABLE left_open (n int)")
    with caplog.at_level(logging.WARNING, "greenpg.pool"):
        pool.putconn(conn)
    assert "rolling back returned connection" in caplog.text
    with pool.cursor() as cur:
        assert cur.connection is conn
        cur.execute("SELECT to_regclass('left_open')")
        assert cur.fetchone() == (None,)


def test_broken_connection_is_replaced(make_pool, admin, caplog):
    pool = make_pool(min_size=2)
    pool.wait()
    with pytest.raises(psycopg2.OperationalError), pool.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert "discarding closed connection" in caplog.text
    wait_until(lambda: pool.get_stats()["pool_available"] == 2)
    assert pool.get_stats()["returns_bad"] == 1


@either_pool
def test_leaving_a_block_on_a_closed_connection_does_not_raise(make_pool):
    pool = make_pool(min_size=1)
    with pool.connection() as conn:
        conn.close()
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.close()
        1 / 0  # noqa: B018
    with pytest.raises(psycopg2.InterfaceError, match="already closed") as caught, pool.connection() as conn:
        conn.execute("SELECT 1")
        conn.close()
    assert greenpg.errors.commit_outcome(caught.value) == greenpg.errors.UNKNOWN
    with pool.cursor() as cur:
        cur.execute("SELECT 1")


@green_only
@either_pool
def test_connection_returned_while_another_task_uses_it_is_not_lent_on(make_pool):
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    task = Task(lambda: conn.cursor().execute("SELECT pg_sleep(0.1)"))
    wait_until(lambda: is_waiting(conn))
    pool.putconn(conn)
    with pool.connection() as other:
        assert other is not conn
    task.join()


@either_pool
def test_expired_connection_is_replaced(make_pool):
    pool = make_pool(min_size=1, max_lifetime=0)
    with pool.connection() as first:
        pass
    with pool.connection() as second:
        pass
    assert first.closed
    assert first is not second


def test_connection_returned_inside_its_block(make_pool):
    pool = make_pool(min_size=1)
    with pool.connection() as conn:
        pool.putconn(conn)
        with pool.connection() as again:
            assert again is conn
            again.cursor().execute("SELECT 1")
    assert pool.get_stats()["pool_available"] == 1


# -- callbacks and parameters


def test_configure_and_reset_and_autocommit(make_pool):
    def configure(conn):
        conn.cursor().execute("SET my.setting = 'configured'")

    resets = []
    pool = make_pool(min_size=1, kwargs={"autocommit": True}, configure=configure, reset=resets.append)
    with pool.connection() as conn:
        assert conn.autocommit
        with conn.cursor() as cur:
            cur.execute("SHOW my.setting")
            assert cur.fetchone() == ("configured",)
    wait_until(lambda: resets == [conn])


@either_pool
def test_configure_that_leaves_a_transaction_open(make_pool, caplog):
    pool = make_pool(min_size=1, configure=lambda conn: conn.cursor().execute("SELECT 1"), reconnect_timeout=0)
    with pytest.raises(greenpg.PoolTimeout, match="left in status INTRANS by configure function"):
        pool.getconn(timeout=0.3)


@pytest.mark.parametrize("reset", [lambda conn: 1 / 0, lambda conn: conn.cursor().execute("SELECT 1")])
def test_reset_that_fails_discards_the_connection(make_pool, reset, caplog):
    pool = make_pool(min_size=1, reset=reset)
    with pool.connection() as conn:
        pass
    wait_until(lambda: conn.closed)
    assert "division by zero" in caplog.text or "left in status INTRANS by reset function" in caplog.text
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)


@either_pool
def test_conninfo_and_kwargs_may_be_callables(make_pool, dsn):
    asked = []
    pool = make_pool(lambda: asked.append("conninfo") or dsn, kwargs=lambda: {"application_name": "called"}, min_size=2)
    pool.wait()
    with pool.cursor() as cur:
        cur.execute("SHOW application_name")
        assert cur.fetchone() == ("called",)
    assert asked == ["conninfo"] * 2


def test_close_returns(make_pool):
    pool = make_pool(min_size=1, close_returns=True)
    conn = pool.getconn()
    conn.close()
    assert not conn.closed
    assert pool.get_stats()["pool_available"] == 1
    with pool.connection() as again:
        assert again is conn
        again.close()
    assert pool.get_stats()["pool_available"] == 1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"min_size": 0, "max_size": 0}, ValueError, "max_size must be at least 1"),
        ({"max_size": 0}, ValueError, "max_size must be at least 1"),
        ({"min_size": -1}, ValueError, "min_size can't be negative"),
        ({"min_size": 5, "max_size": 4}, ValueError, r"max_size \(4\) can't be less than min_size \(5\)"),
        ({"timeout": -1}, ValueError, "timeout can't be negative"),
        ({"timeout": float("nan")}, ValueError, "timeout can't be negative"),
        ({"max_waiting": -1}, ValueError, "max_waiting can't be negative"),
        ({"num_workers": 0}, ValueError, "num_workers must be at least 1"),
        ({"connection_class": dict}, TypeError, "connection_class must be a class derived from"),
        ({"kwargs": {"connection_factory": dict}}, TypeError, "use the pool's connection_class"),
        ({"kwargs": {"async_": True}}, TypeError, "made green by greenpg.patch"),
        ({"kwargs": ["x"]}, TypeError, "kwargs must be a mapping"),
        ({"kwargs": {"no_such": 1, "password": "hunter2"}}, psycopg2.ProgrammingError, "no_such"),
        ({"conninfo": 5}, TypeError, "conninfo must be a string"),
        ({"conninfo": "postgresql://u:hunter2@h:port%/"}, psycopg2.ProgrammingError, "a connection string is a URI"),
    ],
)
def test_senseless_parameters(options, error, text):
    with pytest.raises(error, match=text) as caught:
        greenpg.ConnectionPool(**options)
    assert "hunter2" not in str(caught.value)


def test_negative_timeout_in_getconn(make_pool):
    pool = make_pool(min_size=1)
    pool.wait()
    with pytest.raises(ValueError, match="timeout can't be negative: -1"):
        pool.getconn(timeout=-1)
    with pytest.raises(ValueError, match="timeout can't be negative"), pool.cursor(timeout=-0.5):
        pass
    assert pool.get_stats()["pool_available"] == 1


# -- running out


def test_pool_timeout_says_what_is_going_on(make_pool):
    pool = make_pool(min_size=1, name="small")
    with pool.connection():
        start = time.monotonic()
        with pytest.raises(greenpg.PoolTimeout) as caught:
            pool.getconn(timeout=0.05)
        assert time.monotonic() - start >= 0.05
        text = str(caught.value)
        assert "from pool 'small' after 0.05 s: 1 of 1 connections, 1 lent, 0 connecting, 0 requests waiting" in text
        assert "has held one for" in text
        with pytest.raises(greenpg.PoolTimeout):
            pool.getconn(timeout=0)
    assert isinstance(caught.value, psycopg2.OperationalError)
    pool.putconn(pool.getconn(timeout=0))


@either_pool
def test_pool_timeout_tells_the_last_connection_error(make_pool):
    pool = make_pool("host=127.0.0.1 port=1 user=x password=hunter2", min_size=1)
    with pytest.raises(greenpg.PoolTimeout, match="last connection error: OperationalError.*refused") as caught:
        pool.getconn(timeout=0.2)
    assert "hunter2" not in str(caught.value)


def test_wrong_password(make_pool):
    from greenpg.embedded import server

    with server(password="hunter2") as dsn:
        greenpg.connect(dsn).close()
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed") as caught:
            greenpg.connect(dsn, password="hunter3")
        assert "hunter3" not in str(caught.value)
        pool = make_pool(dsn, kwargs={"password": "hunter3"}, min_size=1)
        with pytest.raises(greenpg.PoolTimeout, match="password authentication failed") as caught:
            pool.getconn(timeout=0.3)
        assert "hunter" not in str(caught.value)
        assert "hunter" not in repr(pool)
        pool.close()


@either_pool
def test_max_waiting(make_pool):
    pool = make_pool(min_size=1, max_waiting=2)
    with pool.connection():
        waiting = [Task(lambda: pool.putconn(pool.getconn())) for _ in range(2)]
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 2)
        with pytest.raises(greenpg.TooManyRequests, match="already 2 requests waiting"):
            pool.getconn()
    for task in waiting:
        task.result()
    assert pool.get_stats()["requests_errors"] == 1


def test_server_that_comes_back_is_found(make_pool):
    from greenpg.embedded import Server

    with Server() as server:
        pool = make_pool(server.dsn, min_size=2)
        pool.wait()
        server.stop()
        with pytest.raises(greenpg.PoolTimeout, match="last connection error: OperationalError"):
            pool.getconn(timeout=0.3)
        server.start()
        with pool.cursor() as cur:
            cur.execute("SELECT 1")
        wait_until(lambda: pool.get_stats()["pool_size"] == 2)
        pool.close()


def test_reconnect_failed_is_called_and_a_later_request_tries_again(make_pool, tmp_path, dsn):
    calls, address = [], [f"host={tmp_path}"]
    pool = make_pool(lambda: address[0], min_size=1, reconnect_timeout=0, reconnect_failed=calls.append)
    with pytest.raises(greenpg.PoolTimeout):
        pool.getconn(timeout=0.1)
    assert set(calls) == {pool}
    wait_until(lambda: pool.get_stats()["pool_size"] == 0)
    address[0] = dsn
    with pool.cursor() as cur:
        cur.execute("SELECT 1")


# -- stats


def test_stats(make_pool):
    pool = make_pool(min_size=1, max_size=2, name="counted")
    pool.wait()
    with pool.cursor() as cur:
        cur.execute("SELECT pg_sleep(0.02)")
    stats = pool.get_stats()
    assert stats["pool_min"] == 1
    assert stats["pool_max"] == 2
    assert stats["pool_size"] == stats["pool_available"] == stats["connections_num"] == stats["requests_num"] == 1
    assert stats["usage_ms"] >= 20
    assert all(isinstance(value, int) for value in stats.values())
    assert pool.pop_stats() == stats
    assert pool.get_stats()["requests_num"] == 0
    assert "'counted' open: 1 of 2 connections, 0 lent, 0 waiting" in repr(pool)


def test_pools_connect_by_what_psycopg2_connect_is(make_pool, monkeypatch):
    """Instrumentation replaces it, and may put a proxy around what it gives."""
    seen = []
    connect = psycopg2.connect

    class Proxy:
        def __init__(self, conn):
            self.__wrapped__ = conn

    def instrumented(*args, **kwargs):
        cursor_factory = kwargs.pop("cursor_factory", None) or psycopg2.extensions.cursor

        class Traced(cursor_factory):
            def execute(self, query, vars=None):
                seen.append(query)
                super().execute(query, vars)

        return Proxy(connect(*args, cursor_factory=Traced, **kwargs))

    monkeypatch.setattr(psycopg2, "connect", instrumented)
    pool = make_pool(min_size=1, kwargs={"cursor_factory": psycopg2.extras.DictCursor, "application_name": "traced"})
    with pool.cursor() as cur:
        cur.execute("SELECT current_setting('application_name') AS name")
        assert cur.fetchone()["name"] == "traced"
    assert seen == ["SELECT current_setting('application_name') AS name"]
    assert pool.fetchval("SELECT 1") == 1
