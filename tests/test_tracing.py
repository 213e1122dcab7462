"""Hooks: what tracers are told of, and that nothing is lost whatever they do."""

from __future__ import annotations

import io

import psycopg2
import psycopg2.extras
import pytest
from kit import Killed, Task, wait_until

import greenpg
from greenpg import Tracer
from greenpg.connection.cursor import Cursor
from greenpg.hubs import hub


class Recorder(Tracer):
    """Keeps what it is told."""

    def __init__(self, *events):
        self.events = events or None
        self.log = []
        self.ended = []

    def start(self, event):
        assert event.seconds is None
        self.log.append(f"{event.name} begins")

    def end(self, event):
        self.log.append(event.name)
        self.ended.append(event)

    def of(self, name):
        return [event for event in self.ended if event.name == name]


@pytest.fixture
def recorder():
    return Recorder()


def test_a_loan_and_its_statements(make_pool, recorder):
    pool = make_pool(min_size=1, name="traced", on_event=recorder)
    with pool.connection() as conn:
        cur = conn.cursor()
        cur.execute("SELECT %s + 1", (1,))
        assert cur.fetchone() == (2,)
        conn.execute("CREATE TEMP TABLE traced (n int)")
        cur.executemany("INSERT INTO traced VALUES (%s)", [(1,), (2,)])
        cur.copy_expert("COPY traced FROM STDIN", io.StringIO("3\n"))
        with cur.copy("COPY traced TO STDOUT") as copy:
            assert len(list(copy.rows())) == 3
    wait_until(lambda: len(recorder.of("connect")) == 1)
    own = [line for line in recorder.log if not line.startswith("connect")]
    assert own == [
        *("acquire begins", "acquire", "query begins", "query", "query begins", "query", "batch begins", "batch"),
        *("copy begins", "copy", "copy begins", "copy", "release"),
    ]
    assert all(event.pool == "traced" and event.error is None for event in recorder.ended)
    assert all(0 <= event.seconds < 60 and event.started_at > 1.7e9 for event in recorder.ended)
    query = recorder.of("query")[0]
    assert (query.statement, query.parameters) == ("SELECT %s + 1", (1,))
    assert query.cursor is cur and query.connection is conn
    assert recorder.of("release")[0].seconds >= query.seconds, "how long it was held"
    assert repr(query).startswith("<TraceEvent query in 'traced', ")


def test_functions_one_shots_and_other_cursors(make_pool):
    names = []
    pool = make_pool(min_size=1, max_size=1, on_event=[lambda event: names.append(event.name), Recorder("connect")])
    assert pool.fetchval("SELECT 42") == 42
    with pool.cursor(psycopg2.extras.DictCursor) as cur:
        cur.execute("SELECT 1 AS one")
        assert cur.fetchone()["one"] == 1
    with pool.connection() as conn, conn.cursor("named") as cur:
        cur.execute("SELECT generate_series(1, 3)")
        assert len(cur.fetchall()) == 3
    names.remove("connect")
    assert names == ["acquire", "query", "release"] * 3


def test_errors(make_pool, recorder):
    pool = make_pool(min_size=1, max_size=1, on_event=recorder)
    with pytest.raises(psycopg2.errors.DivisionByZero) as caught:
        pool.execute("SELECT 1 / 0")
    assert recorder.of("query")[0].error is caught.value
    with pool.connection() as conn:
        with pytest.raises(psycopg2.errors.UndefinedTable) as caught, conn.cursor().copy("COPY nowhere FROM STDIN"):
            pass
        assert recorder.of("copy")[0].error is caught.value
        conn.rollback()
        with pytest.raises(greenpg.PoolTimeout) as caught:
            pool.getconn(timeout=0.01)
    assert recorder.of("acquire")[-1].error is caught.value
    assert recorder.of("timeout")[0].error is caught.value
    assert pool.get_stats()["requests_timeouts"] == 1


def test_an_error_of_connecting(make_pool, recorder):
    pool = make_pool("host=127.0.0.1 port=1", min_size=1, fail_fast=True, on_event=recorder)
    with pytest.raises(psycopg2.OperationalError):
        pool.getconn()
    assert isinstance(recorder.of("connect")[0].error, psycopg2.OperationalError)
    assert recorder.of("connect")[0].connection is None


