"""How connections end in production: at once when their task is killed, in the hub, in finalizers, without a trace."""

import contextlib
import gc
import io
import time
import weakref

import psycopg2
import pytest
from kit import Killed, Task, is_waiting, usable, wait_until
from psycopg2 import extensions

import greenpg
from greenpg import errors
from greenpg.connection import remains
from greenpg.hubs import hub

pytestmark = pytest.mark.only_hub("gevent", "eventlet")


def sessions(admin, name, where="true"):
    with admin.cursor() as cur:
        cur.execute(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND {where}", (name,))
        return cur.fetchone()[0]


def in_the_loop(function):
    """Call it in the event loop itself."""
    if hub().name == "gevent":
        import gevent

        gevent.get_hub().loop.run_callback(function)
    else:
        import eventlet

        eventlet.hubs.get_hub().schedule_call_global(0, function)


@contextlib.contextmanager
def without_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def sleep_in_execute(conn):
    conn.cursor().execute("SELECT pg_sleep(60)")


def sleep_in_executemany(conn):
    conn.cursor().executemany("SELECT pg_sleep(%s)", [(0,), (60,), (60,), (60,)])


def sleep_in_copy_out(conn):
    with conn.cursor().copy("COPY (SELECT pg_sleep(60)) TO STDOUT") as copy:
        list(copy)


def sleep_in_copy_in(conn):
    conn.execute("CREATE TEMP TABLE t (n int)")
    with conn.cursor().copy("COPY t FROM STDIN") as copy:
        copy.write(b"1\n")
        hub().sleep(60)


def sleep_in_copy_expert(conn):
    conn.cursor().copy_expert("COPY (SELECT pg_sleep(60)) TO STDOUT", io.BytesIO())


def sleep_in_block(conn):
    with conn.transaction():
        conn.execute("SELECT 1")
        hub().sleep(60)


def sleep_in_named_cursor(conn):
    cur = conn.cursor("named")
    cur.execute("SELECT pg_sleep(60)")
    cur.fetchone()


SLEEPS = [
    sleep_in_execute,
    sleep_in_executemany,
    sleep_in_copy_out,
    sleep_in_copy_in,
    sleep_in_copy_expert,
    sleep_in_block,
    sleep_in_named_cursor,
]


# -- a kill comes out at once


@pytest.mark.usual_times
@pytest.mark.parametrize("sleep", SLEEPS)
def test_kill_comes_out_though_the_server_is_silent(through_proxy, admin, sleep):
    """And what runs is cancelled as soon as the server can be reached again."""
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn, application_name="silent")
    task = Task(sleep, conn)
    wait_until(lambda: sessions(admin, "silent", "state <> 'idle'"))
    hub().sleep(0.1)
    proxy.stall()
    task.throw(Killed)
    task.join(2)
    assert isinstance(task.error, Killed)
    proxy.resume()
    wait_until(lambda: sessions(admin, "silent") == 0, 5)


@pytest.fixture
def slow_commit(admin):
    """`INSERT INTO slow VALUES (seconds)`: so long the COMMIT takes."""
    with admin.cursor() as cur:
        cur.execute(
            """
            DROP TABLE IF EXISTS slow CASCADE;
            CREATE TABLE slow (seconds float);
            CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(NEW.seconds); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION slow();
            """
        )
    yield
    with admin.cursor() as cur:
        cur.execute("DROP TABLE slow CASCADE")


@pytest.mark.usual_times
def test_killed_commit_keeps_its_slot_until_its_process_has_ended(make_pool, admin, slow_commit):
    pool = make_pool(min_size=1, max_size=1, kwargs={"application_name": "committing"})

    def commit():
        with pool.connection() as conn:
            conn.execute("INSERT INTO slow VALUES (1.5)")

    task = Task(commit)
    wait_until(lambda: sessions(admin, "committing", "state = 'active' AND query = 'COMMIT'"))
    task.throw(Killed)
    task.join(1)
    assert errors.commit_outcome(task.error) == errors.UNKNOWN
    assert sessions(admin, "committing") == 1
    with pytest.raises(greenpg.PoolTimeout, match="1 closed ones still busy at the server"):
        pool.getconn(timeout=0.05)
    conn = pool.getconn(timeout=10)
    assert sessions(admin, "committing") == 1, "the new one alone"
    pool.putconn(conn)
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM slow")
        assert cur.fetchone() == (1,), "the COMMIT was not disturbed"


def test_slot_of_a_process_that_does_not_end_is_given_up(through_proxy, make_pool):
    proxy, dsn = through_proxy

    class Impatient(greenpg.Connection):
        interruption_grace, ending_timeout = 0.05, 0.2

    pool = make_pool(dsn, min_size=1, max_size=1, connection_class=Impatient)

    def work():
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(60)")

    task = Task(work)
    wait_until(lambda: any(slot.conn is not None and is_waiting(slot.conn) for slot in pool._core.ledger.slots))
    proxy.stall()
    task.throw(Killed)
    task.join(2)
    assert len(pool._core.ledger.ending) == 1
    wait_until(lambda: not pool._core.ledger.ending, 5)
    proxy.resume()
    with pool.connection() as conn:
        assert usable(conn)


