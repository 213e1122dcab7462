"""`SqlLog`: statements, slow ones and notices through the standard `logging`."""

import logging

import psycopg2
import psycopg2.extras
import psycopg2.sql
import pytest
from kit import Killed, Task, is_waiting, wait_until

import greenpg


@pytest.fixture
def logged(dsn, caplog):
    """A connection with a log, and the texts that it has logged."""
    caplog.set_level(logging.DEBUG, "greenpg")
    conns = []

    def make(**options):
        conn = greenpg.connect(dsn)
        greenpg.SqlLog(**options)(conn)
        conns.append(conn)
        return conn, lambda: [(record.name, record.levelname, record.getMessage()) for record in caplog.records]

    yield make
    for conn in conns:
        conn.close()


def test_nothing_is_logged_and_cursors_are_plain_without_a_log(dsn, caplog):
    caplog.set_level(logging.DEBUG)
    conn = greenpg.connect(dsn)
    cur = conn.cursor()
    cur.execute("DO $$BEGIN RAISE NOTICE 'x'; END$$")
    assert type(cur) is greenpg.Cursor
    assert type(conn.notices) is list
    conn.close()
    assert not [record for record in caplog.records if record.name.startswith("greenpg")]


@pytest.mark.parametrize("factory", [None, psycopg2.extras.RealDictCursor, greenpg.Cursor])
def test_statements_without_their_parameters(logged, factory):
    conn, lines = logged()
    cur = conn.cursor(cursor_factory=factory)
    cur.execute("SELECT %s AS secret", ("hidden",))
    assert len(cur.fetchall()) == 1
    ((name, level, text),) = lines()
    assert (name, level) == ("greenpg.sql", "DEBUG")
    assert text.endswith(" ms, 1 rows: SELECT %s AS secret")
    assert "hidden" not in text


def test_parameters_when_asked(logged):
    conn, lines = logged(parameters=True)
    conn.cursor().execute("SELECT %s, %s", ("shown", 42))
    assert lines()[0][2].endswith("1 rows: SELECT 'shown', 42")


def test_every_way_to_run_a_statement(logged):
    conn, lines = logged()
    cur = conn.cursor()
    cur.execute(b"CREATE TEMP TABLE t (i int)")
    cur.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
    cur.callproc("abs", [-1])
    cur.execute(psycopg2.sql.SQL("SELECT {} FROM t").format(psycopg2.sql.Identifier("i")))
    named = conn.cursor("named", cursor_factory=psycopg2.extras.DictCursor)
    named.execute("SELECT i FROM t")
    assert [text.partition(": ")[2] for _, _, text in lines()] == [
        "CREATE TEMP TABLE t (i int)",
        "INSERT INTO t VALUES (%s)",
        "abs",
        'SELECT "i" FROM t',
        "SELECT i FROM t",
    ]
    assert [row["i"] for row in named] == [1, 2]


def test_failures_say_what_was_raised(logged):
    conn, lines = logged()
    with pytest.raises(greenpg.errors.DataException):
        conn.cursor().execute("SELECT 1/0")
    assert lines()[0][2].endswith("ms, DivisionByZero: division by zero: SELECT 1/0")


def test_slow_statements(logged):
    conn, lines = logged(statements=False, slower_than=0.1)
    cur = conn.cursor()
    cur.execute("SELECT 1")
    cur.execute("SELECT pg_sleep(0.15)")
    ((name, level, text),) = lines()
    assert (name, level) == ("greenpg.sql", "WARNING")
    assert text.startswith("slow statement: 1")
    assert text.endswith("ms, 1 rows: SELECT pg_sleep(0.15)")
    with pytest.raises(ValueError, match="slower_than"):
        greenpg.SqlLog(slower_than=-1)


def test_notices_are_logged_once_and_kept(logged):
    conn, lines = logged(statements=False)
    cur = conn.cursor()
    for number in range(60):
        cur.execute(f"DO $$BEGIN RAISE NOTICE 'n{number}'; END$$")
    assert [text for _, _, text in lines()] == [f"NOTICE:  n{number}" for number in range(60)]
    assert {name for name, _, _ in lines()} == {"greenpg.notices"}
    assert len(conn.notices) == 50


def test_notices_of_a_commit_wait_for_the_next_statement(logged):
    conn, lines = logged(statements=False)
    cur = conn.cursor()
    cur.execute(
        """CREATE TEMP TABLE t (id int);
        CREATE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE NOTICE 'late'; RETURN NEW; END$$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION pg_temp.tell(); INSERT INTO t VALUES (1)"""
    )
    conn.commit()
    assert lines() == []
    conn._sql_log.log_notices(conn)
    assert lines() == [("greenpg.notices", "INFO", "NOTICE:  late")]


def test_what_greenpg_says_to_the_server_by_itself_is_not_logged(make_pool, caplog):
    caplog.set_level(logging.DEBUG, "greenpg")
    pool = make_pool(min_size=1, configure=greenpg.SqlLog())
    with pool.connection() as conn:
        conn.notices.append("NOTICE:  before")
        with conn.transaction():
            conn.cursor().execute("SELECT 1")
            conn.cursor("named").execute("SELECT 2")
    texts = [record.getMessage() for record in caplog.records if record.name in ("greenpg.sql", "greenpg.notices")]
    assert [text.rpartition(": ")[2].strip() for text in texts] == ["SELECT 1", "before", "SELECT 2"]


def test_detached(logged):
    conn, lines = logged()
    cur = conn.cursor()
    conn._sql_log.detach(conn)
    cur.execute("SELECT 1")
    assert type(conn.cursor()) is greenpg.Cursor
    assert type(conn.notices) is list
    assert lines() == []


def test_as_a_pools_configure(make_pool, caplog):
    caplog.set_level(logging.DEBUG, "greenpg.sql")
    pool = make_pool(min_size=1, max_size=2, configure=greenpg.SqlLog(parameters=True))
    with pool.cursor() as cur:
        cur.execute("SELECT %s", (7,))
    assert caplog.records[-1].getMessage().endswith("SELECT 7")


@pytest.mark.only_hub("gevent", "eventlet")
def test_a_killed_statement_is_logged_and_the_kill_goes_on(logged):
    conn, lines = logged()

    task = Task(lambda: conn.cursor().execute("SELECT pg_sleep(10)"))
    wait_until(lambda: is_waiting(conn) and conn.info.transaction_status == 1)
    task.throw(Killed())
    with pytest.raises(Killed):
        task.result()
    assert ", Killed: : SELECT pg_sleep(10)" in lines()[0][2]
