"""`Connection` and `Cursor`: psycopg2's, with factories composed, and safe beside other tasks."""

import contextlib
import gc
import io
import weakref

import psycopg2
import psycopg2.extras
import pytest
from kit import Task, is_waiting, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.errors import ConnectionInUse
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


# -- factories


def test_connection_factory_is_composed_and_cached(dsn):
    class Tagged(extensions.connection):
        """Tagged."""

        def tag(self):
            return "tagged"

    first, second = (psycopg2.connect(dsn, connection_factory=Tagged) for _ in range(2))
    assert type(first) is type(second)
    assert isinstance(first, Tagged)
    assert isinstance(first, greenpg.Connection)
    assert type(first).__name__ == "Tagged"
    assert type(first).__doc__ == "Tagged."
    assert first.tag() == "tagged"
    first.close()
    second.close()


@pytest.mark.parametrize("name", [None, "server_side"])
def test_factories_that_are_functions(dsn, name):
    """What they make becomes greenpg's."""
    conn = psycopg2.connect(dsn, connection_factory=lambda *args: greenpg.Connection(*args))
    assert type(conn) is greenpg.Connection
    cur = conn.cursor(name, cursor_factory=lambda *args: psycopg2.extras.DictCursor(*args))
    cur.execute("SELECT 1 AS one")
    assert cur.fetchone()["one"] == 1
    assert isinstance(cur, greenpg.ServerCursor if name else greenpg.Cursor)
    assert isinstance(cur, psycopg2.extras.DictCursor)
    file = io.StringIO()
    cur.copy_expert("COPY (SELECT 1) TO STDOUT", file)
    assert file.getvalue() == "1\n"
    conn.close()


class Plain(extensions.cursor):
    pass


@pytest.mark.parametrize(
    "copy", ["COPY (SELECT 1) TO STDOUT", "COPY pg_class FROM STDIN", "SELECT 1; COPY (SELECT 1) TO STDOUT"]
)
@pytest.mark.parametrize("make", [Plain, extensions.cursor, lambda conn: conn.cursor(cursor_factory=plain_cursor)])
def test_copy_by_a_cursor_that_is_none_of_greenpgs(conn, make, copy):
    """psycopg2 refuses it, and doesn't leave the connection in the middle of it."""
    cur = make(conn)
    with pytest.raises(psycopg2.Error):
        cur.execute(copy)
    assert conn.get_transaction_status() in (
        extensions.TRANSACTION_STATUS_INERROR,
        extensions.TRANSACTION_STATUS_INTRANS,
    )
    conn.rollback()
    cur.execute("SELECT 2")
    assert cur.fetchone() == (2,)


def plain_cursor(*args):
    return extensions.cursor(*args)


def test_class_without_a_module(dsn):
    made = {}
    exec("factory = type('Made', bases, {})", {"bases": (extensions.connection,)}, made)
    with contextlib.closing(psycopg2.connect(dsn, connection_factory=made["factory"])) as conn:
        assert isinstance(conn, greenpg.Connection)
        assert type(conn).__name__ == "Made"


@pytest.mark.parametrize(
    ("factory", "row"),
    [
        (psycopg2.extras.DictCursor, [1, "a"]),
        (psycopg2.extras.RealDictCursor, {"id": 1, "name": "a"}),
        (psycopg2.extras.NamedTupleCursor, (1, "a")),
    ],
)
@pytest.mark.parametrize("name", [None, "server_side"])
def test_cursor_factories(conn, factory, row, name):
    cur = conn.cursor(name, cursor_factory=factory)
    assert isinstance(cur, factory)
    assert isinstance(cur, greenpg.ServerCursor if name else greenpg.Cursor)
    cur.execute("SELECT 1 AS id, 'a' AS name")
    assert cur.fetchone() == row
    cur.close()


def test_cursor_factory_of_the_connection(dsn):
    conn = psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor)
    assert conn.cursor_factory is psycopg2.extras.RealDictCursor
    cur = conn.cursor()
    cur.execute("SELECT 1 AS one")
    assert cur.fetchall() == [{"one": 1}]
    assert not isinstance(conn.cursor(cursor_factory=extensions.cursor), psycopg2.extras.RealDictCursor)
    conn.close()


def test_options_of_named_cursors_are_refused_without_a_name(conn):
    for options in ({"withhold": True}, {"scrollable": True}):
        with pytest.raises(psycopg2.ProgrammingError):
            conn.cursor(**options)


def test_cursor_factory_that_is_no_cursor_is_refused(conn):
    with pytest.raises(TypeError, match="cursor factory must be subclass"):
        conn.cursor(cursor_factory=lambda *args: object())


def test_forgotten_connection_is_collected(dsn):
    conn = greenpg.connect(dsn)
    conn.cursor().execute("SELECT 1")
    ref = weakref.ref(conn)
    del conn
    gc.collect()
    assert ref() is None


# -- errors


def test_wrong_password_and_unreachable_server_and_malformed_dsn(dsn, tmp_path):
    with pytest.raises(psycopg2.OperationalError, match="No such file"):
        greenpg.connect(host=str(tmp_path), dbname="x", user="x")
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        greenpg.connect("host=127.0.0.1 port=1 user=x password=hunter2")
    for malformed in (
        "host=localhost password=hunter2 nonsense",
        "postgresql://user:hunter2@host:notaport/db%",
        "postgresql://user:hunter2%zz@host/db",
        "host=localhost nosuchoption=1 password='hunter2'",
    ):
        with pytest.raises(psycopg2.ProgrammingError, match="a connection string is a URI") as caught:
            greenpg.connect(malformed)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None, "the original error shows the password"


