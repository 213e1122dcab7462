"""Every wait for a pool's connection has an end, whatever servers and networks do."""

import contextlib
import socket

import psycopg2
import pytest
from kit import run_all, wait_until

import greenpg
from greenpg.hubs import hub
from greenpg.pool import lending, opening, tasks


@contextlib.contextmanager
def silent_server():
    """Accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"host=127.0.0.1 port={server.getsockname()[1]} user=x dbname=x sslmode=disable gssencmode=disable"


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"host=127.0.0.1 port={server.getsockname()[1]} user=x dbname=x"


def test_a_pool_whose_every_connect_is_refused_says_so():
    pool = greenpg.ConnectionPool(closed_port(), min_size=1, refused_after=0.3, timeout=30)
    try:
        with pytest.raises(
            greenpg.PoolTimeout, match=r"every attempt to connect has failed for 0\.3 s.*refused"
        ) as info:
            pool.getconn()
        assert isinstance(info.value.__cause__, psycopg2.OperationalError)
        requests = pool.get_stats()["requests_num"]
        with pytest.raises(greenpg.PoolTimeout, match="every attempt"):  # at once: no attempt comes in between
            pool.getconn()
        assert pool.get_stats()["requests_num"] == requests + 1
    finally:
        pool.close()


def test_a_refused_pool_serves_again_when_the_server_is_there(dsn):
    dsns = [closed_port()]
    pool = greenpg.ConnectionPool(lambda: dsns[-1], min_size=1, refused_after=0)
    try:
        with pytest.raises(greenpg.PoolTimeout, match="every attempt"):
            pool.fetchval("SELECT 1")
        dsns.append(dsn)

        def is_served():
            with contextlib.suppress(greenpg.PoolTimeout):
                return pool.fetchval("SELECT 1") == 1

        wait_until(is_served)
    finally:
        pool.close()


def test_connections_that_hang_while_they_are_made_hold_no_workers_and_give_up(dsn, monkeypatch):
    monkeypatch.setattr(opening, "CONNECT_TIMEOUT", 1)
    for module in (tasks, lending):
        monkeypatch.setattr(module, "HANGING", 0.1)
    with silent_server() as silent:
        dsns = [silent] * 3
        pool = greenpg.ConnectionPool(
            lambda: dsns.pop() if dsns else dsn, min_size=3, max_size=5, num_workers=3, open=True
        )
        try:
            wait_until(lambda: not dsns)
            assert pool.fetchval("SELECT 1", timeout=5) == 1  # by a fourth worker, and the line looks for itself
            assert pool._core.workers.hanging(pool._core.now()) >= 3
            pool.wait(20)  # the three have given up, and tried again
        finally:
            pool.close()


@pytest.mark.parametrize(("given", "found"), [({}, "10"), ({"connect_timeout": 7}, "7"), ({"connect_timeout": 0}, "0")])
def test_a_pools_connections_have_a_connect_timeout_unless_the_user_says_something(make_pool, given, found):
    pool = make_pool(min_size=1, kwargs=given)
    with pool.connection() as conn:
        assert conn.info.dsn_parameters["connect_timeout"] == found


def test_a_cold_pool_grows_by_the_length_of_its_line(dsn):
    being_made = []

    def configure(conn):
        being_made.append(len(pool._core.ledger.opening))
        hub().sleep(0.1)

    pool = greenpg.ConnectionPool(dsn, min_size=0, max_size=8, num_workers=3, configure=configure)
    try:
        assert run_all([lambda: pool.fetchval("SELECT 1")] * 5) == [1] * 5
        assert max(being_made) == 3
    finally:
        pool.close()
