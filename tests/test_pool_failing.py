"""What a pool says when it can't connect, and to whom; and connections that are to outlive their task."""

import gc
import time
import traceback
import weakref

import psycopg2
import pytest
from kit import Task, either_pool, wait_until

import greenpg
from greenpg.hubs import hub


@pytest.fixture
def nowhere(tmp_path):
    return f"host={tmp_path} dbname=x"


class Marked(Exception):
    """Can be referred to weakly, and can't be copied."""

    def __init__(self, text, *, more):
        super().__init__(text)


# -- the cause of a PoolTimeout


@either_pool
def test_cause_of_a_timeout_is_the_last_connection_error(make_pool, nowhere):
    pool = make_pool(nowhere, min_size=1)
    for _ in range(2):
        with pytest.raises(greenpg.PoolTimeout) as caught:
            pool.getconn(timeout=0.2)
        cause = caught.value.__cause__
        assert type(cause) is psycopg2.OperationalError
        assert "No such file" in str(cause)


def test_no_cause_without_a_connection_error(make_pool):
    pool = make_pool(min_size=1)
    with pool.connection(), pytest.raises(greenpg.PoolTimeout) as caught:
        pool.getconn(timeout=0.05)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_cause_in_wait(make_pool, nowhere):
    pool = make_pool(nowhere, min_size=1)
    with pytest.raises(greenpg.PoolTimeout) as caught:
        pool.wait(timeout=0.2)
    assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
    assert pool.closed


def test_the_kept_error_keeps_no_frames(make_pool):
    class Big:
        pass

    kept = []

    def configure(conn):
        big = Big()
        kept.append(weakref.ref(big))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise Marked("outer", more=1) from error

    pool = make_pool(min_size=1, configure=configure)
    with pytest.raises(greenpg.PoolTimeout) as caught:
        pool.getconn(timeout=0.2)
    cause = caught.value.__cause__
    assert isinstance(cause, Marked)
    assert isinstance(cause.__cause__, KeyError)
    assert cause.__traceback__ is None
    assert cause.__cause__.__traceback__ is None
    assert "outer" in "".join(traceback.format_exception(caught.value))
    pool.close()
    gc.collect()
    assert kept
    assert not any(ref() for ref in kept)


def test_error_is_forgotten_after_a_success(make_pool, through_proxy):
    proxy, dsn = through_proxy
    proxy.refuse()
    pool = make_pool(dsn, min_size=1)
    with pytest.raises(greenpg.PoolTimeout) as caught:
        pool.getconn(timeout=0.2)
    assert caught.value.__cause__ is not None
    proxy.accept()
    with pool.connection(), pytest.raises(greenpg.PoolTimeout) as caught:
        pool.getconn(timeout=0.05)
    assert caught.value.__cause__ is None


# -- fail_fast


@either_pool
def test_fail_fast_raises_what_connecting_fails_by(make_pool, nowhere):
    pool = make_pool(nowhere, min_size=1, max_size=3, fail_fast=True)
    started = time.monotonic()
    waiting = [Task(lambda: pool.getconn(timeout=20)) for _ in range(3)]
    errors = []
    for task in waiting:
        with pytest.raises(psycopg2.OperationalError, match="No such file") as caught:
            task.result()
        assert not isinstance(caught.value, greenpg.PoolTimeout)
        errors.append(caught.value)
    assert len(set(map(id, errors))) == 3, "each has one of his own"
    assert time.monotonic() - started < 10
    assert pool.get_stats()["requests_errors"] == 3
    with pytest.raises(psycopg2.OperationalError, match="No such file"):
        pool.fetchone("SELECT 1")


@either_pool
def test_fail_fast_in_open_and_wait(make_pool, nowhere):
    pool = make_pool(nowhere, min_size=2, fail_fast=True)
    started = time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match="No such file") as caught:
        pool.open(wait=True, timeout=20)
    assert not isinstance(caught.value, greenpg.PoolTimeout)
    assert time.monotonic() - started < 10
    assert pool.closed


def test_fail_fast_may_look_at_the_error(make_pool, through_proxy):
    proxy, dsn = through_proxy
    seen = []

    def fails_fast(error):
        seen.append(error)
        return "does not exist" in str(error)

    proxy.refuse()
    pool = make_pool(dsn, min_size=1, fail_fast=fails_fast)
    borrower = Task(lambda: pool.fetchone("SELECT 42"))
    wait_until(lambda: len(seen) >= 2)
    proxy.accept()
    assert borrower.result() == (42,)
    wrong = make_pool(f"{dsn} dbname=nowhere", min_size=1, fail_fast=fails_fast)
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        wrong.getconn(timeout=20)


def test_fail_fast_that_fails_itself_is_logged(make_pool, nowhere, caplog):
    pool = make_pool(nowhere, min_size=1, fail_fast=lambda error: 1 / 0)
    with pytest.raises(greenpg.PoolTimeout):
        pool.getconn(timeout=0.2)
    assert "fail_fast raised" in caplog.text


@either_pool
def test_fail_fast_with_an_error_that_cannot_be_copied(make_pool):
    def configure(conn):
        raise Marked("not with me", more=1)

    pool = make_pool(min_size=1, configure=configure, fail_fast=True)
    with pytest.raises(Marked, match="not with me"):
        pool.getconn(timeout=20)


def test_fail_fast_pool_recovers(make_pool, through_proxy):
    proxy, dsn = through_proxy
    proxy.refuse()
    pool = make_pool(dsn, min_size=1, fail_fast=True)
    with pytest.raises(psycopg2.OperationalError):
        pool.getconn(timeout=20)
    proxy.accept()
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)
    assert pool.fetchval("SELECT 1") == 1


# -- getconn(take_back=False)


def test_connection_may_outlive_its_task(make_pool, caplog):
    pool = make_pool(min_size=1)
    conn = Task(lambda: pool.getconn(take_back=False)).result()
    hub().sleep(0.05)
    assert pool.get_stats()["pool_available"] == 0
    assert "ended without returning" not in caplog.text
    pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1
    with pytest.raises(ValueError, match="returned already"):
        pool.putconn(conn)


def test_returned_slot_remembers_nobody(make_pool):
    pool = make_pool(min_size=1)
    Task(lambda: pool.putconn(pool.getconn())).result()
    Task(lambda: pool.fetchone("SELECT 1")).result()
    (slot,) = pool._core.ledger.slots
    assert slot.holder is slot.lent_by is slot.forget_holder is None


# -- options


def test_options_can_be_changed(make_pool):
    pool = make_pool(min_size=1)
    assert pool.timeout == 30.0
    pool.timeout = 0.05
    with pool.connection(), pytest.raises(greenpg.PoolTimeout, match=r"after 0\.05 s"):
        pool.getconn()
    with pytest.raises(ValueError, match="timeout can't be negative"):
        pool.timeout = -1
    assert pool.timeout == 0.05
