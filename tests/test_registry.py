"""`get_pool()`: one pool for a name or a connection string, whoever asks."""

import pytest
from kit import run_all
from psycopg2 import extensions

import greenpg
from greenpg.hubs import hub


@pytest.fixture(autouse=True)
def closed_at_the_end():
    yield
    greenpg.close_pools()


def uri(dsn):
    parameters = extensions.parse_dsn(dsn)
    return f"postgresql:///{parameters.pop('dbname')}?" + "&".join(f"{key}={parameters[key]}" for key in parameters)


def test_by_connection_string(dsn):
    pool = greenpg.get_pool(dsn)
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)
    assert greenpg.get_pool(dsn) is pool
    assert greenpg.get_pool(uri(dsn)) is not pool
    with greenpg.get_pool(uri(dsn)).cursor() as cur:
        cur.execute("SELECT 1")


def test_by_name(dsn):
    pool = greenpg.get_pool("orders", dsn, min_size=1, max_size=3)
    assert pool.name == "orders"
    assert pool.max_size == 3
    assert greenpg.get_pool("orders") is pool
    assert greenpg.get_pool("orders", dsn, max_size=3, min_size=1) is pool
    assert greenpg.get_pool("other", dsn) is not pool


def test_other_options_are_an_error_that_says_which(dsn):
    secret = "postgresql://app:secret@db/app"
    greenpg.get_pool(secret, min_size=1, max_size=3)
    with pytest.raises(ValueError, match="max_size 3, now 5; min_size 1, now not given") as info:
        greenpg.get_pool(secret, max_size=5)
    assert "secret" not in str(info.value)
    assert greenpg.get_pool(secret).max_size == 3
    greenpg.get_pool("name", secret, kwargs={"password": "secret"})
    with pytest.raises(ValueError, match=r"other options: conninfo .*; kwargs given, now not given") as info:
        greenpg.get_pool("name", dsn)
    assert "secret" not in str(info.value)


def test_an_unknown_name_is_an_error_that_tells_the_known_ones(dsn):
    greenpg.get_pool("orders", dsn)
    with pytest.raises(LookupError, match=r"no pool 'order' yet.*Known pools: 'orders'"):
        greenpg.get_pool("order")
    with pytest.raises(TypeError, match="must be a string"):
        greenpg.get_pool(None)


def test_a_closed_pool_is_made_anew(dsn):
    first = greenpg.get_pool("orders", dsn, min_size=1, max_size=2)
    first.open(wait=True)
    first.close()
    second = greenpg.get_pool("orders")
    assert second is not first
    assert second.max_size == 2
    second.open(wait=True)
    second.close()
    assert greenpg.get_pool("orders", dsn, max_size=9, min_size=0).max_size == 9


def test_forgetting_and_closing_all(dsn):
    first = greenpg.get_pool("orders", dsn, min_size=1)
    with first.cursor() as cur:
        cur.execute("SELECT 1")
    assert greenpg.forget_pool("orders") is first
    assert greenpg.forget_pool("orders") is None
    assert not first.closed
    first.close()
    second = greenpg.get_pool("orders", dsn, open=True)
    assert not second.closed
    greenpg.close_pools()
    assert second.closed
    with pytest.raises(LookupError):
        greenpg.get_pool("orders")


def test_tasks_and_native_threads_that_come_at_once_get_the_same_pool(dsn):
    def ask():
        return [greenpg.get_pool("shared", dsn, min_size=1, max_size=2, open=True) for _ in range(20)]

    results = run_all([ask] * 10 + [lambda: hub().run_in_thread(ask)] * 5)
    assert len({id(pool) for pools in results for pool in pools}) == 1
    with results[0][0].cursor() as cur:
        cur.execute("SELECT 1")
