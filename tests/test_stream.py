"""pool.stream(): a big result in chunks; however it ends, the connection comes back."""

import gc
import logging

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions

from greenpg import PoolTimeout
from greenpg.errors import ConnectionInUse
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
NUMBERS = "SELECT generate_series(1, %s)"


@pytest.fixture
def pool(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    pool.wait()
    return pool


def is_whole(pool):
    """All connections are there, with no transaction left on them."""
    wait_until(lambda: pool.get_stats().get("pool_available") == 1)
    with pool.connection() as conn:
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        with conn.cursor() as cur:
            cur.execute("SELECT count(*) FROM pg_cursors")
            assert cur.fetchone() == (0,)
    wait_until(lambda: pool.get_stats().get("pool_available") == 1)
    return True


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 1000])
def test_all_rows(pool, count):
    stream = pool.stream(NUMBERS, (count,), chunk_size=100)
    assert pool.get_stats()["pool_available"] == 1  # nothing is borrowed before the first row
    assert list(stream) == [(n,) for n in range(1, count + 1)]
    assert pool.get_stats()["pool_available"] == 1
    assert list(stream) == []
    stream.close()
    assert is_whole(pool)


def test_arguments(pool):
    extras = psycopg2.extras
    assert [row["n"] for row in pool.stream("SELECT 1 AS n", cursor_factory=extras.RealDictCursor)] == [1]
    assert [row["n"] for row in pool.stream("SELECT 2 AS n", cursor_factory=extras.DictCursor)] == [2]
    named = pool.stream("SELECT %(n)s AS n", {"n": 3}, cursor_factory=extras.NamedTupleCursor)
    assert [row.n for row in named] == [3]
    with pytest.raises(ValueError, match="chunk_size"):
        pool.stream(NUMBERS, (1,), chunk_size=0)
    assert is_whole(pool)


def test_the_connection_is_back_with_the_last_chunk(pool):
    stream = iter(pool.stream(NUMBERS, (150,), chunk_size=100))
    for _ in range(100):
        next(stream)
    assert pool.get_stats()["pool_available"] == 0
    next(stream)
    assert is_whole(pool)
    assert len(list(stream)) == 49


def test_left_halfway(pool):
    for (number,) in pool.stream(NUMBERS, (10_000,), chunk_size=10):
        if number == 25:
            break
    assert is_whole(pool)


def test_left_halfway_and_gone_on_with(pool):
    stream = pool.stream(NUMBERS, (100,), chunk_size=10)
    for (number,) in stream:
        if number == 25:
            break
    assert [number for (number,) in stream] == list(range(26, 101))
    assert is_whole(pool)


def test_left_by_an_exception(pool):
    with pytest.raises(ZeroDivisionError):
        for (number,) in pool.stream(NUMBERS, (10_000,), chunk_size=10):
            if number == 25:
                raise ZeroDivisionError
    assert is_whole(pool)


def test_collected_in_a_cycle(pool):
    cycle = [pool.stream(NUMBERS, (10_000,), chunk_size=10)]
    cycle.append(cycle)
    assert next(iter(cycle[0])) == (1,)
    del cycle
    gc.collect()
    assert is_whole(pool)


def test_as_a_block(pool):
    with pool.stream(NUMBERS, (10_000,), chunk_size=10) as stream:
        assert next(iter(stream)) == (1,)
        assert pool.get_stats()["pool_available"] == 0
    assert pool.get_stats()["pool_available"] == 1
    with pytest.raises(psycopg2.InterfaceError, match="closed"):
        list(stream)
    with pytest.raises(ZeroDivisionError), pool.stream(NUMBERS, (10_000,), chunk_size=10) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert pool.get_stats()["pool_available"] == 1
    with pool.stream(NUMBERS, (10,)):
        pass
    assert is_whole(pool)


def test_closed(pool):
    stream = pool.stream(NUMBERS, (10_000,))
    next(iter(stream))
    stream.close()
    assert pool.get_stats()["pool_available"] == 1
    stream.close()
    assert is_whole(pool)


