"""Kills and timeouts whose exception is an Exception, or one of psycopg2's: told from errors by where they come from.

`gevent.Timeout(5, psycopg2.OperationalError("too slow"))` is how existing `except` clauses are made to catch a timeout.
"""

import dataclasses
import io
import itertools
import signal

import psycopg2
import psycopg2.errors
import pytest
from kit import Killed, Task, is_waiting, statements_running, usable, wait_until
from psycopg2 import extensions

import greenpg
from greenpg import errors
from greenpg.connection import interrupting
from greenpg.errors import is_interruption, note_interruption
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses all attributes."""

    reason: str


THROWN = [
    psycopg2.OperationalError,
    psycopg2.errors.QueryCanceled,
    psycopg2.ProgrammingError,
    psycopg2.InterfaceError,
    errors.DeadlineExceeded,
    TimeoutError,
    Frozen,
]


@pytest.fixture(params=THROWN, ids=lambda class_: class_.__name__)
def exception(request):
    return request.param("too slow")


def thrown_into(call, exception, is_waiting, *more):
    """Throw when the call waits; what comes out of it."""
    task = Task(call)
    wait_until(is_waiting)
    hub().sleep(0.02)
    for each in (exception, *more):
        task.throw(each)
        hub().sleep(0.05)
    task.join(10)
    return task.error


# -- statements


def sleep_in_executemany(conn):
    """In the second page."""
    rows = [(0,)] * 1005 + [(60,)] + [(0,)] * 5
    conn.cursor().executemany("SELECT pg_sleep(%s)", rows)


def sleep_in_copy_block(conn):
    with conn.cursor().copy("COPY (SELECT n, pg_sleep(0.01) FROM generate_series(1, 100000) n) TO STDOUT") as copy:
        for _ in copy.rows():
            pass


STATEMENTS = {
    "execute": lambda conn: conn.execute("SELECT pg_sleep(60)"),
    "executemany": sleep_in_executemany,
    "callproc": lambda conn: conn.cursor().callproc("pg_sleep", (60,)),
    "copy_to": lambda conn: conn.cursor().copy_expert(
        "COPY (SELECT n, pg_sleep(0.01) FROM generate_series(1, 100000) n) TO STDOUT", io.BytesIO()
    ),
    "copy block": sleep_in_copy_block,
}


@green_only
@pytest.mark.parametrize("statement", STATEMENTS)
def test_statement_is_cancelled_and_the_connection_kept(conn, admin, statement, exception):
    error = thrown_into(lambda: STATEMENTS[statement](conn), exception, lambda: statements_running(admin))
    assert error is exception
    assert statements_running(admin) == []
    assert usable(conn)


@green_only
def test_large_object(conn, exception):
    lobject = conn.lobject(0, "wb")
    error = thrown_into(lambda: lobject._call("pg_sleep(60)::text"), exception, lambda: is_waiting(conn))
    assert error is exception
    assert usable(conn)


@green_only
def test_copy_from_a_file(conn, exception):
    """Thrown in while the server makes it wait for a lock on the first row."""
    cur = conn.cursor()
    cur.execute(
        "CREATE TEMP TABLE c (n int); CREATE FUNCTION pg_temp.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(60); RETURN NEW; END'; CREATE TRIGGER t BEFORE INSERT ON c FOR EACH ROW "
        "EXECUTE FUNCTION pg_temp.slow()"
    )
    conn.commit()
    error = thrown_into(lambda: cur.copy_from(io.StringIO("1\n2\n"), "c"), exception, lambda: is_waiting(conn))
    assert error is exception
    assert usable(conn)


@green_only
def test_file_that_waits_for_another_connection(dsn, conn, admin):
    """What comes out of its read() was thrown in, and is no error of reading."""

    class FromAnotherConnection:
        def __init__(self):
            self.other = greenpg.connect(dsn, application_name="tested")

        def read(self, size):
            self.other.execute("SELECT pg_sleep(60)")

    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE c (n int)")
    file, exception = FromAnotherConnection(), TimeoutError("too slow")
    assert thrown_into(lambda: cur.copy_from(file, "c"), exception, lambda: statements_running(admin)) is exception
    assert usable(conn) and usable(file.other)
    file.other.close()


@green_only
def test_leaving_a_copy_block(conn, admin, exception):
    """Thrown in while the block waits for the outcome."""
    cur = conn.cursor()
    cur.execute(
        "CREATE TEMP TABLE c (n int); CREATE FUNCTION pg_temp.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(60); RETURN NEW; END'; CREATE TRIGGER t AFTER INSERT ON c "
        "EXECUTE FUNCTION pg_temp.slow()"
    )
    conn.commit()

    def copy():
        with cur.copy("COPY c FROM STDIN") as block:
            block.write_row((1,))

    assert thrown_into(copy, exception, lambda: statements_running(admin)) is exception
    assert statements_running(admin) == []
    assert usable(conn)


@green_only
def test_connection_made_past_the_guards_is_cancelled(dsn, admin):
    conn = extensions.connection(extensions.make_dsn(dsn, application_name="tested"))
    exception = psycopg2.OperationalError("too slow")
    cur = conn.cursor()
    assert (
        thrown_into(lambda: cur.execute("SELECT pg_sleep(60)"), exception, lambda: statements_running(admin))
        is exception
    )
    wait_until(lambda: statements_running(admin) == [], 2)


@green_only
def test_commit_tells_its_outcome(through_proxy, exception):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.execute("CREATE TEMP TABLE t (n int)")
    proxy.stall()
    task = Task(conn.commit)
    wait_until(lambda: is_waiting(conn))
    task.throw(exception)
    hub().sleep(0.05)
    proxy.resume()
    task.join(10)
    assert task.error is exception, "not left away, as our own deadline's is"
    assert errors.commit_outcome(exception) == errors.COMMITTED
    assert usable(conn)
    conn.close()


# -- a second one while the first one's cancel is under way


@green_only
@pytest.mark.parametrize("statement", ["execute", "executemany", "copy_to", "copy block"])
def test_second_one_while_cancelling(through_proxy, admin, statement, exception, caplog):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn, application_name="tested")
    conn.execute("SELECT 1")
    task = Task(lambda: STATEMENTS[statement](conn))
    wait_until(lambda: statements_running(admin))
    hub().sleep(0.05)
    proxy.stall()
    task.throw(Killed)
    hub().sleep(0.05)
    task.throw(exception)
    task.join(2)
    assert task.error is exception
    assert conn.closed
    assert "closing" not in caplog.text, "it was interrupted, nothing has failed"


# -- connecting


@green_only
def test_connecting(through_proxy, exception):
    """It is no failed host: the next one is not tried, and the exception isn't wrapped."""
    proxy, dsn = through_proxy
    proxy.stall()
    task = Task(greenpg.connect, dsn)
    hub().sleep(0.05)
    task.throw(exception)
    task.join(2)
    assert task.error is exception
    assert not errors.safe_to_retry(exception)