@pytest.mark.parametrize("has_polled_cancel", [True, False])
def test_second_kill_during_the_cancel_leaves_nothing_running(server, make_pool, admin, monkeypatch, has_polled_cancel):
    """40 ms each way."""
    from proxy import Proxy

    if not has_polled_cancel:
        has_function = greenpg.libpq.has_function
        monkeypatch.setattr("greenpg.libpq.has_function", lambda name: "cancel" not in name and has_function(name))
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"], delay=0.04) as proxy:
        pool = make_pool(
            server.tcp_dsn, min_size=2, max_size=2, kwargs={"application_name": "twice", "port": proxy.port}
        )
        pool.wait()
        most = 0

        def work():
            with pool.connection() as conn:
                conn.execute("SELECT pg_sleep(60)")

        for n in range(6):
            task = Task(work)
            wait_until(lambda: sessions(admin, "twice", "state = 'active'"))
            task.throw(Killed)
            hub().sleep(0.01 + 0.015 * n)
            task.throw(Killed)
            task.join(2)
            most = max(most, sessions(admin, "twice"))
        wait_until(lambda: sessions(admin, "twice", "state = 'active'") == 0, 5)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, 5)
        assert max(most, sessions(admin, "twice")) <= 2
        pool.close()


def test_grace_may_be_set(through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.interruption_grace = 30.0
    task = Task(sleep_in_execute, conn)
    wait_until(lambda: is_waiting(conn))
    proxy.stall()
    task.throw(Killed)
    hub().sleep(1.0)
    assert task.error is None, "it still waits for the cancel"
    proxy.resume()
    task.join(5)
    assert isinstance(task.error, Killed)
    assert usable(conn)
    conn.close()


def test_close_of_another_tasks_connection_ends_what_runs(dsn, admin):
    conn = greenpg.connect(dsn, application_name="thrown out")
    task = Task(sleep_in_execute, conn)
    wait_until(lambda: is_waiting(conn))
    conn.close()
    task.join(1)
    assert isinstance(task.error, psycopg2.OperationalError)
    wait_until(lambda: sessions(admin, "thrown out") == 0, 2)


@pytest.mark.usual_times
def test_close_of_another_tasks_connection_though_the_server_is_silent(through_proxy, admin):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn, application_name="thrown out")
    task = Task(sleep_in_execute, conn)
    wait_until(lambda: is_waiting(conn) and sessions(admin, "thrown out", "state = 'active'"))
    proxy.stall()
    conn.close()
    task.join(1)
    assert isinstance(task.error, psycopg2.OperationalError)
    proxy.resume()
    wait_until(lambda: sessions(admin, "thrown out") == 0, 10)


# -- rollbacks and checks of a pool


@pytest.mark.usual_times
@pytest.mark.parametrize("block", ["connection", "cursor", "transaction"])
def test_error_of_a_block_is_not_held_back_for_a_rollback_that_cannot_come(
    through_proxy, make_pool, monkeypatch, block
):
    monkeypatch.setattr("greenpg.connection.deadlines.ROLLBACK_TIMEOUT", 0.2)
    proxy, dsn = through_proxy
    pool = make_pool(dsn, min_size=1, max_size=1)

    def work():
        with getattr(pool, block)() as lent:
            lent.execute("SELECT 1")
            proxy.stall()
            raise LookupError

    task = Task(work)
    task.join(3)
    assert isinstance(task.error, LookupError)
    proxy.resume()


@pytest.mark.usual_times
def test_silent_connections_are_not_tried_one_after_the_other(server, make_pool):
    """New connections work: they go another way."""
    from proxy import Proxy

    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"]) as proxy:
        ports = [proxy.port] * 4
        pool = make_pool(
            server.tcp_dsn,
            kwargs=lambda: {"port": ports.pop() if ports else parameters["port"]},
            min_size=4,
            max_size=4,
            check_idle=0.01,
        )
        pool.wait()
        hub().sleep(0.1)
        proxy.stall()
        conn = pool.getconn(timeout=4)
        assert usable(conn)
        pool.putconn(conn)
        wait_until(lambda: pool.get_stats()["pool_available"] == 4, 5)
        assert pool.get_stats()["connections_lost"] == 4
        pool.close()


# -- no trace is left


@pytest.mark.parametrize("grace", [0.3, 0.001])
@pytest.mark.parametrize("sleep", SLEEPS)
def test_connection_that_is_let_go_after_a_kill_is_closed_at_once(dsn, sleep, grace):
    conns = []

    def work():
        conn = greenpg.connect(dsn)
        conn.interruption_grace = grace
        conns.append(weakref.ref(conn))
        try:
            sleep(conn)
        except Killed:
            return

    with without_collector():
        task = Task(work)
        wait_until(lambda: conns)
        hub().sleep(0.1)
        task.throw(Killed())
        task.join(5)
        del task
        wait_until(lambda: conns[0]() is None, 2)