@pytest.mark.only_hub("gevent", "eventlet")
def test_a_statement_that_is_cancelled(make_pool, recorder):
    pool = make_pool(min_size=1, max_size=1, on_event=recorder)
    task = Task(pool.execute, "SELECT pg_sleep(30)")
    wait_until(lambda: "query begins" in recorder.log)
    hub().sleep(0.05)
    task.throw(Killed)
    with pytest.raises(Killed):
        task.result()
    assert isinstance(recorder.of("query")[0].error, Killed)
    (cancelled,) = recorder.of("cancelled")
    assert cancelled.statement == "SELECT pg_sleep(30)" and isinstance(cancelled.error, Killed)
    assert pool.fetchval("SELECT 42") == 42


def test_a_connection_that_is_evicted(make_pool, recorder, admin):
    pool = make_pool(min_size=1, max_size=1, on_event=recorder)
    with pytest.raises(psycopg2.OperationalError), pool.connection() as conn:
        admin.cursor().execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        conn.execute("SELECT 1")
    wait_until(lambda: recorder.of("evicted"))
    assert recorder.of("evicted")[0].reason
    assert pool.get_stats()["connections_evicted"] >= 1
    assert pool.fetchval("SELECT 42") == 42


def test_a_leak_and_a_deadlock(make_pool, recorder):
    pool = make_pool(min_size=1, max_size=1, leak_after=0.05, on_event=recorder)
    with pool.connection(), pytest.raises(greenpg.PoolTimeout):
        pool.getconn(timeout=0.3)
    wait_until(lambda: recorder.of("leaked") and recorder.of("deadlock"))
    assert "has held it for" in recorder.of("leaked")[0].reason
    assert "waits for another one" in recorder.of("deadlock")[0].reason
    stats = pool.get_stats()
    assert (stats["connections_leaked"], stats["deadlocks"]) == (1, 1)


def test_only_what_is_wanted(make_pool):
    recorder = Recorder("query")
    pool = make_pool(min_size=1, max_size=1, on_event=recorder)
    pool.execute("SELECT 1")
    assert recorder.log == ["query begins", "query"]
    loans = Recorder("acquire")
    pool.remove_tracer(recorder)
    pool.add_tracer(loans)
    pool.execute("SELECT 1")
    assert recorder.log == ["query begins", "query"] and loans.log == ["acquire begins", "acquire"]
    pool.remove_tracer(loans)
    with pool.connection() as conn:
        assert type(conn.cursor()) is Cursor, "nothing is left of it"
    assert loans.log == ["acquire begins", "acquire"]


def test_beside_a_log(make_pool, recorder, caplog):
    caplog.set_level("DEBUG", "greenpg.sql")
    pool = make_pool(min_size=1, max_size=1, configure=greenpg.SqlLog(), on_event=recorder)
    pool.execute("SELECT 'both'")
    assert recorder.of("query")[-1].statement == "SELECT 'both'"
    assert "SELECT 'both'" in caplog.text


def test_a_tracer_that_fails(make_pool, caplog):
    def fail(event):
        raise ValueError(f"no {event.name}, please")

    pool = make_pool(min_size=1, max_size=1, on_event=fail)
    assert pool.fetchval("SELECT 42") == 42
    assert "no query, please" in caplog.text and "no release, please" in caplog.text


@pytest.mark.parametrize("name", ["acquire", "release", "query"])
def test_a_kill_in_a_tracer_costs_no_connection(make_pool, name):
    class Lethal(Tracer):
        events = (name,)
        is_armed = True

        def end(self, event):
            if self.is_armed:
                self.is_armed = False
                raise Killed

    tracer = Lethal()
    pool = make_pool(min_size=1, max_size=1, on_event=tracer)
    with pytest.raises(Killed), pool.connection() as conn:
        conn.execute("SELECT 1")
    for _ in range(3):
        assert pool.fetchval("SELECT 42", timeout=10) == 42


def test_what_is_no_tracer(dsn):
    with pytest.raises(TypeError, match="on_event must be a function"):
        greenpg.ConnectionPool(dsn, on_event="print")
    with pytest.raises(ValueError, match="there are no events 'queries'"):
        greenpg.ConnectionPool(dsn, on_event=Recorder("queries"))