@pytest.mark.parametrize(
    ("sql", "args", "error"),
    [
        ("SELEC 1", None, psycopg2.errors.SyntaxError),
        ("SELECT 1 / (5000 - n) FROM generate_series(1, 10000) AS n", None, psycopg2.errors.DivisionByZero),
        ("DELETE FROM pg_class", None, psycopg2.errors.SyntaxError),
        ("SELECT %s, %s", (1,), IndexError),
    ],
)
def test_errors(pool, sql, args, error):
    stream = pool.stream(sql, args, chunk_size=100)
    with pytest.raises(error):
        list(stream)
    assert pool.get_stats()["pool_available"] == 1
    with pytest.raises(psycopg2.InterfaceError, match="closed"):
        list(stream)
    assert is_whole(pool)


def test_side_effects_are_committed_at_the_end_only(pool, admin):
    with admin.cursor() as cur:
        cur.execute("CREATE TABLE streamed (n int)")
        cur.execute(
            "CREATE FUNCTION note(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO streamed VALUES (n) RETURNING n'"
        )
    try:
        for _ in pool.stream("SELECT note(n) FROM generate_series(1, 100) AS n", chunk_size=10):
            break
        assert is_whole(pool)
        list(pool.stream("SELECT note(n) FROM generate_series(101, 150) AS n", chunk_size=10))
        with admin.cursor() as cur:
            cur.execute("SELECT min(n), max(n) FROM streamed")
            assert cur.fetchone() == (101, 150)
    finally:
        with admin.cursor() as cur:
            cur.execute("DROP FUNCTION note; DROP TABLE streamed")


def test_autocommit_connections(make_pool):
    pool = make_pool(min_size=1, max_size=1, kwargs={"autocommit": True})
    assert len(list(pool.stream(NUMBERS, (5000,)))) == 5000
    for _ in pool.stream(NUMBERS, (5000,), chunk_size=10):
        break
    assert is_whole(pool)
    with pytest.raises(psycopg2.errors.SyntaxError):
        list(pool.stream("SELEC"))
    with pool.connection() as conn:
        assert conn.autocommit


def test_no_connection_to_be_had(pool):
    with pool.connection():
        with pytest.raises(PoolTimeout):
            list(pool.stream(NUMBERS, (1,), timeout=0.05))
    assert is_whole(pool)


@green_only
def test_killed_in_a_chunk(pool, admin):
    stream = pool.stream("SELECT n, pg_sleep(0.1) FROM generate_series(1, 100) AS n", chunk_size=20)
    task = Task(list, stream)
    hub().sleep(0.3)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    assert is_whole(pool)
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'FETCH%'")
        assert cur.fetchone() == (0,)


@green_only
def test_killed_between_the_chunks(pool):
    def run():
        for _ in pool.stream(NUMBERS, (10_000,), chunk_size=10):
            hub().sleep(10)

    task = Task(run)
    hub().sleep(0.1)
    task.throw(Killed())
    task.join()
    assert isinstance(task.error, Killed)
    task.error = None
    assert is_whole(pool)


@green_only
def test_two_tasks(pool):
    stream = pool.stream("SELECT n, pg_sleep(0.01) FROM generate_series(1, 60) AS n", chunk_size=20)
    task = Task(list, stream)
    hub().sleep(0.05)
    with pytest.raises(ConnectionInUse):
        list(stream)
    with pytest.raises(ConnectionInUse):
        stream.close()
    assert len(task.result()) == 60
    assert is_whole(pool)


def test_the_server_ends_the_connection(pool, admin, caplog):
    caplog.set_level(logging.CRITICAL, "greenpg.pool")
    stream = pool.stream("SELECT generate_series(1, 1000), pg_backend_pid()", chunk_size=10)
    rows = iter(stream)
    pid = next(rows)[1]
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_until(lambda: cur.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)) or not cur.rowcount)
    with pytest.raises(psycopg2.OperationalError):
        list(rows)
    assert is_whole(pool)


def test_the_connection_was_returned_behind_its_back(pool):
    stream = pool.stream(NUMBERS, (10_000,), chunk_size=10)
    next(iter(stream))
    pool.putconn(stream._slot.conn)
    stream.close()
    assert is_whole(pool)


def test_many_at_once(make_pool):
    pool = make_pool(min_size=3, max_size=3)

    def run():
        assert len(list(pool.stream(NUMBERS, (3000,), chunk_size=500))) == 3000
        for _ in pool.stream(NUMBERS, (3000,), chunk_size=500):
            break

    run_all([run] * 20)
    wait_until(lambda: pool.get_stats()["pool_available"] == 3)