def test_killed_connects_leave_no_session(dsn, admin):
    errors_of_tasks = []

    def connect():
        greenpg.connect(dsn, application_name="killed connect").close()

    with without_collector():
        for n in range(30):
            task = Task(connect)
            hub().sleep(0.0001 * n)
            task.throw(Killed())
            task.join(5)
            errors_of_tasks.append(task.error)  # its traceback has the frames
        assert sum(isinstance(error, Killed) for error in errors_of_tasks) >= 1
        wait_until(lambda: sessions(admin, "killed connect") == 0, 2)


def test_lent_connection_does_not_keep_its_task_alive(make_pool):
    pool = make_pool(min_size=1)

    class Big:
        pass

    big = []

    def work():
        big.append(weakref.ref(mine := Big()))
        conn = pool.getconn(take_back=False)
        conn.execute("SELECT 1")
        return conn, mine

    task = Task(work)
    conn, _ = task.result()
    del task, _
    gc.collect()
    assert big[0]() is None
    pool.resize(1, 1)
    with pytest.raises(greenpg.PoolTimeout, match="a task that is gone has held one"):
        pool.getconn(timeout=0.01)
    pool.putconn(conn)


# -- the hub, finalizers


def abandoned_rows(kind, pool, own):
    if kind == "stream":
        with pool.stream("SELECT generate_series(1, 1000)", chunk_size=10) as stream:
            yield from stream
    elif kind == "own connection":
        with own.transaction():
            own.execute("SELECT 1")
            yield 1
    else:
        with getattr(pool, kind)() as lent:
            lent.execute("SELECT 1")
            yield 1


class Circle:
    """Garbage for the cyclic collector."""

    def __init__(self, content):
        self.content, self.me = content, self


@pytest.mark.parametrize("where", ["in the loop", "in a task", "while the mutex is held"])
@pytest.mark.parametrize("kind", ["cursor", "connection", "transaction", "stream", "own connection"])
def test_abandoned_generator(make_pool, dsn, kind, where, recwarn):
    pool = make_pool(min_size=1, max_size=1)
    pool.wait()
    own = greenpg.connect(dsn)
    with without_collector():
        rows = abandoned_rows(kind, pool, own)
        next(rows)
        Circle(rows)
        del rows
        if where == "in the loop":
            in_the_loop(gc.collect)
            hub().sleep(0.05)
        elif where == "in a task":
            gc.collect()
        else:
            with pool._core.mutex:
                gc.collect()
    wait_until(lambda: pool.get_stats()["pool_available"] == 1, 2)
    assert own.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    assert [str(warning.message) for warning in recwarn] == []
    with pool.connection() as conn:
        assert usable(conn)
    assert pool.get_stats()["connections_num"] == 1, "the connection was kept"
    own.close()


@pytest.mark.usual_times
@pytest.mark.may_block
def test_waits_in_the_loop_itself_are_bounded(through_proxy, monkeypatch):
    monkeypatch.setattr(f"greenpg.hubs.{hub().name}.LONGEST_BLOCK", 0.1)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.execute("SELECT 1")
    results = []

    def roll_back():
        assert hub().is_in_loop()
        try:
            conn.rollback()
            results.append("rolled back")
        except psycopg2.Error as error:
            results.append(error)

    assert not hub().is_in_loop()
    in_the_loop(roll_back)
    wait_until(lambda: results)
    assert results == ["rolled back"]
    conn.execute("SELECT 1")
    proxy.stall()
    in_the_loop(roll_back)
    wait_until(lambda: len(results) == 2)
    assert "the event loop itself" in str(results[1])
    assert conn.closed


def test_silence_of_a_foreign_connection(through_proxy, monkeypatch):
    """psycopg2's own, which has none of our attributes."""
    monkeypatch.setattr(remains, "INTERRUPTION_GRACE", 0.1)
    proxy, dsn = through_proxy
    conn = extensions.connection(dsn)
    task = Task(conn.cursor().execute, "SELECT pg_sleep(60)")
    hub().sleep(0.1)
    proxy.stall()
    started = time.monotonic()
    task.throw(Killed)
    task.join(2)
    assert isinstance(task.error, Killed)
    assert conn.closed
    assert time.monotonic() >= started
    proxy.resume()


# -- what has become of a transaction


@pytest.mark.parametrize("error_class", [Killed, psycopg2.errors.DivisionByZero])
def test_one_shot_that_failed_is_rolled_back(make_pool, admin, error_class):
    pool = make_pool(min_size=1, kwargs={"application_name": "one-shot"})
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS one_shot; CREATE TABLE one_shot (n int)")
    statement = "INSERT INTO one_shot SELECT 1 / (1 - n) FROM generate_series(0, 1) n, pg_sleep(%s)"
    task = Task(pool.execute, statement, (60 if error_class is Killed else 0,))
    if error_class is Killed:
        wait_until(lambda: sessions(admin, "one-shot", "state = 'active'"))
        task.throw(Killed)
    task.join(5)
    assert isinstance(task.error, error_class)
    assert errors.commit_outcome(task.error) == errors.ROLLED_BACK
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM one_shot")
        assert cur.fetchone() == (0,)
        cur.execute("DROP TABLE one_shot")