numbers = itertools.count()


@green_only
@pytest.mark.parametrize("connect_timeout", ["", "20"])
def test_looking_up(monkeypatch, exception, connect_timeout):
    name_is_asked_for = []

    def resolve(name, port):
        name_is_asked_for.append(name)
        hub().natives().sleep(0.5)
        return []

    monkeypatch.setattr(hub().natives(), "resolve", resolve)
    # A look-up of the same name that is under way would be joined.
    dsn = f"host=slow-{next(numbers)}.example user=x connect_timeout='{connect_timeout}'"
    assert thrown_into(lambda: greenpg.connect(dsn), exception, lambda: name_is_asked_for) is exception


def test_errors_of_looking_up_are_its_own(monkeypatch):
    def resolve(name, port):
        raise UnicodeError("label too long")

    monkeypatch.setattr(hub().natives(), "resolve", resolve)
    for dsn in ("host=no.example user=x", "host=none.example user=x connect_timeout=5"):
        with pytest.raises(psycopg2.OperationalError, match="could not translate host name .* label too long"):
            greenpg.connect(dsn)


# -- waits without a statement


@green_only
def test_wait_notify(conn, exception):
    conn.autocommit = True
    conn.execute("LISTEN x")
    assert thrown_into(conn.wait_notify, exception, lambda: is_waiting(conn)) is exception
    assert usable(conn)


@green_only
def test_waiting_for_an_asynchronous_connection(dsn, exception):
    conn = greenpg.connect(dsn, async_=True)
    greenpg.wait(conn)
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(0.3), 42")
    assert thrown_into(lambda: greenpg.wait(conn), exception, lambda: is_waiting(conn)) is exception
    greenpg.wait(conn)
    assert cur.fetchone()[1] == 42, "nothing was cancelled"
    conn.close()


@green_only
def test_cancel_with_an_older_libpq(dsn, conn, monkeypatch, exception):
    """Thrown in while the cancel request runs in a native thread: the second exception, again."""
    natives = hub()._natives
    run_in_thread = hub().run_in_thread
    monkeypatch.setattr(hub(), "run_in_thread", lambda call: run_in_thread(lambda: (natives.sleep(0.3), call())[1]))
    monkeypatch.setattr("greenpg.libpq.has_function", lambda name: False)
    task = Task(lambda: conn.execute("SELECT pg_sleep(60)"))
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.02)
    task.throw(Killed)
    hub().sleep(0.05)
    task.throw(exception)
    task.join(5)
    assert task.error is exception
    assert conn.closed


# -- one connection for many tasks


