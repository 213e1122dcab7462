"""What has been given back can't be used, and nobody who keeps it harms the next borrower."""

import io

import psycopg2
import pytest
from kit import Task, wait_until
from psycopg2 import extensions

from greenpg import errors
from greenpg.hubs import hub
from greenpg.pool import returning


def test_a_returned_connection_is_refused_until_it_is_lent_again(make_pool):
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    cur = conn.cursor()
    cur.execute("SELECT 1")
    conn.commit()
    pool.putconn(conn)
    for use in (
        lambda: cur.execute("SELECT 1"),
        lambda: conn.cursor().execute("SELECT 1"),
        conn.rollback,
        conn.commit,
        lambda: conn.set_session(autocommit=True),
        lambda: cur.executemany("SELECT %s", [(1,), (2,)]),
        lambda: cur.copy_expert("COPY (SELECT 1) TO STDOUT", io.StringIO()),
    ):
        with pytest.raises(errors.ConnectionReturned, match="has been given back to its pool") as info:
            use()
        assert errors.safe_to_retry(info.value)
    assert cur.fetchone() == (1,)  # what it has fetched already is its own
    with pool.connection() as again:
        assert again is conn
        with pytest.raises(errors.ConnectionReturned):
            cur.execute("SELECT 1")
        assert again.execute("SELECT 2").fetchone() == (2,)


@pytest.mark.parametrize("block", ["connection", "cursor", "transaction"])
def test_cursors_of_blocks_are_void_after_them(make_pool, block):
    pool = make_pool(min_size=1)
    with getattr(pool, block)() as it:
        cur = it if block == "cursor" else it.cursor()
        cur.execute("SELECT 1")
        named = None if block == "cursor" else it.cursor("named")
        if named:
            named.execute("SELECT generate_series(1, 10)")
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        with pytest.raises(psycopg2.InterfaceError):
            cur.execute("SELECT 1")
        if named:
            with pytest.raises(errors.ConnectionReturned):
                named.fetchone()
            named.close()
        assert conn.info.transaction_status == 2


def test_close_of_a_lent_connection_gives_its_slot_back(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    for _ in range(3):
        conn = pool.getconn()
        conn.cursor().execute("SELECT 1")
        conn.close()
        assert conn.closed
        conn.close()
        pool.putconn(conn)  # as many do; harmless
    with pool.connection() as conn:
        conn.close()
    assert pool.fetchval("SELECT 1") == 1
    assert pool.get_stats()["pool_size"] == 1


@pytest.mark.parametrize("autocommit", [True, False])
def test_close_by_another_task_while_a_statement_runs(make_pool, autocommit):
    pool = make_pool(min_size=1, max_size=1, timeout=5, kwargs={"autocommit": autocommit})
    for _ in range(5):
        conn = pool.getconn(take_back=False)

        def use(conn=conn):
            try:
                conn.execute("SELECT pg_sleep(20)")
            finally:
                pool.putconn(conn)  # before close() has closed it, or after

        task = Task(use)
        wait_until(lambda conn=conn: conn.get_transaction_status() == extensions.TRANSACTION_STATUS_ACTIVE)
        conn.close()
        with pytest.raises(psycopg2.OperationalError):
            task.result()
        assert pool.fetchval("SELECT 1") == 1
    assert pool.get_stats()["pool_size"] == 1


def test_a_block_that_closes_its_connection_in_a_transaction_hears_of_it(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    for block in (pool.connection, pool.transaction):
        with pytest.raises(psycopg2.InterfaceError), block() as conn:
            conn.execute("SELECT 1")
            conn.close()
    assert pool.fetchval("SELECT 1") == 1


def test_close_of_a_returned_connection_does_nothing(make_pool):
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    pool.putconn(conn)
    conn.close()
    assert not conn.closed
    assert pool.fetchval("SELECT 1") == 1


def test_a_connection_in_which_a_task_waits_is_not_lent_on(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5, kwargs={"autocommit": True})
    conn = pool.getconn()
    conn.execute("LISTEN x")
    task = Task(lambda: conn.wait_notify(timeout=10))
    wait_until(lambda: conn._gate.owner is not None)
    pool.putconn(conn)
    assert pool.fetchval("SELECT 1") == 1
    with pytest.raises(psycopg2.Error):
        task.result()


@pytest.mark.only_hub("gevent", "threads")  # a task of eventlet's spawn_n() ends unseen
def test_a_connection_that_was_taken_back_refuses_its_former_user(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    kept = []

    def forgetful():
        kept.append(pool.getconn())
        kept[0].execute("SELECT 1")

    Task(forgetful).result()
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        with pytest.raises(psycopg2.InterfaceError):
            kept[0].cursor().execute("SELECT 2")
        assert conn.info.transaction_status == 2


def test_an_open_deadline_block_ends_with_the_borrowing(make_pool):
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    conn.deadline(0.2).__enter__()
    pool.putconn(conn)
    hub().sleep(0.3)
    assert pool.fetchval("SELECT 1") == 1


def test_a_reset_function_that_does_not_end_costs_its_connection_only(make_pool, monkeypatch, caplog):
    monkeypatch.setattr(returning, "_RESET_TIMEOUT", 0.1)

    def reset(conn):
        conn.execute("SELECT pg_sleep(60)")

    pool = make_pool(min_size=1, max_size=1, timeout=5, reset=reset)
    first = pool.fetchval("SELECT pg_backend_pid()")
    assert pool.fetchval("SELECT pg_backend_pid()") != first
    assert "error resetting connection: the block took longer than its deadline" in caplog.text
