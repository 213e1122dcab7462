"""`SharedConnection`: many tasks, one connection, exclusive turns in the order of asking."""

import logging
import os
import random

import psycopg2
import pytest
from kit import Killed, Task, run_all, wait_until
from proxy import Proxy
from psycopg2 import extensions, extras

import greenpg
from greenpg.errors import WaitTimeout
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
LEFT_OPEN = r"^Did not commit or rollback open transaction before releasing connection\.$"

INTRANS, IDLE = extensions.TRANSACTION_STATUS_INTRANS, extensions.TRANSACTION_STATUS_IDLE


@pytest.fixture
def shared(dsn):
    shared = greenpg.SharedConnection(dsn, application_name="shared")
    yield shared
    assert shared._turns._holder is None, "somebody has kept the turn"
    assert shared._turns.waiting_count == 0
    shared.close()


@pytest.fixture
def table(admin):
    with admin.cursor() as cur:
        cur.execute("CREATE TABLE shared_test (n int)")
    yield "shared_test"
    with admin.cursor() as cur:
        cur.execute("DROP TABLE shared_test")


def rows(admin, table):
    with admin.cursor() as cur:
        cur.execute(f"SELECT n FROM {table} ORDER BY n")
        return [n for (n,) in cur.fetchall()]


def backends(admin):
    with admin.cursor() as cur:
        cur.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'shared'")
        return [pid for (pid,) in cur.fetchall()]


def select(shared, value=1):
    with shared() as conn, conn.cursor() as cur:
        cur.execute("SELECT %s", (value,))
        result = cur.fetchone()[0]
        conn.rollback()
    return result


def pid_of(shared):
    with shared() as conn:
        return conn.info.backend_pid


# -- ManagedConnection's contract


def test_connects_when_it_is_first_used(shared, admin):
    assert shared.closed is True
    assert shared.status is None
    assert backends(admin) == []
    with shared() as conn:
        assert isinstance(conn, greenpg.Connection)
        assert shared.closed == 0
        assert shared.status == IDLE
        with conn.cursor() as cur:
            cur.execute("SELECT 1")
            assert cur.fetchone() == (1,)
        assert shared.status == INTRANS
        conn.commit()
    assert len(backends(admin)) == 1
    assert shared.status == IDLE


def test_the_same_connection_for_the_next(shared):
    assert pid_of(shared) == pid_of(shared)


def test_committed_work_stays(shared, admin, table):
    with shared() as conn:
        conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
        conn.commit()
    assert rows(admin, table) == [1]


@pytest.mark.parametrize("close", [False, True])
def test_leaving_a_transaction_open(shared, admin, table, close):
    pid = pid_of(shared)
    with pytest.raises(RuntimeError, match=LEFT_OPEN):
        with shared(close=close) as conn:
            conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
    assert rows(admin, table) == []
    assert shared.status == IDLE, "the connection stays"
    assert pid_of(shared) == pid


def test_a_select_opens_a_transaction_too(shared):
    with pytest.raises(RuntimeError, match=LEFT_OPEN):
        with shared() as conn:
            conn.cursor().execute("SELECT 1")


def test_leaving_a_failed_transaction_open(shared):
    with pytest.raises(RuntimeError, match=LEFT_OPEN):
        with shared() as conn:
            with pytest.raises(psycopg2.DataError):
                conn.cursor().execute("SELECT 1/0")
    assert select(shared) == 1


def test_in_autocommit_there_is_none(shared):
    with shared() as conn:
        conn.autocommit = True
        conn.cursor().execute("SELECT 1")


def test_begin_in_autocommit(shared, admin, table):
    """A transaction that psycopg2 doesn't know of."""
    with pytest.raises(RuntimeError, match=LEFT_OPEN):
        with shared() as conn:
            conn.autocommit = True
            conn.cursor().execute("BEGIN")
            conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
    assert rows(admin, table) == []
    assert select(shared) == 1


