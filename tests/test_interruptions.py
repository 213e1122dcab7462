"""Kills, timeouts and deadlines: the statement is cancelled, the original exception comes out, the connection stays."""

import logging
import random
import time

import psycopg2
import pytest
from kit import Killed, Task, is_waiting, run_all, statements_running, usable, wait_until
from psycopg2 import extensions

import greenpg
from greenpg import errors
from greenpg.connection import interrupting
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
pytestmark = green_only


def throw_into(task, conn, exception=Killed):
    """Throw when the task waits in the connection."""
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.02)
    task.throw(exception)


# -- cancel and keep


@pytest.mark.parametrize("autocommit", [False, True])
def test_kill_cancels_the_statement_and_keeps_the_connection(conn, admin, autocommit):
    conn.autocommit = autocommit
    cur = conn.cursor()
    cur.execute("SELECT 1")
    task = Task(cur.execute, "SELECT pg_sleep(60)")
    exception = Killed()
    throw_into(task, conn, exception)
    task.join(5)
    assert task.error is exception, "the original exception"
    assert statements_running(admin) == []
    assert not conn.closed
    expected = extensions.TRANSACTION_STATUS_IDLE if autocommit else extensions.TRANSACTION_STATUS_INERROR
    assert conn.get_transaction_status() == expected
    assert usable(conn)


def test_timeout_of_the_hub(conn, hub_name, admin):
    if hub_name == "gevent":
        from gevent import Timeout
    else:
        from eventlet import Timeout
    cur = conn.cursor()
    timeout = Timeout(0.05)
    if hub_name == "gevent":
        timeout.start()
    try:
        with pytest.raises(Timeout) as caught:
            cur.execute("SELECT pg_sleep(60)")
        assert caught.value is timeout
    finally:
        timeout.cancel()
    assert statements_running(admin) == []
    assert usable(conn)


@pytest.mark.parametrize(
    ("call", "keeps_transaction"),
    [
        (lambda cur: cur.execute("SELECT pg_sleep(60)"), True),
        (lambda cur: cur.executemany("SELECT pg_sleep(%s)", [(60,), (60,)]), True),
        (lambda cur: cur.callproc("pg_sleep", (60,)), True),
        (lambda cur: cur.connection.cursor("named").execute("SELECT pg_sleep(60)") or named_fetch(cur), True),
    ],
    ids=["execute", "executemany", "callproc", "named cursor"],
)
def test_kill_in_each_call(conn, admin, call, keeps_transaction):
    task = Task(call, conn.cursor())
    wait_until(lambda: is_waiting(conn) and statements_running(admin))
    task.throw(Killed)
    task.join(5)
    assert isinstance(task.error, Killed)
    assert statements_running(admin) == []
    assert usable(conn)


def named_fetch(cur):
    """A FETCH that takes long."""
    named = cur.connection.cursor("slow")
    named.execute("SELECT pg_sleep(60)")
    named.fetchone()


def test_kill_while_the_result_is_large(conn):
    """The drain reads on until the end, or until the cancel."""
    cur = conn.cursor()
    task = Task(cur.execute, "SELECT repeat('x', 1000) FROM generate_series(1, 2000000)")
    throw_into(task, conn)
    task.join(10)
    assert isinstance(task.error, Killed)
    assert usable(conn)