@green_only
def test_shared_connection_is_kept(dsn, admin, exception):
    shared = greenpg.SharedConnection(dsn, application_name="tested")

    def work():
        with shared() as conn:
            conn.execute("SELECT pg_sleep(60)")

    with shared() as conn:
        conn.rollback()
    assert thrown_into(work, exception, lambda: statements_running(admin)) is exception
    with shared() as again:
        assert again is conn
        assert usable(again)
    shared.close()


@green_only
def test_shared_connection_lets_it_out_of_its_rollback(through_proxy, exception):
    proxy, dsn = through_proxy
    shared = greenpg.SharedConnection(dsn)

    def work():
        with shared() as conn:
            conn.execute("SELECT 1")
            proxy.stall()
            raise KeyError

    def is_rolling_back():
        conn = shared._conn
        return conn is not None and conn._gate.call == "rollback"

    task = Task(work)
    wait_until(is_rolling_back)
    task.throw(exception)
    hub().sleep(0.05)
    proxy.resume()
    task.join(10)
    assert task.error is exception
    assert isinstance(exception.__context__, KeyError)
    shared.close()


@green_only
def test_listener_and_its_subscribers(dsn, exception, admin):
    listener = greenpg.Listener(dsn, heartbeat=0.2)
    subscription = listener.subscribe("thrown")
    waiting = subscription._mailbox
    assert thrown_into(subscription.get, exception, lambda: waiting._readers) is exception
    task = Task(lambda: list(subscription))
    wait_until(lambda: waiting._readers)
    closed = errors.ListenerClosed("thrown in")
    task.throw(closed)
    task.join(5)
    assert task.error is closed, "not taken for the end of the notifications"
    with admin.cursor() as cur:
        cur.execute("NOTIFY thrown")
    assert subscription.get(5).channel == "thrown"
    listener.close()


# -- signal handlers: what is thrown into native threads


@pytest.mark.only_hub("threads")
def test_exception_of_a_signal_handler(conn, admin, exception):
    def handler(number, frame):
        raise exception

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(type(exception)) as caught:
            conn.execute("SELECT pg_sleep(60)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value is exception
    assert statements_running(admin) == []
    assert usable(conn)


# -- telling


@green_only
@pytest.mark.parametrize("wait", ["sleep", "event", "fd"])
def test_hubs_note_what_is_thrown_into_them(conn, wait, exception):
    assert not is_interruption(exception)
    calls = {
        "sleep": lambda: hub().sleep(60),
        "event": lambda: hub().event().wait(),
        "fd": lambda: hub().fd_waiter(conn.fileno()).wait_read(),
    }
    task = Task(calls[wait])
    wait_until(lambda: task.native is not None)
    hub().sleep(0.02)
    task.throw(exception)
    task.join(5)
    assert task.error is exception
    assert is_interruption(exception)


def test_errors_of_the_server_are_no_interruptions(conn, admin):
    with pytest.raises(psycopg2.errors.SyntaxError) as caught:
        conn.execute("nonsense")
    assert not is_interruption(caught.value)
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(psycopg2.OperationalError) as caught:
        conn.rollback()
        conn.execute("SELECT 1")
    assert not is_interruption(caught.value)
    with conn.deadline(5), pytest.raises(psycopg2.Error) as caught:
        conn.execute("SELECT 1")
    assert not is_interruption(caught.value)


def test_marks_are_not_asked_of_the_class():
    class Agreeing(Exception):
        def __getattr__(self, name):
            return True

    exception = Agreeing()
    assert not is_interruption(exception)
    note_interruption(exception)
    assert is_interruption(exception)
    refused = errors.PoolTimeout("thrown in")
    assert errors.safe_to_retry(refused)
    note_interruption(refused)
    assert not errors.safe_to_retry(refused), "nobody knows what it was thrown into"


@green_only
def test_own_deadline_is_no_interruption(conn):
    with conn.deadline(0.05), pytest.raises(errors.DeadlineExceeded) as caught:
        conn.execute("SELECT pg_sleep(60)")
    assert not is_interruption(caught.value)
    assert usable(conn)


@pytest.mark.usual_times
@green_only
def test_cancel_that_fails_because_of_the_server_is_told(through_proxy, admin, monkeypatch, caplog):
    """psycopg2's own errors while an interrupted statement is ended close the connection, with a warning."""
    monkeypatch.setattr(interrupting, "END_TIMEOUT", 0.3)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    exception = psycopg2.OperationalError("too slow")
    task = Task(lambda: conn.execute("SELECT pg_sleep(60)"))
    wait_until(lambda: is_waiting(conn))
    proxy.stall()
    task.throw(exception)
    task.join(5)
    assert task.error is exception
    assert conn.closed
    assert "interrupted by OperationalError" in caplog.text