def test_an_exception_rolls_back(shared, admin, table, caplog):
    pid = pid_of(shared)
    with pytest.raises(NotImplementedError):
        with shared() as conn:
            conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
            assert shared.status == INTRANS
            raise NotImplementedError
    assert shared.status == IDLE
    assert rows(admin, table) == []
    assert pid_of(shared) == pid
    assert "rolling back after NotImplementedError" in caplog.text


def test_psycopg2s_errors_close_the_connection(shared):
    pid = pid_of(shared)
    with pytest.raises(psycopg2.errors.DivisionByZero):
        with shared() as conn:
            conn.cursor().execute("SELECT 1/0")
    assert shared.closed is True
    assert pid_of(shared) != pid


def test_close_at_the_end_of_the_block(shared, admin):
    with shared(close=True) as conn:
        conn.cursor().execute("SELECT 1")
        conn.commit()
    assert conn.closed
    assert shared.closed is True
    wait_until(lambda: backends(admin) == [])


def test_closed_by_its_user(shared):
    with shared() as conn:
        conn.close()
        assert shared.closed == 1
        assert shared.status is None
    assert select(shared) == 1


def test_close(shared, admin):
    shared.close()
    pid_of(shared)
    shared.close()
    wait_until(lambda: backends(admin) == [])
    assert select(shared) == 1


def test_status_and_closed_answer_at_once(shared):
    def query():
        with shared() as conn:
            conn.cursor().execute("SELECT pg_sleep(0.3)")
            conn.rollback()

    task = Task(query)
    wait_until(lambda: shared.status == extensions.TRANSACTION_STATUS_ACTIVE)
    assert shared.closed == 0
    task.result()


def test_no_password_is_shown(caplog, monkeypatch):
    # Frameworks that other tests have set up may have silenced the loggers that they found.
    monkeypatch.setattr(logging.getLogger("greenpg.shared"), "disabled", False)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="greenpg.shared")
    shared = greenpg.SharedConnection("postgresql://u:sesame@localhost:1/db", sslpassword="open")
    with pytest.raises(psycopg2.OperationalError):
        shared().__enter__()
    for text in (repr(shared), str(shared), shared.dsn, caplog.text):
        assert "sesame" not in text
        assert "open" not in text.replace("(open)", "").replace("psycopg2", "")
        assert "localhost" in text
    assert "(closed)" in repr(shared)


def test_repr_while_open(shared):
    with shared():
        assert repr(shared).endswith("(open)>")


def test_malformed_arguments(dsn):
    with pytest.raises(psycopg2.ProgrammingError):
        greenpg.SharedConnection("nonsense")
    with pytest.raises(TypeError, match="asynchronous"):
        greenpg.SharedConnection(dsn, async_=True)


def test_factories(dsn):
    shared = greenpg.SharedConnection(dsn, cursor_factory=extras.RealDictCursor)
    with shared() as conn:
        cur = conn.cursor()
        cur.execute("SELECT 1 AS one")
        assert cur.fetchone() == {"one": 1}
        conn.rollback()
    shared.close()


# -- lost connections


def test_a_connection_that_died_idle_is_seen_on_entering(shared, admin):
    pid = pid_of(shared)
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    assert select(shared) == 1
    assert pid_of(shared) != pid


def test_a_connection_that_dies_in_the_block(shared, admin):
    with pytest.raises(psycopg2.OperationalError):
        with shared() as conn:
            with admin.cursor() as cur:
                cur.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
            conn.cursor().execute("SELECT 1")
    assert select(shared) == 1


def test_an_applications_error_is_not_replaced_by_the_rollbacks(shared, admin):
    with pytest.raises(ValueError, match="the application's"):
        with shared() as conn:
            conn.cursor().execute("SELECT 1")
            with admin.cursor() as cur:
                cur.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
            raise ValueError("the application's")
    assert select(shared) == 1