def test_kill_while_the_query_is_being_sent(through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.cursor().execute("SELECT 1")
    proxy.stall()
    task = Task(conn.cursor().execute, "SELECT %s", ("x" * 50_000_000,))
    throw_into(task, conn)
    proxy.resume()
    task.join(20)
    assert isinstance(task.error, Killed)
    conn.close()


@pytest.mark.only_hub("gevent")  # eventlet looks at the sockets first
def test_query_that_finished_first_is_not_cancelled(conn, monkeypatch):
    """The answer is there when the exception comes: nothing is cancelled, and the result is dropped."""
    requests = []
    monkeypatch.setattr(interrupting, "request_cancel", lambda *args: requests.append(args))
    cur = conn.cursor()
    cur.execute("SELECT 1")
    task = Task(cur.execute, "SELECT 2")
    while not is_waiting(conn):
        hub().sleep(0)
    end = time.monotonic() + 0.03
    while time.monotonic() < end:
        pass
    task.throw(Killed)  # before the loop looks at the sockets again
    task.join()
    assert isinstance(task.error, Killed)
    assert requests == []
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
    assert usable(conn)


def test_late_cancel_never_hits_the_next_statement(conn):
    """Statements of about the time a cancel takes, killed, each followed by one that must come through."""
    rng = random.Random(1)
    conn.autocommit = True
    cur = conn.cursor()
    killed = 0
    for n in range(200):
        task = Task(cur.execute, "SELECT pg_sleep(%s)", (rng.random() * 0.004,))
        hub().sleep(rng.random() * 0.004)
        task.throw(Killed)
        task.join()
        killed += isinstance(task.error, Killed)
        cur.execute("SELECT %s", (n,))
        assert cur.fetchone() == (n,)
    assert killed > 20


def test_kill_before_the_begin_is_through_stops_the_statement_as_well(through_proxy, admin):
    """execute() sends BEGIN first; killed in there, psycopg2 goes on to send the statement, which must not run on."""
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn, application_name="tested begin")
    proxy.stall()
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    task.throw(Killed)
    hub().sleep(0.05)
    proxy.resume()
    task.join(10)
    assert isinstance(task.error, Killed)
    wait_until(lambda: not statements_running(admin), 2)
    conn.close()


def test_methods_that_call_psycopg2_past_the_guards(dsn, admin):
    """psycopg2's own documentation shows a cursor that does; the exception must not get lost."""

    class LoggingCursor(extensions.cursor):
        def execute(self, query, vars=None):
            extensions.cursor.execute(self, query, vars)

    conn = greenpg.connect(dsn, cursor_factory=LoggingCursor, application_name="tested")
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    throw_into(task, conn)
    task.join(5)
    assert isinstance(task.error, Killed)
    wait_until(lambda: statements_running(admin) == [], 2)
    assert conn.closed


def test_foreign_connection_is_cancelled_before_it_is_closed(dsn, admin):
    conn = extensions.connection(extensions.make_dsn(dsn, application_name="tested foreign"))
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: statements_running(admin))
    task.throw(Killed)
    task.join(5)
    assert isinstance(task.error, Killed)
    assert conn.closed
    wait_until(lambda: statements_running(admin) == [], 2)


@pytest.mark.usual_times
def test_server_that_does_not_answer_any_more(through_proxy, monkeypatch, caplog):
    """The bound passes: the connection is closed, and the original exception comes out."""
    monkeypatch.setattr(interrupting, "END_TIMEOUT", 0.3)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    proxy.stall()
    task.throw(Killed)
    task.join(5)
    assert isinstance(task.error, Killed)
    assert conn.closed
    assert "interrupted by Killed" in caplog.text


def test_second_exception_while_draining_closes(through_proxy):
    class Second(BaseException):
        pass

    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    proxy.stall()
    task.throw(Killed)
    hub().sleep(0.05)
    task.throw(Second)
    task.join(2)
    assert isinstance(task.error, Second)
    assert isinstance(task.error.__context__, Killed)
    assert conn.closed


def test_kill_while_connecting(through_proxy):
    proxy, dsn = through_proxy
    proxy.stall()
    task = Task(greenpg.connect, dsn)
    hub().sleep(0.05)
    task.throw(Killed)
    task.join(2)
    assert isinstance(task.error, Killed)


@pytest.mark.parametrize("call", ["rollback", "commit", "reset", "set_client_encoding"])
def test_kill_in_calls_that_end_soon(through_proxy, call):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.cursor().execute("SELECT 1")
    proxy.stall()
    task = Task(getattr(conn, call), *(["LATIN1"] if call == "set_client_encoding" else []))
    throw_into(task, conn)
    proxy.resume()
    task.join(10)
    assert isinstance(task.error, Killed)
    assert not conn.closed
    assert usable(conn)
    conn.close()


