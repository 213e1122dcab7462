"""Dead connections are found before they're lent."""

import time

import psycopg2
import pytest
from kit import Task, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.embedded import Server
from greenpg.hubs import hub
from greenpg.pool.health import is_alive


@pytest.fixture
def own_server():
    with Server(port=0) as server:
        yield server


def pids(pool, count):
    conns = [pool.getconn() for _ in range(count)]
    for conn in conns:
        pool.putconn(conn)
    return {conn.info.backend_pid for conn in conns}


def terminate(admin, backends):
    with admin.cursor() as cur:
        for pid in backends:
            cur.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def select_one(pool):
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
        return cur.fetchone()


def test_terminated_idle_connections_are_not_lent(make_pool, admin):
    pool = make_pool(min_size=3)
    pool.wait()
    terminate(admin, pids(pool, 3))
    hub().sleep(0.01)
    for _ in range(6):
        assert select_one(pool) == (1,)
    assert pool.get_stats()["connections_lost"] == 3


def test_no_request_fails_after_a_restart_of_the_server(make_pool, own_server):
    pool = make_pool(own_server.dsn, min_size=4)
    pool.wait()
    for mode in ("fast", "immediate"):
        own_server.restart(mode)
        assert run_all([lambda: select_one(pool)] * 20) == [(1,)] * 20
    assert pool.get_stats()["pool_size"] == 4
    pool.close()


def test_at_most_one_request_in_flight_fails_for_each_connection(make_pool, own_server):
    """Crash under load; every acknowledged insert is there afterwards, no slot is lost, the size restored."""
    conn = greenpg.connect(own_server.dsn)
    conn.cursor().execute("CREATE TABLE inserted (n int PRIMARY KEY)")
    conn.commit()
    conn.close()
    pool = make_pool(own_server.dsn, min_size=5, timeout=20)
    pool.wait()
    numbers = iter(range(1_000_000))
    acknowledged, failed, back_at = [], [], []
    stop = []

    def work():
        while not stop:
            number = next(numbers)
            try:
                with pool.cursor() as cur:
                    cur.execute("INSERT INTO inserted VALUES (%s)", (number,))
            except psycopg2.OperationalError:
                failed.append(number)
            else:
                acknowledged.append(number)
                if back_at and len(back_at) == 1:
                    back_at.append(time.monotonic())
            hub().sleep(0.001)

    tasks = [Task(work) for _ in range(100 if hub().name != "threads" else 20)]
    wait_until(lambda: len(acknowledged) > 100)
    own_server.crash()
    hub().sleep(0.3)
    own_server.start()
    back_at.append(time.monotonic())
    wait_until(lambda: len(back_at) == 2)
    stop.append(True)
    for task in tasks:
        task.result()
    print(f"crash: {len(acknowledged)} inserts, {len(failed)} failed, back after {back_at[1] - back_at[0]:.3f} s")
    assert len(failed) <= 2 * 5, "one for each connection, and one for each that was being replaced"
    with pool.cursor() as cur:
        cur.execute("SELECT n FROM inserted")
        assert set(acknowledged) <= {n for (n,) in cur.fetchall()}
    wait_until(lambda: pool.get_stats()["pool_available"] == 5)
    pool.close()


def test_the_look_costs_no_round_trip_and_survives_notices(make_pool, admin):
    pool = make_pool(min_size=1, kwargs={"autocommit": True})
    with pool.cursor() as cur:
        cur.execute("LISTEN healing")
        conn = cur.connection
    with admin.cursor() as cur:
        cur.execute("NOTIFY healing, 'hello'")
    wait_until(lambda: hub().is_readable(conn.fileno()))
    assert is_alive(conn)
    assert [note.payload for note in conn.notifies] == ["hello"]
    with pool.connection() as again:
        assert again is conn
    assert pool.get_stats()["connections_num"] == 1


def test_connection_lost_makes_the_older_ones_suspects(make_pool, through_proxy):
    """Behind a proxy that swallows the end of the connections: only a ping can tell."""
    proxy, dsn = through_proxy
    pool = make_pool(dsn, min_size=2, check_idle=3600)
    pool.wait()
    pool._core.suspect_all()
    assert select_one(pool) == (1,)
    assert select_one(pool) == (1,)
    assert not any(slot.is_suspect for slot in pool._core.ledger.slots)
    proxy.cut()
    hub().sleep(0.02)
    assert select_one(pool) == (1,)
    assert pool.get_stats()["connections_lost"] >= 1


def test_idle_for_long_is_pinged(make_pool, monkeypatch):
    from greenpg.pool import failover

    pings = []
    ping = failover.ping
    monkeypatch.setattr(failover, "ping", lambda conn: (pings.append(conn), ping(conn)))
    pool = make_pool(min_size=1, check_idle=0.05)
    select_one(pool)
    hub().sleep(0.01)
    select_one(pool)
    assert pings == []
    hub().sleep(0.1)
    select_one(pool)
    assert len(pings) == 1


@pytest.mark.parametrize("code", ["57P01", "57P03", "08006"])
def test_errors_that_evict(make_pool, code):
    pool = make_pool(min_size=1)
    with pytest.raises(psycopg2.Error), pool.cursor() as cur:
        conn = cur.connection
        cur.execute(f"DO $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '{code}'; END $$")
    assert conn.closed
    assert select_one(pool) == (1,)


def test_read_only_server_evicts_but_read_only_transaction_does_not(make_pool):
    pool = make_pool(min_size=1)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), pool.cursor() as cur:
        conn = cur.connection
        cur.execute("SET TRANSACTION READ ONLY")
        cur.execute("CREATE TABLE never (n int)")
    assert conn.closed
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        conn.readonly = True
        conn.cursor().execute("CREATE TABLE never (n int)")
    assert not conn.closed


def test_check_callback(make_pool):
    pool = make_pool(min_size=1, check=greenpg.ConnectionPool.check_connection)
    assert select_one(pool) == (1,)

    failures = [1, 1]

    def fail_twice(conn):
        if failures:
            failures.pop()
            raise ValueError("not this one")

    pool = make_pool(min_size=2, check=fail_twice)
    assert select_one(pool) == (1,)
    assert pool.get_stats()["connections_lost"] == 2


def test_check_callback_that_always_fails_ends_in_a_timeout(make_pool):
    def fail(conn):
        raise ValueError("never")

    pool = make_pool(min_size=1, check=fail)
    with pytest.raises(greenpg.PoolTimeout):
        pool.getconn(timeout=0.5)
    assert pool.get_stats()["connections_num"] < 10, "it doesn't open one after the other"


def test_check_method_replaces_broken_ones(make_pool, admin):
    pool = make_pool(min_size=3)
    pool.wait()
    old = pids(pool, 3)
    terminate(admin, list(old)[:2])
    pool.check()
    wait_until(lambda: pool.get_stats()["pool_available"] == 3)
    assert len(pids(pool, 3) & old) == 1


def test_ping_leaves_no_transaction(dsn):
    conn = greenpg.connect(dsn)
    greenpg.ConnectionPool.check_connection(conn)
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    assert not conn.autocommit
    conn.close()
    with pytest.raises(psycopg2.InterfaceError):
        greenpg.ConnectionPool.check_connection(conn)