def test_failing_to_connect(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"]) as proxy:
        proxy.refuse()
        shared = greenpg.SharedConnection(server.tcp_dsn, port=proxy.port)
        for _ in range(2):
            with pytest.raises(psycopg2.OperationalError), shared():
                pass
        assert shared.closed is True
        proxy.accept()
        assert select(shared) == 1
        shared.close()


# -- what one user leaves to the next


def test_settings_are_put_back(shared):
    with shared() as conn:
        conn.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
        conn.cursor_factory = extras.DictCursor
        conn.set_client_encoding("LATIN1")
        conn.commit()
    with shared() as conn:
        assert (conn.autocommit, conn.isolation_level, conn.readonly, conn.deferrable) == (False, None, None, None)
        assert conn.encoding == "UTF8"
        assert conn.cursor_factory is None
        with conn.cursor() as cur:
            cur.execute("SHOW transaction_isolation")
            assert cur.fetchone() == ("read committed",)
            cur.execute("SHOW transaction_read_only")
            assert cur.fetchone() == ("off",)
            cur.execute("SHOW client_encoding")
            assert cur.fetchone() == ("UTF8",)
        conn.rollback()


def test_autocommit_is_put_back(shared, admin, table):
    with shared() as conn:
        conn.autocommit = True
        conn.set_session(readonly=True)
    with shared() as conn:
        assert conn.autocommit is False
        conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
        conn.rollback()
    assert rows(admin, table) == []


def test_a_prepared_transaction_doesnt_stick(shared, admin):
    with pytest.raises(RuntimeError, match=LEFT_OPEN):
        with shared() as conn:
            conn.tpc_begin("shared-connection-test")
            conn.cursor().execute("SELECT 1")
            conn.tpc_prepare()
    with admin.cursor() as cur:
        cur.execute("ROLLBACK PREPARED 'shared-connection-test'")
    assert select(shared) == 1


# -- turns


def test_one_at_a_time(shared):
    inside = []

    def use(n):
        with shared() as conn:
            inside.append(n)
            assert len(inside) == 1
            conn.cursor().execute("SELECT pg_sleep(0.002)")
            conn.commit()
            inside.remove(n)

    run_all([lambda n=n: use(n) for n in range(50)])


def test_first_come_first_served(shared):
    order = []

    def use(n):
        with shared():
            order.append(n)

    with shared():
        tasks = []
        for n in range(20):
            tasks.append(Task(use, n))
            wait_until(lambda n=n: shared._turns.waiting_count == n + 1)
    for task in tasks:
        task.result()
    assert order == list(range(20))


def test_who_comes_back_stands_at_the_end(shared):
    """No overtaking: two tasks that use it again and again take turns."""
    order = []

    def use(name):
        for _ in range(10):
            with shared() as conn:
                order.append(name)
                conn.cursor().execute("SELECT 1")
                conn.commit()

    with shared():
        tasks = [Task(use, name) for name in "ab"]
        wait_until(lambda: shared._turns.waiting_count == 2)
    for task in tasks:
        task.result()
    assert "".join(order) in {"ab" * 10, "ba" * 10}


def test_native_threads_and_tasks_take_turns(shared):
    inside = []

    def use(n):
        for _ in range(5):
            with shared() as conn:
                inside.append(n)
                assert inside == [n]
                cur = conn.cursor()
                cur.execute("SELECT %s", (n,))
                assert cur.fetchone() == (n,)
                conn.commit()
                inside.clear()
        return n

    tasks = [lambda n=n: hub().run_in_thread(use, n) if n % 2 else use(n) for n in range(12)]
    assert run_all(tasks) == list(range(12))


def test_entering_twice(shared):
    with shared():
        with pytest.raises(RuntimeError, match="would wait for itself"):
            with shared():
                pass
        with pytest.raises(RuntimeError, match="would wait for itself"):
            shared.close()


def test_timeout(shared):
    def wait_for_it(timeout):
        with pytest.raises(WaitTimeout, match="has"), shared(timeout=timeout):
            pass

    with shared():
        Task(wait_for_it, 0.02).result()
        Task(wait_for_it, 0).result()
        assert shared._turns.waiting_count == 0
    with shared(timeout=0):
        pass


# -- kills


@green_only
def test_a_kill_in_a_statement(shared, admin, table):
    def use():
        with shared() as conn:
            conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
            conn.cursor().execute("SELECT pg_sleep(60)")

    pid = pid_of(shared)
    task = Task(use)
    wait_until(lambda: shared.status == extensions.TRANSACTION_STATUS_ACTIVE)
    hub().sleep(0.02)
    task.throw(Killed())
    task.join()
    assert isinstance(task.error, Killed)
    assert rows(admin, table) == []
    assert shared.status == IDLE
    assert pid_of(shared) == pid, "cancelled and kept"


@green_only
def test_a_kill_in_the_block(shared, admin, table):
    def use():
        with shared() as conn:
            conn.cursor().execute("INSERT INTO shared_test VALUES (1)")
            hub().sleep(60)

    task = Task(use)
    wait_until(lambda: shared.status == INTRANS)
    hub().sleep(0.02)
    task.throw(Killed())
    task.join()
    assert isinstance(task.error, Killed)
    assert rows(admin, table) == []
    assert select(shared) == 1


@green_only
def test_a_kill_in_the_line(shared):
    with shared():
        tasks = [Task(pid_of, shared) for _ in range(3)]
        wait_until(lambda: shared._turns.waiting_count == 3)
        tasks[1].throw(Killed())
        tasks[1].join()
        assert shared._turns.waiting_count == 2
    assert tasks[0].result() == tasks[2].result()


@green_only
def test_a_kill_when_the_turn_is_handed_over(shared):
    """The turn has been given to the task, which hasn't run since: it goes on to the next."""
    with shared():
        tasks = [Task(pid_of, shared) for _ in range(2)]
        wait_until(lambda: shared._turns.waiting_count == 2)
        tasks[0].throw(Killed())  # comes before the event, or after it
    tasks[0].join()
    tasks[1].result()


@green_only
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_any_moment(shared, admin, table, seed):
    """Whatever happens to whom: exclusive turns, no leftover transaction, and all is well in the end."""
    rng = random.Random(seed)
    inside = []

    def use(n):
        for _ in range(6):
            with shared() as conn:
                inside.append(n)
                try:
                    assert inside == [n]
                    assert conn.get_transaction_status() == IDLE
                    conn.cursor().execute("INSERT INTO shared_test VALUES (%s)", (n,))
                    conn.cursor().execute("SELECT pg_sleep(0.001)")
                    conn.rollback()
                finally:
                    inside.remove(n)

    tasks = [Task(use, n) for n in range(12)]
    for _ in range(40):
        hub().sleep(rng.uniform(0, 0.004))
        rng.choice(tasks[2:]).throw(Killed())
    for task in tasks:
        task.join()
        assert task.error is None or isinstance(task.error, Killed), task.error
    assert tasks[0].error is tasks[1].error is None
    assert rows(admin, table) == []
    assert select(shared) == 1


@green_only
def test_a_kill_while_connecting(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"]) as proxy:
        shared = greenpg.SharedConnection(server.tcp_dsn, port=proxy.port)
        proxy.stall()
        task = Task(pid_of, shared)
        hub().sleep(0.05)
        task.throw(Killed())
        task.join()
        assert isinstance(task.error, Killed)
        proxy.cut()
        proxy.resume()
        assert select(shared) == 1
        shared.close()


# -- forks


@pytest.mark.only_hub("gevent", "threads")  # eventlet warns of every fork
def test_fork(shared):
    """The child has a connection of its own, even if the parent was in the midst of a block."""
    with shared() as conn:
        pid = conn.info.backend_pid
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if pid_of(shared) != pid and select(shared) == 1 else 2
            finally:
                os._exit(status)
        wait_until(lambda: os.waitpid(child, os.WNOHANG) == (child, 0))
    assert pid_of(shared) == pid
    assert select(shared) == 1