# -- COMMIT


@pytest.fixture
def slow_commit(admin):
    """A table whose COMMIT takes a while, or fails: deferred triggers."""
    with admin.cursor() as cur:
        cur.execute(
            """
            DROP TABLE IF EXISTS slow_commit;
            CREATE TABLE slow_commit (seconds float, fails bool);
            CREATE OR REPLACE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_sleep(NEW.seconds);
                IF NEW.fails THEN RAISE EXCEPTION 'no'; END IF;
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow_commit DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION slow_commit();
            """
        )
    yield
    with admin.cursor() as cur:
        cur.execute("DROP TABLE slow_commit CASCADE")


@pytest.mark.parametrize(("fails", "outcome", "rows"), [(False, errors.COMMITTED, 1), (True, errors.ROLLED_BACK, 0)])
def test_interrupted_commit_tells_its_outcome(conn, admin, slow_commit, fails, outcome, rows):
    conn.cursor().execute("INSERT INTO slow_commit VALUES (0.2, %s)", (fails,))
    task = Task(conn.commit)
    throw_into(task, conn)
    task.join(5)
    assert isinstance(task.error, Killed)
    assert errors.commit_outcome(task.error) == outcome
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM slow_commit")
        assert cur.fetchone() == (rows,)
    assert usable(conn)


@pytest.mark.usual_times
def test_commit_without_an_answer_is_of_unknown_outcome(through_proxy, monkeypatch):
    monkeypatch.setattr(interrupting, "END_TIMEOUT", 0.3)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.cursor().execute("CREATE TEMP TABLE t (n int)")
    proxy.stall()
    task = Task(conn.commit)
    throw_into(task, conn)
    task.join(5)
    assert isinstance(task.error, Killed)
    assert errors.commit_outcome(task.error) == errors.UNKNOWN
    assert conn.closed