# -- several tasks


def test_statements_let_other_tasks_run(dsn):
    """Ten connections sleep at the same time."""

    def sleep():
        conn = greenpg.connect(dsn)
        cur = conn.cursor()
        for _ in range(3):
            cur.execute("SELECT pg_sleep(0.03), pg_backend_pid()")
        pid = cur.fetchone()[1]
        conn.close()
        return pid

    assert len(set(run_all([sleep] * 10))) == 10


def start_sleeping(conn, seconds=0.3):
    """A task that runs a statement on the connection; returns when it waits for the server."""

    def sleep():
        cur = conn.cursor()
        cur.execute("SELECT pg_sleep(%s), 42", (seconds,))
        return cur.fetchone()[1]

    task = Task(sleep)
    wait_until(lambda: is_waiting(conn))
    return task


@green_only
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("execute", lambda conn: conn.cursor().execute("SELECT 1")),
        ("executemany", lambda conn: conn.cursor().executemany("SELECT %s", [(1,)])),
        ("callproc", lambda conn: conn.cursor().callproc("pg_backend_pid")),
        ("commit", lambda conn: conn.commit()),
        ("rollback", lambda conn: conn.rollback()),
        ("reset", lambda conn: conn.reset()),
        ("set_session", lambda conn: conn.set_session(readonly=True)),
        ("set_client_encoding", lambda conn: conn.set_client_encoding("LATIN1")),
        ("autocommit", lambda conn: setattr(conn, "autocommit", True)),
        ("isolation_level", lambda conn: setattr(conn, "isolation_level", "SERIALIZABLE")),
        ("tpc_recover", lambda conn: conn.tpc_recover()),
    ],
)
def test_second_task_gets_an_error_that_names_the_first(conn, name, call):
    task = start_sleeping(conn)
    with pytest.raises(ConnectionInUse, match=f"^{name}.*refused: .*green.* is waiting for the server") as caught:
        call(conn)
    assert isinstance(caught.value, psycopg2.ProgrammingError)
    assert name in caught.value.operation
    assert task.result() == 42, "the first task's statement is unharmed"
    cur = conn.cursor()
    cur.execute("SELECT 7")
    assert cur.fetchone() == (7,)
    conn.rollback()


@green_only
def test_server_side_cursor_is_guarded(conn):
    cur = conn.cursor("named")
    cur.execute("SELECT * FROM generate_series(1, 10)")
    task = start_sleeping(conn)
    for call in (cur.fetchone, cur.fetchmany, cur.fetchall, lambda: next(cur), lambda: cur.scroll(1), cur.close):
        with pytest.raises(ConnectionInUse):
            call()
    assert task.result() == 42
    assert cur.fetchall() == [(n,) for n in range(1, 11)]
    cur.close()


@green_only
def test_reading_client_side_is_free_while_another_task_waits(conn):
    cur = conn.cursor()
    cur.execute("SELECT * FROM generate_series(1, 3)")
    task = start_sleeping(conn)
    assert cur.fetchone() == (1,)
    assert cur.fetchall() == [(2,), (3,)]
    assert conn.closed == 0
    assert conn.notices == []
    assert cur.mogrify("%s", (1,)) == b"1"
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_ACTIVE
    cur.close()
    assert task.result() == 42


def test_each_task_gets_its_own_results(make_pool):
    """100 tasks through 10 connections, every statement returning a number of its own."""
    pool = make_pool(min_size=10)
    numbers = iter(range(1_000_000))

    def check():
        for _ in range(20):
            number = next(numbers)
            with pool.cursor() as cur:
                cur.execute("SELECT %s, pg_sleep(random() * 0.002)", (number,))
                assert cur.fetchone()[0] == number
        return True

    assert run_all([check] * 100) == [True] * 100
    assert pool.get_stats()["pool_size"] == 10


def test_callback_waits_for_large_queries_and_results(conn):
    """Both directions fill the socket's buffer."""
    cur = conn.cursor()
    text = "x" * 20_000_000
    cur.execute("SELECT %s", (text,))
    assert cur.fetchone()[0] == text


@pytest.mark.only_hub("gevent")
def test_native_thread_without_a_loop_runs_statements(dsn):
    def work():
        conn = greenpg.connect(dsn)
        cur = conn.cursor()
        cur.execute("SELECT pg_sleep(0.1), 1")
        one = cur.fetchone()[1]
        conn.close()
        return one

    assert hub().run_in_thread(work) == 1


@pytest.mark.only_hub("gevent")
def test_connection_goes_to_another_native_thread_and_back(conn):
    def work():
        cur = conn.cursor()
        cur.execute("SELECT pg_sleep(0.01), 1")
        return cur.fetchone()[1]

    for _ in range(3):
        assert work() == 1
        assert hub().run_in_thread(work) == 1


def test_execute_of_the_connection(conn):
    assert conn.execute("SELECT %s", (1,)).fetchone() == (1,)
