"""psycopg2-managed-connection's README with one import changed, and what the original got wrong."""

import logging

import psycopg2
import pytest
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.compat.pgmanagedconnection import ManagedConnection
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
IDLE, INTRANS = extensions.TRANSACTION_STATUS_IDLE, extensions.TRANSACTION_STATUS_INTRANS


@pytest.fixture
def manager(dsn):
    manager = ManagedConnection(dsn)
    yield manager
    with manager(close=True):
        pass


# -- the README


def test_creating_a_managed_connection():
    assert repr(ManagedConnection("postgres:///postgres")) == "<ManagedConnection: postgres:///postgres (closed)>"


def test_making_queries(manager):
    with manager() as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
        connection.commit()
    assert repr(manager).startswith(f"<ManagedConnection: {manager.dsn} (<connection object at ")


def test_dealing_with_uncommitted_transactions(manager):
    with pytest.raises(RuntimeError) as info:
        with manager() as connection:
            connection.cursor().execute("SELECT 1")
    assert str(info.value) == "Did not commit or rollback open transaction before releasing connection."
    assert manager.status == IDLE


def test_dealing_with_errors(manager, caplog):
    with pytest.raises(NotImplementedError):
        with manager() as connection:
            connection.cursor().execute("SELECT 1")
            assert manager.status is INTRANS
            raise NotImplementedError()
    assert manager.status is IDLE
    assert [record.levelname for record in caplog.records if record.name == "pgmanagedconnection.connection"] == [
        "WARNING"
    ]


# -- the rest of its behaviour


def test_closed_and_status(manager):
    assert manager.closed is True
    assert manager.status is None
    with manager() as connection:
        assert manager.closed == 0
    with pytest.raises(psycopg2.ProgrammingError):
        with manager() as again:
            assert again is connection
            again.cursor().execute("SELECT nothing")
    assert manager.closed is True
    with manager(True) as connection:
        pass
    assert connection.closed
    assert {INTRANS, extensions.TRANSACTION_STATUS_INERROR} == manager.STATUS_IN_TRANSACTION


def test_a_failing_connect_leaves_nothing_locked():
    manager = ManagedConnection("host=127.0.0.1 port=1 user=x dbname=x")
    for _ in range(2):
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            with manager():
                pass


def test_no_passwords_in_texts(caplog):
    caplog.set_level(logging.DEBUG)
    manager = ManagedConnection("host=127.0.0.1 port=1 user=x dbname=x password=secret")
    with pytest.raises(psycopg2.OperationalError):
        with manager():
            pass
    assert "secret" not in repr(manager) + str(manager) + caplog.text
    assert manager.dsn.endswith("secret")


def test_one_user_at_a_time(manager):
    users, most = set(), []

    def work(number):
        with manager() as connection:
            users.add(number)
            most.append(len(users))
            connection.cursor().execute("SELECT pg_sleep(0.01)")
            users.remove(number)
            connection.commit()

    run_all([lambda number=number: work(number) for number in range(10)])
    assert max(most) == 1


def test_a_timeout(manager):
    with manager():
        with pytest.raises(RuntimeError):  # it would wait for itself
            manager().__enter__()
        task = Task(lambda: manager(timeout=0.05).__enter__())
        with pytest.raises(greenpg.WaitTimeout):
            task.result()


def test_a_connection_that_died_is_replaced(manager, admin):
    with manager() as connection:
        pid = connection.info.backend_pid
    admin.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with manager() as connection:
        assert connection.info.backend_pid != pid


def test_settings_are_not_left_to_the_next(manager):
    with manager() as connection:
        connection.autocommit = True
    with manager() as connection:
        assert not connection.autocommit


@green_only
def test_a_kill_is_cleaned_up_after(manager):
    def work():
        with manager() as connection:
            connection.cursor().execute("SELECT 1")
            hub().sleep(60)

    task = Task(work)
    wait_until(lambda: manager.status == INTRANS)
    task.throw(Killed())
    with pytest.raises(Killed):
        task.result()
    assert manager.status == IDLE
