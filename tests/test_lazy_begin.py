"""BEGIN that rides with the first statement, on every connection: what it sends, and what can't be told from psycopg2's
own BEGIN. Whatever goes past greenpg's cursor is in psycopg2's transaction."""

import functools
import subprocess
import sys
import time
from collections import deque

import psycopg2
import psycopg2.extras
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, needs_riding, wait_until
from psycopg2 import errors, extensions

import greenpg

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def conn(dsn):
    conn = greenpg.connect(dsn)
    conn.execute("SELECT 1")  # the first one of the process shows how psycopg2 begins
    conn.rollback()
    yield conn
    conn.close()


@pytest.fixture
def table(admin):
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS lazy; CREATE TABLE lazy (n int)")
    yield
    with admin.cursor() as cur:
        cur.execute("DROP TABLE lazy")


def rows(admin):
    with admin.cursor() as cur:
        cur.execute("SELECT n FROM lazy ORDER BY n")
        return [n for (n,) in cur.fetchall()]


def messages_of(conn, admin):
    """What the server was last sent on the connection."""
    with admin.cursor() as cur:
        cur.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", (conn.info.backend_pid,))
        return cur.fetchone()[0]


@needs_riding
@pytest.mark.parametrize(
    ("settings", "begin"),
    [
        ({}, "BEGIN;\n"),
        ({"isolation_level": "SERIALIZABLE"}, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n"),
        ({"readonly": True, "deferrable": False}, "BEGIN READ ONLY NOT DEFERRABLE;\n"),
        (
            {"isolation_level": "READ UNCOMMITTED", "readonly": False, "deferrable": True},
            "BEGIN ISOLATION LEVEL READ UNCOMMITTED READ WRITE DEFERRABLE;\n",
        ),
        ({"isolation_level": "REPEATABLE READ"}, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n"),
        ({"isolation_level": "READ COMMITTED"}, "BEGIN ISOLATION LEVEL READ COMMITTED;\n"),
    ],
)
def test_settings_ride_along(conn, admin, settings, begin):
    conn.set_session(**settings)
    conn.execute("SELECT 1")
    assert messages_of(conn, admin) == begin + "SELECT 1"
    assert conn.status == extensions.STATUS_BEGIN
    conn.rollback()
    with conn.transaction():
        conn.execute("SELECT 2")
        assert messages_of(conn, admin) == begin + "SELECT 2"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1; SELECT 2",
        "/* a comment */ SELECT 1",
        "-- a comment\nSELECT 1",
        "BEGIN",
        "SELECT 'a;b'",
        "(SELECT 1)",
    ],
)
def test_what_is_not_certain_is_left_to_psycopg2(conn, admin, statement):
    conn.execute(statement)
    assert messages_of(conn, admin) == statement
    assert conn.status == extensions.STATUS_BEGIN
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "END", "ABORT"])
def test_end_executed_as_a_statement(conn, end):
    """psycopg2 begins, and sends it; it believes then that it is in a transaction."""
    cur = conn.execute(end)
    assert cur.statusmessage in ("COMMIT", "ROLLBACK")
    assert conn.status == extensions.STATUS_BEGIN
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    with conn.transaction():
        conn.execute("SELECT 1")
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
    assert conn.status == extensions.STATUS_READY