def test_commit_on_a_lost_connection_is_of_unknown_outcome(through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.cursor().execute("CREATE TEMP TABLE t (n int)")
    proxy.stall()
    task = Task(conn.commit)
    wait_until(lambda: is_waiting(conn))
    proxy.cut()
    task.join(5)
    assert isinstance(task.error, psycopg2.OperationalError)
    assert errors.commit_outcome(task.error) == errors.UNKNOWN


def test_other_errors_have_no_commit_outcome(conn):
    with pytest.raises(psycopg2.errors.SyntaxError) as caught:
        conn.cursor().execute("nonsense")
    assert errors.commit_outcome(caught.value) is None


def test_late_commit_is_no_error(conn, slow_commit):
    conn.cursor().execute("INSERT INTO slow_commit VALUES (0.2, false)")
    with conn.deadline(0.05):
        conn.commit()


# -- close() from another task; the other calls are in test_connection.py


def test_close_throws_the_waiting_task_out(conn, admin):
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    conn.close()
    assert conn.closed
    with pytest.raises(psycopg2.OperationalError):
        task.result(1)
    wait_until(lambda: statements_running(admin) == [], 2)


@pytest.mark.usual_times
def test_close_of_a_connection_in_its_drain(through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    proxy.stall()
    task.throw(Killed)
    hub().sleep(0.05)
    conn.close()
    task.join(2)
    assert isinstance(task.error, Killed)


def test_cancel_from_another_task(conn):
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    conn.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        task.result(5)
    conn.cancel_safe(timeout=1)  # finds nothing to cancel
    assert usable(conn)


def test_cancel_that_can_not_be_delivered(through_proxy, conn):
    proxy, dsn = through_proxy
    stalled = greenpg.connect(dsn)
    proxy.stall()
    with pytest.raises(psycopg2.OperationalError, match="can't cancel: the server doesn't answer"):
        stalled.cancel_safe(timeout=0.1)
    stalled.close()
    with pytest.raises(psycopg2.InterfaceError):
        stalled.cancel()


def test_cancel_with_an_older_libpq(conn, monkeypatch):
    """libpq before 17 has no cancel that can be polled."""
    monkeypatch.setattr("greenpg.libpq.has_function", lambda name: False)
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    throw_into(task, conn)
    task.join(5)
    assert isinstance(task.error, Killed)
    assert usable(conn)


# -- storms


@pytest.mark.parametrize("seed", [1, 2])
def test_storm(make_pool, admin, seed, caplog):
    """2,000 statements of 50 tasks on 10 connections, half of them killed at a random moment."""
    rng = random.Random(seed)
    pool = make_pool(min_size=10, kwargs={"application_name": "tested storm"})
    pool.wait()
    caplog.set_level(logging.ERROR, "greenpg")
    outcomes = {"finished": 0, "killed": 0}
    numbers = iter(range(1_000_000))

    def statement():
        number = next(numbers)
        how = rng.random()
        with pool.connection() as conn:
            if how < 0.2:
                conn.autocommit = True
            try:
                cur = conn.cursor("named" if 0.2 < how < 0.4 else None)
                cur.execute("SELECT %s, pg_sleep(%s)", (number, rng.random() * 0.01))
                assert cur.fetchone()[0] == number
            finally:
                if how < 0.2:
                    if conn.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE:
                        conn.rollback()
                    conn.autocommit = False
        outcomes["finished"] += 1

    def work():
        for _ in range(40):
            task = Task(statement)
            if rng.random() < 0.7:
                hub().sleep(rng.random() * 0.03)
                task.throw(Killed)
            task.join()
            if isinstance(task.error, Killed):
                outcomes["killed"] += 1
            elif task.error is not None:
                raise task.error

    run_all([work] * 50)
    assert outcomes["finished"] + outcomes["killed"] == 2000
    assert outcomes["killed"] > 500, outcomes
    wait_until(lambda: statements_running(admin) == [], 2)
    stats = pool.get_stats()
    assert stats["pool_available"] == 10
    print(f"storm: {outcomes}, connections replaced: {stats['connections_num'] - 10}")
    conns = [pool.getconn() for _ in range(10)]
    for conn in conns:
        assert usable(conn)
        pool.putconn(conn)
    assert stats["connections_num"] == 10, "a connection was replaced"


def test_money_is_neither_made_nor_lost(make_pool, admin):
    """Transfers between accounts, killed in BEGIN, UPDATE, COMMIT and ROLLBACK alike: the sum stays."""
    rng = random.Random(3)
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS account; CREATE TABLE account (id int PRIMARY KEY, balance int)")
        cur.execute("INSERT INTO account SELECT n, 1000 FROM generate_series(0, 9) n")
    pool = make_pool(min_size=5, kwargs={"application_name": "tested money"})
    acknowledged = [0] * 10
    unsure = []

    def transfer():
        source, target = rng.sample(range(10), 2)
        try:
            with pool.cursor() as cur:
                for account, amount in sorted([(source, -1), (target, 1)]):
                    cur.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, account))
                if rng.random() < 0.2:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        except BaseException as exception:
            outcome = errors.commit_outcome(exception)
            if outcome == errors.UNKNOWN:
                unsure.append((source, target))
            if outcome != errors.COMMITTED:
                raise
            committed(source, target)
            raise
        committed(source, target)

    def committed(source, target):
        acknowledged[source] -= 1
        acknowledged[target] += 1

    def work():
        for _ in range(40):
            task = Task(transfer)
            if rng.random() < 0.6:
                hub().sleep(rng.random() * 0.02)
                task.throw(Killed)
            task.join()
            if task.error is not None and not isinstance(task.error, Killed):
                raise task.error

    run_all([work] * 20)
    with admin.cursor() as cur:
        cur.execute("SELECT balance - 1000 FROM account ORDER BY id")
        balances = [balance for (balance,) in cur.fetchall()]
        cur.execute("DROP TABLE account")
    assert sum(balances) == 0
    assert not unsure, "nothing was in doubt here"
    assert balances == acknowledged, "what was acknowledged is there, and nothing else"
    assert pool.get_stats()["pool_available"] == 5