@needs_riding
def test_round_trips(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        conn = psycopg2.connect(extensions.make_dsn(server.tcp_dsn, port=counter.port))
        conn.cursor().execute("SELECT 1")
        conn.rollback()

        def by_hand():
            conn.cursor().execute("SELECT 1")
            conn.commit()

        def with_connection():
            with conn, conn.cursor(cursor_factory=psycopg2.extras.DictCursor) as cur:
                cur.execute("SELECT %s", ("text",))

        def syntax_error():
            with pytest.raises(errors.SyntaxError), conn:
                conn.cursor().execute("SELECT nonsense nonsense nonsense")

        assert counter.of(by_hand) == 2
        assert counter.of(with_connection) == 2
        assert counter.of(syntax_error) == 4, "twice: the server has run nothing of the first message, BEGIN included"
        conn.close()


class LoggingCursor(extensions.cursor):
    """psycopg2's documentation has it."""

    def execute(self, sql, args=None):
        self.mogrify(sql, args)
        extensions.cursor.execute(self, sql, args)


@pytest.mark.parametrize(
    "factory",
    [
        LoggingCursor,
        lambda *args, **kwargs: LoggingCursor(*args, **kwargs),
        functools.partial(extensions.cursor),
        psycopg2.extras.LoggingCursor,
        psycopg2.extras.NamedTupleCursor,
    ],
)
def test_cursors_of_every_class_are_in_the_block(make_pool, table, admin, factory):
    pool = make_pool(min_size=1)
    blocks = [pool.transaction, pool.connection, lambda: pool.getconn().transaction(), pool.getconn]
    for block in blocks:
        for first in (True, False):
            lent = block()
            with pytest.raises(ZeroDivisionError), lent as entered:
                conn = entered.connection
                if not first:
                    conn.execute("SELECT 1")
                if factory is psycopg2.extras.LoggingCursor:
                    extensions.cursor(conn).execute("INSERT INTO lazy VALUES (1)")  # made from its class
                else:
                    conn.cursor(cursor_factory=factory).execute("INSERT INTO lazy VALUES (1)")
                assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
                1 / 0  # noqa: B018
            if block in blocks[2:]:
                pool.putconn(conn)
            assert rows(admin) == []
    assert pool.get_stats()["connections_num"] == 1


def test_transaction_in_with_connection_is_a_savepoint(conn, table, admin):
    for autocommit in (False, True):
        conn.autocommit = autocommit
        with pytest.raises(ZeroDivisionError), conn:
            with conn.transaction() as transaction:
                conn.execute("INSERT INTO lazy VALUES (1)")
            assert transaction.savepoint_name
            1 / 0  # noqa: B018
        assert rows(admin) == []
        assert conn.autocommit is autocommit
    with conn:
        with conn.transaction():
            conn.execute("INSERT INTO lazy VALUES (1)")
        with pytest.raises(ZeroDivisionError), conn.transaction():
            conn.execute("INSERT INTO lazy VALUES (2)")
            1 / 0  # noqa: B018
    assert rows(admin) == [1]


def test_autocommit_in_a_block_is_refused(make_pool, table, admin):
    pool = make_pool(min_size=1)
    changes = [
        lambda conn: setattr(conn, "autocommit", True),
        lambda conn: conn.set_session(autocommit=True),
        lambda conn: conn.set_session(None, None, None, True),
        lambda conn: conn.set_isolation_level(extensions.ISOLATION_LEVEL_AUTOCOMMIT),
    ]
    for change in changes:
        for block in (pool.cursor, pool.transaction):
            with pytest.raises(ZeroDivisionError), block() as lent:
                with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction block"):
                    change(lent.connection)
                lent.execute("INSERT INTO lazy VALUES (1)")
                1 / 0  # noqa: B018
    assert rows(admin) == []


def test_named_cursor_after_an_error(conn):
    for nested in (False, True):
        with conn.transaction():
            if nested:
                conn.execute("SELECT 1")
            with pytest.raises(errors.InFailedSqlTransaction), conn.transaction():
                with pytest.raises(errors.DivisionByZero):
                    conn.execute("SELECT 1/0")
                conn.cursor("named").execute("SELECT 1")
            if nested:
                assert conn.execute("SELECT 2").fetchone() == (2,), "the savepoint has helped"
        assert conn.status == extensions.STATUS_READY


def test_nested_block_that_swallows_an_error(conn, table, admin):
    with conn.transaction():
        conn.execute("INSERT INTO lazy VALUES (1)")
        with pytest.raises(errors.InFailedSqlTransaction, match="rolled back to its beginning"), conn.transaction():
            with pytest.raises(errors.DivisionByZero):
                conn.execute("SELECT 1/0")
    assert rows(admin) == [1]


class Log:
    def append(self, text):
        pass


@pytest.mark.parametrize("notices", [deque(maxlen=10), Log(), []])
def test_notices_of_any_kind(conn, notices):
    conn.notices = notices
    with conn.transaction():
        conn.execute("SELECT 1")
        cur = conn.cursor("named")
        cur.execute("SELECT 2")
        assert cur.fetchall() == [(2,)]
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    assert not isinstance(notices, list) or notices == []


def test_block_used_twice(conn, table, admin):
    block = conn.transaction()
    with block:
        conn.execute("INSERT INTO lazy VALUES (1)")
    with pytest.raises(TypeError, match="used only once"), conn.transaction():
        conn.execute("INSERT INTO lazy VALUES (2)")
        with block:
            pass
    assert rows(admin) == [1]


def test_blocks_left_in_the_wrong_order(conn, table, admin):
    outer, inner = conn.transaction(), conn.transaction()
    outer.__enter__()
    conn.execute("INSERT INTO lazy VALUES (1)")
    inner.__enter__()
    with pytest.raises(psycopg2.ProgrammingError, match="wrong order"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    conn.rollback()
    assert rows(admin) == []
    with conn.transaction():
        conn.execute("INSERT INTO lazy VALUES (2)")
    assert rows(admin) == [2]


def test_connection_lost_in_a_nested_block(make_pool, table, admin):
    pool = make_pool(min_size=1)
    for block in (pool.transaction, pool.cursor, pool.connection, lambda: pool.getconn().transaction()):
        with pytest.raises(psycopg2.Error, match="closed") as caught, block() as lent:
            conn = lent.connection
            conn.execute("INSERT INTO lazy VALUES (1)")
            with pytest.raises(ZeroDivisionError), conn.transaction():
                admin.cursor().execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
                1 / 0  # noqa: B018
        assert greenpg.errors.commit_outcome(caught.value) in ("unknown", "rolled back")
        assert rows(admin) == []
        if block not in (pool.transaction, pool.cursor, pool.connection):
            pool.putconn(conn)


def test_run_and_rollback(make_pool, table, admin):
    pool = make_pool(min_size=1)
    runs = []

    def function(conn):
        runs.append(1)
        conn.execute("INSERT INTO lazy VALUES (1)")
        raise greenpg.Rollback

    assert pool.run(function) is None
    assert runs == [1]
    assert rows(admin) == []


def test_time_grows_with_the_statement_only(conn, table):
    """20 KB of line breaks and a semicolon took 14 s, and the whole process stood."""
    started = time.process_time()
    with conn.transaction():
        conn.execute("SELECT %s", ("\n" * 1_000_000 + ";",))
        conn.execute("SELECT 1")
    assert time.process_time() - started < 10, "not a matter of speed: it would be hours"


def test_error_of_a_first_statement_is_psycopg2s_own(conn):
    """Its class, its diagnostics and its cursor: the PGresult that it holds has been put right."""
    cur = conn.cursor()
    with pytest.raises(errors.UndefinedColumn) as caught:
        cur.execute("SELECT 1,\n nothing")
    error = caught.value
    assert type(error) is errors.UndefinedColumn
    assert type(error.diag) is extensions.Diagnostics
    assert error.diag.statement_position == "12"
    assert error.diag.message_primary == 'column "nothing" does not exist'
    assert error.cursor is cur
    assert error.pgerror == f"ERROR:  {error}"
    assert str(error) == 'column "nothing" does not exist\nLINE 2:  nothing\n         ^\n'
    assert sys.getrefcount(cur) < 10
    del error, caught
    conn.rollback()


def test_error_in_a_function_points_into_the_function(conn):
    with pytest.raises(errors.UndefinedTable) as caught:
        conn.execute("DO $$ BEGIN PERFORM * FROM nowhere; END $$")
    assert caught.value.diag.statement_position is None
    assert "LINE 1: SELECT * FROM nowhere" in str(caught.value)


def test_errors_leak_no_references(conn):
    cur = conn.cursor()

    def fail():
        with pytest.raises(errors.UndefinedTable):
            cur.execute("SELECT * FROM nowhere")
        conn.rollback()

    fail()
    before = sys.getrefcount(cur)
    for _ in range(10):
        fail()
    assert sys.getrefcount(cur) <= before + 1


@green_only
def test_kill_in_the_first_statement(conn, admin):
    task = Task(conn.execute, "SELECT pg_sleep(10)")
    wait_until(lambda: "pg_sleep" in messages_of(conn, admin))
    task.throw(Killed())
    with pytest.raises(Killed):
        task.result()
    assert not conn.closed
    assert conn.status == extensions.STATUS_BEGIN
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_adapter_that_queries(conn):
    class Name:
        def __init__(self, name):
            self.name = name

    class Adapter:
        def __init__(self, name):
            self.name = name

        def prepare(self, conn):
            self.conn = conn

        def getquoted(self):
            (oid,) = self.conn.execute("SELECT length(%s)", (self.name.name,)).fetchone()
            return b"%d" % oid

    extensions.register_adapter(Name, Adapter)
    try:
        with conn.transaction():
            assert conn.execute("SELECT %s", (Name("greenpg"),)).fetchone() == (7,)
        with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"), conn.transaction():
            conn.execute("SELECT %s, %s", (Name("greenpg"), object()))
        assert conn.status == extensions.STATUS_READY
    finally:
        del extensions.adapters[Name, extensions.ISQLQuote]


def test_arguments_are_adapted_once(conn):
    calls = []

    class Counted:
        def __conform__(self, protocol):
            calls.append(1)
            return extensions.AsIs("1")

    for statement in ("SELECT %s", "/* not riding */ SELECT %s"):
        conn.execute(statement, (Counted(),))
        conn.rollback()
    assert len(calls) == 2


def test_cursor_after_arguments_that_cannot_be_adapted(conn):
    """psycopg2 forgets the result before it comes to the arguments."""
    cur = conn.cursor()
    cur.execute("SELECT 1")
    conn.rollback()
    with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
        cur.execute("SELECT %s", (object(),))
    assert cur.query is None
    with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
        cur.fetchone()
    assert conn.status == extensions.STATUS_READY


PROGRAM = """
import greenpg, psycopg2
from greenpg.driver import driver_status
greenpg.patch("threads")
conn = psycopg2.connect({dsn!r})
conn.execute("SELECT 1")
conn.rollback()
print(driver_status.is_proven, driver_status.reason)
"""
ONE_SHOTS_ONLY = """
import greenpg
from greenpg.driver import driver_status
greenpg.patch("threads")
with greenpg.ConnectionPool({dsn!r}, min_size=1, max_size=1) as pool:
    pool.execute("VACUUM pg_class")  # no statement for a transaction
    with pool.connection() as conn:
        assert not conn.autocommit and conn.status == 1, conn.status
print(driver_status.is_proven, driver_status.reason)
"""


@pytest.mark.parametrize("program", [PROGRAM, ONE_SHOTS_ONLY])
@pytest.mark.parametrize("is_separate", [True, False])
def test_psycopg2_can_be_left_to_begin(dsn, is_separate, program, monkeypatch):
    if is_separate:
        monkeypatch.setenv("GREENPG_BEGIN", "separate")
    else:
        monkeypatch.delenv("GREENPG_BEGIN", raising=False)
    run = subprocess.run(
        [sys.executable, "-c", program.format(dsn=dsn)], capture_output=True, text=True, check=True, timeout=60
    )
    expected = "False GREENPG_BEGIN=separate is set in the environment" if is_separate else "True None"
    assert run.stdout.strip() == expected
