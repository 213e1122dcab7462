"""`with conn.pipeline()` and `with pool.pipeline()`: psycopg2's results, whose error it is, one round trip, kills."""

import contextlib
import datetime
import gc
import random
import time
import weakref

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, is_waiting, needs_riding, statements_running, usable, wait_until
from psycopg2 import extensions, sql

import greenpg
from greenpg.connection.pipeline.commands import goes_alone, has_several_commands
from greenpg.errors import ConnectionInUse, DeadlineExceeded, PipelineAborted, commit_outcome
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
IDLE, ACTIVE, INTRANS, INERROR = range(4)
pytestmark = [needs_riding, pytest.mark.usefixtures("item")]
READY, BEGIN = extensions.STATUS_READY, extensions.STATUS_BEGIN


def ids(conn):
    with conn.cursor() as cur:
        cur.execute("SELECT id FROM item ORDER BY id")
        return [row[0] for row in cur.fetchall()]


def state_of(cur):
    return cur.rowcount, cur.statusmessage, cur.description, cur.query, cur.rownumber


# -- results

VALUES = [
    "1, 2::bigint, 3::smallint, 1.5::float8, 'x'::text, ''::varchar(7), NULL::text, true, false, NULL::int",
    "12.50::numeric(9,2), 1::numeric, 'NaN'::numeric, 'c'::char(3), '\\x0001ff'::bytea, 'é;\"''%%'::text",
    "'2024-02-29'::date, '12:34:56.7'::time, '2024-01-01 10:00+05:30'::timestamptz, '1 day 2 h'::interval",
    "'2024-01-01'::timestamp(3), NULL::date, '{1,NULL,3}'::int[], '{{a,b},{c,d}}'::text[], '{}'::int[]",
    "'{\"a\": [1, 2]}'::jsonb, '[1]'::json, 'a'::name, 1::oid, '1.2.3.4'::inet, point(1,2), int4range(1,5)",
]


def shown(rows):
    """NaN is not equal to itself, nor one memoryview of text to another."""
    return repr([[bytes(value) if isinstance(value, memoryview) else value for value in row] for row in rows])


@pytest.mark.parametrize("values", VALUES)
def test_values_and_descriptions_are_psycopg2s(conn, values):
    query = f"SELECT {values} FROM generate_series(1, 3)"
    cur, other = conn.cursor(), conn.cursor()
    other.execute(query)
    with conn.pipeline():
        cur.execute(query)
        assert shown(cur.fetchmany(2)) == shown(other.fetchmany(2))
        assert state_of(cur) == state_of(other)
        assert shown([cur.fetchone()]) == shown([other.fetchone()])
        assert cur.fetchone() is other.fetchone() is None


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO item VALUES (1, 'x')",
        "UPDATE item SET id = 2",
        "CREATE TEMP TABLE other ()",
        "SET work_mem TO 4096",
    ],
)
def test_without_rows(conn, statement):
    cur, other = conn.cursor(), conn.cursor()
    other.execute(statement)
    expected = state_of(other)
    conn.rollback()
    with conn.pipeline():
        cur.execute(statement)
        assert state_of(cur) == expected
        with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
            cur.fetchone()
        assert cur.query == expected[3]


@pytest.mark.parametrize(
    "factory",
    [
        psycopg2.extras.DictCursor,
        psycopg2.extras.RealDictCursor,
        psycopg2.extras.NamedTupleCursor,
        type("Mine", (extensions.cursor,), {}),
    ],
)
def test_cursor_classes(conn, factory):
    """Those made before the block, too; each way of fetching."""
    query = "SELECT n, n * 2 AS double FROM generate_series(1, 9) AS n"
    cur, other = conn.cursor(cursor_factory=factory), conn.cursor(cursor_factory=factory)
    other.execute(query)
    expected = [other.fetchone(), other.fetchmany(2), next(iter(other)), other.fetchall()]
    with conn.pipeline():
        for tested in (cur, conn.cursor(cursor_factory=factory)):
            tested.execute(query)
            found = [tested.fetchone(), tested.fetchmany(2), next(iter(tested)), tested.fetchall()]
            assert found == expected
            assert [type(row).__name__ for row in found[3]] == [type(row).__name__ for row in expected[3]]
            assert isinstance(tested, factory)
            tested.execute(query)
            assert tested.fetchone_dict() == {"n": 1, "double": 2}
            assert len(list(tested)) == 8
    cur.execute(query)  # and outside again
    assert [cur.fetchone(), cur.fetchmany(2), next(iter(cur)), cur.fetchall()] == expected


def test_typecasters(conn):
    """The cursor's, the connection's, those made by Python functions, with NULL."""
    upper = extensions.new_type((25,), "UPPER", lambda value, cur: None if value is None else value.upper())
    exact = extensions.new_type((23,), "EXACT", lambda value, cur: ("int", value))
    cur = conn.cursor()
    extensions.register_type(upper, conn)
    extensions.register_type(exact, cur)
    with conn.pipeline():
        cur.execute("SELECT 'é'::text, 1, NULL::int, NULL::text")
        assert cur.fetchone() == ("É", ("int", "1"), ("int", None), None)
    conn.set_client_encoding("LATIN1")
    with conn.pipeline():
        cur.execute("SELECT %s::text AS é", ("üß",))
        assert cur.fetchone() == ("ÜSS",)
        assert cur.description[0].name == "é"


def test_scroll_and_closed(conn):
    cur = conn.cursor()
    with conn.pipeline():
        cur.execute("SELECT * FROM generate_series(0, 9)")
        cur.scroll(5)
        cur.scroll(-2)
        assert cur.fetchone() == (3,) and cur.rownumber == 4
        cur.scroll(9, mode="absolute")
        assert cur.fetchone() == (9,)
        with pytest.raises((IndexError, psycopg2.ProgrammingError)):
            cur.scroll(1)
        cur.close()
        with pytest.raises(psycopg2.InterfaceError):
            cur.fetchone()


def test_rows_after_the_block_and_after_another_execute(conn):
    cur, other = conn.cursor(), conn.cursor()
    with conn.pipeline():
        cur.execute("SELECT 1")
        other.execute("SELECT 2")
        other.execute("SELECT 3")
    assert (cur.fetchone(), other.fetchall()) == ((1,), [(3,)])
    cur.execute("SELECT 4")
    assert (cur.fetchone(), cur.rowcount, cur.query) == ((4,), 1, b"SELECT 4")
    with pytest.raises(IndexError):
        cur.execute("SELECT %s", ())
    with pytest.raises(psycopg2.ProgrammingError, match="no results"):
        cur.fetchone()


# -- round trips and status


def round_trips(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    return RoundTripCounter(parameters["host"], parameters["port"])


def test_one_round_trip(server):
    with round_trips(server) as counter:
        dsn = extensions.make_dsn(server.tcp_dsn, port=counter.port)
        conn = greenpg.connect(dsn)
        conn.cursor().execute("SELECT 1")
        conn.commit()

        def transaction():
            with conn.pipeline():
                for n in range(10):
                    conn.execute("SELECT %s", (n,))
                conn.commit()

        def block():
            with conn.pipeline(), conn.transaction():
                for n in range(10):
                    conn.execute("SELECT %s", (n,))

        assert counter.of(transaction) == counter.of(block) == 1
        conn.autocommit = True
        assert counter.of(lambda: many(conn, 200)) < 20  # the server may begin to answer before all is sent
        conn.close()
        with greenpg.ConnectionPool(dsn, min_size=1) as pool:
            pool.fetchval("SELECT 1")
            found = []

            def pooled():
                with pool.pipeline() as p:
                    found.extend(p.execute("SELECT %s", (n,)) for n in range(10))

            assert counter.of(pooled) == 1
            assert [cur.fetchone() for cur in found] == [(n,) for n in range(10)]


def many(conn, count):
    with conn.pipeline():
        for n in range(count):
            conn.execute("SELECT %s", (n,))


def test_status(conn):
    with conn.pipeline() as p:
        assert conn.status == READY
        conn.execute("INSERT INTO item VALUES (1)")
        assert conn.status == BEGIN
        conn.commit()
        assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)
        cur = conn.execute("INSERT INTO item VALUES (2)")
        assert cur.rowcount == 1
        conn.rollback()
        assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)
        conn.execute("INSERT INTO item VALUES (3)")
        p.sync()
        assert (conn.status, conn.get_transaction_status()) == (BEGIN, INTRANS)
        conn.commit()
        conn.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            p.sync()
        assert (conn.status, conn.get_transaction_status()) == (BEGIN, INERROR)
        conn.rollback()
    assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)
    assert ids(conn) == [1, 3]


def test_settings_go_into_its_begin(conn):
    conn.set_session(isolation_level="SERIALIZABLE", readonly=True)
    with conn.pipeline():
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        assert conn.execute("SHOW transaction_read_only").fetchone() == ("on",)
    conn.rollback()


def test_executed_commit(conn):
    """psycopg2 thinks that there is a transaction; each statement is one of its own then."""
    with conn.pipeline():
        conn.execute("INSERT INTO item VALUES (1)")
        conn.execute("COMMIT")
        conn.execute("INSERT INTO item VALUES (2)")
        bad = conn.execute("INSERT INTO item VALUES (2)")
        conn.execute("INSERT INTO item VALUES (3)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            bad.fetchone()
    conn.rollback()
    assert ids(conn) == [1, 2, 3]


# -- errors


def test_an_error_is_its_statements(conn):
    with conn.pipeline() as p:
        good = conn.execute("SELECT 1")
        bad = conn.execute("SELECT 1 /\n 0 AS x")
        after = conn.execute("SELECT 2")
        assert good.fetchone() == (1,)
        with pytest.raises(psycopg2.errors.DivisionByZero) as caught:
            bad.fetchone()
        assert caught.value.statement_index == 1 and caught.value.cursor is bad
        assert caught.value.pgcode == "22012" and bad.rowcount == -1 and bad.description is None
        with pytest.raises(PipelineAborted) as passed_over:
            after.fetchone()
        assert passed_over.value.statement_index == 2 and after.rowcount == -1
        with pytest.raises(PipelineAborted):
            conn.execute("SELECT 3")
        p.sync()
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            conn.execute("SELECT 4").fetchone()
        conn.rollback()
        assert conn.execute("SELECT 5").fetchone() == (5,)
    assert usable(conn)


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nonsense", "SELECT 'é', nonsense FROM item"])
def test_errors_are_psycopg2s(conn, query):
    cur, other = conn.cursor(), conn.cursor()
    with pytest.raises(psycopg2.Error) as expected:
        other.execute(query)
    conn.rollback()
    with conn.pipeline():
        cur.execute(query)
        with pytest.raises(psycopg2.Error) as found:
            cur.fetchall()
        assert isinstance(found.value, type(expected.value))
        assert str(found.value) == str(expected.value) and found.value.pgerror == expected.value.pgerror
        assert found.value.diag.statement_position == expected.value.diag.statement_position
    conn.rollback()


def test_errors_come_out_at_the_end(conn):
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught, conn.pipeline():
        for n in (1, 2, 1, 3):
            conn.execute("INSERT INTO item VALUES (%s)", (n,))
    assert caught.value.statement_index == 2
    assert conn.get_transaction_status() == INERROR
    conn.rollback()
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught, conn.pipeline():
        for n in (1, 1):
            conn.execute("INSERT INTO item VALUES (%s)", (n,))
        conn.commit()
    assert commit_outcome(caught.value) == "rolled back"
    assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)
    with pytest.raises(KeyError), conn.pipeline():  # which isn't hidden
        conn.execute("SELECT 1/0")
        raise KeyError
    conn.rollback()
    assert ids(conn) == []


def test_autocommit(conn):
    """Each statement by itself."""
    conn.autocommit = True
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught, conn.pipeline():
        cursors = [conn.execute("INSERT INTO item VALUES (%s)", (n,)) for n in (1, 1, 2, 2, 3)]
    assert caught.value.statement_index == 1
    assert ids(conn) == [1, 2, 3]
    assert cursors[2].rowcount == 1
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cursors[3].fetchone()
    assert caught.value.statement_index == 3
    with conn.pipeline():
        conn.execute("BEGIN")
        conn.execute("INSERT INTO item VALUES (4)")
        conn.execute("ROLLBACK")
        conn.execute("VACUUM pg_temp.item")
        with conn.transaction():
            conn.execute("INSERT INTO item VALUES (5)")
    assert ids(conn) == [1, 2, 3, 5]


def test_deferred_constraint(conn):
    with conn.pipeline():
        conn.execute("CREATE TEMP TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        conn.commit()
        conn.execute("INSERT INTO late VALUES (1), (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
            conn.commit()
        assert commit_outcome(caught.value) == "rolled back"
        assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)
        assert conn.execute("SELECT count(*) FROM late").fetchone() == (0,)


def test_caught_error_and_commit(conn):
    """A transaction that has failed isn't taken for a committed one."""
    for syncs in (False, True):
        with conn.pipeline() as p:
            conn.execute("INSERT INTO item VALUES (1)")
            with pytest.raises(psycopg2.errors.DivisionByZero):
                conn.execute("SELECT 1/0").fetchone()
            if syncs:
                p.sync()
                conn.commit()  # as psycopg2's own: it says nothing, the server rolls back
            else:
                with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
                    conn.commit()
        assert (conn.status, ids(conn)) == (READY, [])
        conn.rollback()


# -- refused, or in the ordinary way


@pytest.mark.parametrize(
    "query",
    ["COPY item FROM STDIN", " copy item TO STDOUT", "/* x /* y */ */ -- z\n COPY item TO STDOUT"],
)
def test_copy_is_refused(conn, query):
    with conn.pipeline():
        conn.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(psycopg2.ProgrammingError, match="COPY can't"):
            conn.execute(query)
        with conn.cursor().copy("COPY item TO STDOUT") as copy:
            assert list(copy.rows()) == [("1", None)]
        with conn.cursor().copy("COPY item FROM STDIN") as copy:
            copy.write_row((2, "x"))
        assert conn.execute("SELECT count(*) FROM item").fetchone() == (2,)
    conn.commit()
    assert ids(conn) == [1, 2]


@pytest.mark.parametrize(
    ("statement", "several"),
    [
        ("SELECT 1; SELECT 2", True),
        ("SELECT ';'; SELECT 2", True),
        ("SELECT 1;-- x\n;SELECT 2", True),
        ("SELECT 1 /* ' */; SELECT '2'", True),
        ("SELECT E'\\';' ; SELECT 1", True),
        ("SELECT 1; (SELECT 2)", True),
        ("SELECT 1; 'x'", True),
        ("SELECT 1 ; \n ;", False),
        ("SELECT 1; -- SELECT 2", False),
        ("SELECT 1; /* ; /* ; */ x */ ", False),
        ("SELECT ';', \";\", $$;$$, $a$ $b$ ; $a$, E'\\'; ', 'it''s;', e'x;'", False),
        ("SELECT a$b$c; ", False),
        ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", False),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", False),
        ("SELECT $1; $x", True),
    ],
)
def test_several_commands(statement, several):
    assert has_several_commands(statement.encode()) is several


def test_several_commands_are_refused(conn):
    with conn.pipeline():
        conn.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(psycopg2.ProgrammingError, match="several commands"):
            conn.execute("SELECT 1; SELECT 2")
        assert conn.execute("SELECT 'a;b', $$;$$;").fetchone() == ("a;b", ";")
    assert not goes_alone(b"PREPARED") and goes_alone(b"-- x\nCommit")


def test_empty_statements(conn):
    with conn.pipeline():
        conn.execute("INSERT INTO item VALUES (1)")
        for empty in ("", sql.SQL("")):
            with pytest.raises(psycopg2.ProgrammingError, match="empty query"):
                conn.execute(empty)
        for comment in ("-- nothing", " ; ", "/* x */"):
            cur = conn.execute(comment)
            with pytest.raises(psycopg2.ProgrammingError, match="empty query"):
                cur.fetchone()
        assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.commit()
    assert ids(conn) == [1]


def test_refused_arguments(conn):
    with conn.pipeline():
        with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
            conn.execute("SELECT %s", (object(),))
        with pytest.raises((IndexError, TypeError)):
            conn.execute("SELECT %s, %s", (1,))
        assert conn.status == READY
        assert conn.execute(sql.SQL("SELECT {}").format(sql.Literal("x"))).fetchone() == ("x",)


def test_mogrified_at_execute(conn):
    argument = [1, 2]
    with conn.pipeline():
        cur = conn.execute("SELECT %s", (argument,))
        argument.append(3)
        assert cur.fetchone() == ([1, 2],)


def test_psycopg2s_other_calls(conn):
    cur = conn.cursor()
    with conn.pipeline():
        first = conn.execute("INSERT INTO item VALUES (1, 'a') RETURNING id")
        cur.executemany("INSERT INTO item VALUES (%s)", [(2,), (3,)])
        assert cur.rowcount == 2
        second = conn.execute("INSERT INTO item VALUES (4) RETURNING id")
        with conn.cursor("named") as named:
            named.execute("SELECT id FROM item ORDER BY id")
            assert named.fetchall() == [(1,), (2,), (3,), (4,)]
        cur.callproc("abs", (-7,))
        assert cur.fetchone() == (7,)
        lobject = conn.lobject(0, "wb")
        lobject.write(b"abc")
        conn.execute("INSERT INTO item VALUES (5)")
        assert conn.lobject(lobject.oid, "rb").read() == b"abc"
        psycopg2.extras.execute_values(cur, "INSERT INTO item (id) VALUES %s", [(6,), (7,)])
        conn.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation):  # it would have come out before
            cur.callproc("abs", (-7,))
        conn.rollback()
        conn.set_session(readonly=True)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            conn.execute("CREATE TABLE nothing ()").fetchone()
        conn.rollback()
        conn.set_session(readonly=False)
        conn.execute("INSERT INTO item VALUES (8)")
        conn.set_client_encoding("LATIN1")  # which rolls back
    assert (first.fetchone(), second.fetchone()) == ((1,), (4,))
    assert ids(conn) == []
    with conn.pipeline():
        conn.execute("SELECT 1/0")
        conn.reset()
        conn.reset()
        with pytest.raises(psycopg2.errors.DivisionByZero):  # told late, but told
            conn.cursor().callproc("abs", (1,))
    assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)


def test_nested_transactions(conn):
    with conn.pipeline(), conn.transaction():
        conn.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation), conn.transaction():
            conn.execute("INSERT INTO item VALUES (2)")
            conn.execute("INSERT INTO item VALUES (1)")
        with conn.transaction():
            conn.execute("INSERT INTO item VALUES (3)")
            raise greenpg.Rollback()
        with conn.transaction():
            conn.execute("INSERT INTO item VALUES (4)")
    assert ids(conn) == [1, 4]
    with pytest.raises(psycopg2.errors.UniqueViolation), conn.pipeline(), conn.transaction():
        conn.execute("INSERT INTO item VALUES (5), (5)")
    conn.rollback()
    with conn.pipeline(), conn:
        conn.execute("INSERT INTO item VALUES (6)")
    assert ids(conn) == [1, 4, 6]


def test_transactions_that_can_be_settled(conn):
    with conn.pipeline(), conn.transaction(settle=True):
        conn.execute("INSERT INTO item VALUES (1)")
        conn.execute("INSERT INTO item VALUES (2)")
    with pytest.raises(psycopg2.errors.UniqueViolation), conn.pipeline(), conn.transaction(settle=True):
        conn.execute("INSERT INTO item VALUES (3)")
        conn.execute("INSERT INTO item VALUES (1)")
    assert (conn.status, conn.get_transaction_status()) == (READY, IDLE)
    assert ids(conn) == [1, 2]


def test_nested_pipelines(conn):
    with conn.pipeline() as outer:
        conn.execute("SELECT 1")
        with conn.pipeline() as inner:
            assert inner is outer
            cur = inner.execute("INSERT INTO item VALUES (1)")
        assert cur._pipelined[1].is_over
        bad = conn.execute("SELECT 1/0")
        with pytest.raises(psycopg2.errors.DivisionByZero), conn.pipeline():
            pass
        with pytest.raises(psycopg2.errors.DivisionByZero):
            bad.fetchone()
    assert conn.get_transaction_status() == INERROR


def test_notices_and_notifies(conn):
    with conn.pipeline():
        conn.execute("LISTEN something")
        conn.execute("NOTIFY something, 'x'")
        conn.execute("DO $$ BEGIN RAISE NOTICE 'hello; you'; END $$")
        conn.commit()
    assert "hello; you" in conn.notices[-1]
    assert conn.notifies[0].payload == "x"


def test_misuse(conn, dsn):
    assert greenpg.Pipeline.is_supported()
    other = greenpg.connect(dsn)
    other.close()
    with pytest.raises(psycopg2.InterfaceError), other.pipeline():
        pass
    with conn.pipeline() as p:
        cur = conn.execute("INSERT INTO item VALUES (1)")
        conn.close()
    with pytest.raises(psycopg2.InterfaceError):
        conn.execute("SELECT 1")
    with pytest.raises(psycopg2.InterfaceError):
        p.execute("SELECT 1")
    assert cur.rowcount == 1
    fresh = greenpg.connect(dsn)
    with fresh.pipeline():  # psycopg2 begins by itself once, to show how
        assert fresh.execute("SELECT 1").fetchone() == (1,)
    fresh.close()


def test_nothing_keeps_a_connection(dsn):
    """No circle: it's closed when nobody refers to it any more."""
    gc.collect()
    gc.disable()
    try:
        for fails in (False, True):
            conn = greenpg.connect(dsn)
            gone = weakref.ref(conn)
            conn.execute("SELECT 1")
            conn.pipeline()
            with contextlib.suppress(psycopg2.Error), conn.pipeline() as p:
                cur = p.execute("SELECT 1")
                p.execute("SELECT 1/0" if fails else "SELECT 2")
                conn.commit()
            cur.fetchone()
            conn.rollback()
            conn.autocommit = True
            with contextlib.suppress(psycopg2.Error):
                cur.executemany("SELECT 1 / %s", [(1,), (0 if fails else 2,), (3,)], returning=True)
            with contextlib.suppress(psycopg2.Error):
                cur.executemany("SELECT 1 / %s", [(1,), (0 if fails else 2,), (3,)])
            cur.execute("SELECT %s", (1,), prepare=True)
            del conn, cur, p
            assert gone() is None
    finally:
        gc.enable()


# -- much of it


def test_many_statements(conn):
    """Their answers don't stop the server, nor the hub."""
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s, repeat('x', 100)", (n,)) for n in range(3000)]
        assert [cur.fetchone()[0] for cur in cursors] == list(range(3000))
        conn.execute("SELECT repeat('x', 3000000)")
        conn.execute("SELECT %s", ("y" * 3_000_000,))
        big = conn.execute("SELECT n, 'x' FROM generate_series(1, 20000) AS n")
        assert sum(row[0] for row in big.fetchall()) == 200010000
    conn.commit()


# -- kills, deadlines, other tasks


@green_only
@pytest.mark.parametrize("is_autocommit", [False, True])
@pytest.mark.parametrize("where", ["fetch", "sync", "end", "commit", "other call"])
def test_killed(conn, admin, is_autocommit, where):
    conn.autocommit = is_autocommit

    def work():
        with conn.pipeline() as p:
            conn.execute("INSERT INTO item VALUES (1)")
            slow = conn.execute("SELECT pg_sleep(60)")
            conn.execute("INSERT INTO item VALUES (2)")
            if where == "fetch":
                slow.fetchone()
            elif where == "sync":
                p.sync()
            elif where == "commit":
                conn.commit()
            elif where == "other call":
                slow.callproc("now")

    task = Task(work)
    wait_until(lambda: statements_running(admin) == [("SELECT pg_sleep(60)",)] and is_waiting(conn))
    error = Killed()
    task.throw(error)
    task.join()
    assert task.error is error
    assert not conn.closed and statements_running(admin) == []
    if where == "commit" and not is_autocommit:
        assert commit_outcome(error) == "rolled back"
    assert usable(conn)
    assert ids(conn) in ([], [1], [1, 2]) if is_autocommit else ids(conn) == []


@pytest.mark.parametrize("is_autocommit", [False, True])
def test_deadline(conn, admin, is_autocommit):
    conn.autocommit = is_autocommit
    with pytest.raises(DeadlineExceeded), conn.deadline(0.1), conn.pipeline():
        conn.execute("INSERT INTO item VALUES (1)")
        conn.execute("SELECT pg_sleep(60)").fetchone()
    assert usable(conn) and statements_running(admin) == []
    assert ids(conn) == ([1] if is_autocommit else [])


@green_only
def test_killed_in_the_commit(conn, admin, dsn):
    """The COMMIT isn't cancelled: its outcome is told."""
    conn.execute("CREATE TEMP TABLE slow (id int)")
    conn.execute(
        "CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$"
    )
    conn.execute(
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()"
    )
    conn.commit()

    def work():
        with conn.pipeline():
            conn.execute("INSERT INTO slow VALUES (1)").rowcount  # noqa: B018 - waits for it
            conn.commit()

    task = Task(work)
    wait_until(lambda: statements_running(admin) == [("COMMIT",)])
    error = Killed()
    task.throw(error)
    task.join()
    assert task.error is error and commit_outcome(error) == "committed"
    assert conn.execute("SELECT id FROM slow").fetchall() == [(1,)]


@green_only
def test_killed_in_the_block(conn, admin):
    """Not in a wait of greenpg's: what was sent is cancelled all the same, when the block is left."""

    def work():
        with conn.pipeline():
            conn.execute("SELECT pg_sleep(60)")
            hub().sleep(60)

    task = Task(work)
    wait_until(lambda: conn._gate.queue is not None)
    hub().sleep(0.05)
    error = Killed()
    task.throw(error)
    task.join(5)
    assert task.error is error and usable(conn) and statements_running(admin) == []


def test_another_task(conn, admin):
    def work():
        with conn.pipeline():
            return conn.execute("SELECT pg_sleep(0.3)").fetchone()

    task = Task(work)
    wait_until(lambda: is_waiting(conn) and statements_running(admin))
    for call in (lambda: conn.execute("SELECT 1"), conn.commit, conn.rollback):
        with pytest.raises(ConnectionInUse):
            call()
    assert task.result() == ("",)
    assert usable(conn)


def test_closed_by_another_task(conn, admin):
    def work():
        with conn.pipeline():
            conn.execute("SELECT pg_sleep(60)").fetchone()

    task = Task(work)
    wait_until(lambda: is_waiting(conn) and statements_running(admin))
    conn.close()
    with pytest.raises(psycopg2.Error):
        task.result()
    wait_until(lambda: not statements_running(admin))


def test_lost_connection(conn, admin):
    with pytest.raises(psycopg2.OperationalError), conn.pipeline():
        pid = conn.execute("SELECT pg_backend_pid()").fetchone()[0]
        first = conn.execute("SELECT pg_sleep(60)")
        second = conn.execute("SELECT 1")
        Task(lambda: admin.cursor().execute("SELECT pg_sleep(0.1), pg_terminate_backend(%s)", (pid,)))
        first.fetchone()
    assert conn.closed
    with pytest.raises(psycopg2.OperationalError):
        second.fetchone()


@pytest.mark.usual_times
@pytest.mark.parametrize("is_autocommit", [False, True])
def test_a_network_that_swallows_everything(through_proxy, is_autocommit):
    """A deadline comes out all the same, and the connection isn't kept."""
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.execute("SELECT 1")
    conn.commit()
    conn.autocommit = is_autocommit
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded), conn.deadline(0.1), conn.pipeline():
        conn.execute("SELECT 1").fetchone()
        proxy.stall()
        conn.execute("SELECT 2")
        conn.execute("SELECT %s", ("x" * 3_000_000,)).fetchone()
    assert time.monotonic() - started < 5
    assert conn.closed


def test_lost_in_the_commit(server, through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.execute("SELECT 1")
    conn.commit()
    with pytest.raises(psycopg2.OperationalError) as caught, conn.pipeline():
        conn.execute("SELECT 1")
        proxy.cut()
        conn.commit()
    assert commit_outcome(caught.value) == "unknown"
    assert conn.closed


# -- pools


def test_pool(make_pool, admin):
    pool = make_pool(min_size=1)
    pool.execute("CREATE TABLE piped (id int UNIQUE)")
    try:
        with pool.pipeline() as p:
            cur = p.execute("INSERT INTO piped VALUES (1) RETURNING id")
            with pytest.raises(psycopg2.ProgrammingError):
                p.connection.commit()
        assert cur.fetchone() == (1,)
        for error in (KeyError(), Killed()):
            with pytest.raises(type(error)), pool.pipeline() as p:
                p.execute("INSERT INTO piped VALUES (2)")
                raise error
        with pytest.raises(psycopg2.errors.UniqueViolation) as caught, pool.pipeline() as p:
            p.execute("INSERT INTO piped VALUES (3)")
            p.execute("INSERT INTO piped VALUES (1)")
        assert commit_outcome(caught.value) == "rolled back" and caught.value.statement_index == 1
        with pool.pipeline() as p:
            pass
        assert pool.fetchall("SELECT id FROM piped") == [(1,)]
        assert pool.get_stats()["connections_num"] == 1
        assert not pool._core.ledger.line
    finally:
        pool.execute("DROP TABLE piped")


def test_returned_in_the_block(make_pool):
    """The next borrower isn't in the pipeline, and leaving the block later does nothing to him."""
    pool = make_pool(min_size=1)
    conn = pool.getconn()
    block = conn.pipeline()
    block.__enter__()
    conn.execute("SELECT 1").fetchone()
    pool.putconn(conn)
    other = pool.getconn()
    assert other is conn or other.execute("SELECT 2").fetchone() == (2,)
    assert other._gate.queue is None
    cur = other.execute("SELECT 3")
    block.__exit__(None, None, None)
    assert cur.fetchone() == (3,)
    pool.putconn(other)


def test_pool_in_autocommit(make_pool):
    pool = make_pool(min_size=1, kwargs={"autocommit": True})
    with pytest.raises(psycopg2.errors.UniqueViolation), pool.pipeline() as p:
        p.execute("CREATE TEMP TABLE auto (id int UNIQUE)")
        for n in (1, 1, 2):
            p.execute("INSERT INTO auto VALUES (%s)", (n,))
    assert pool.fetchall("SELECT id FROM auto ORDER BY id") == [(1,), (2,)]


# -- an oracle


def random_program(rng):
    """Statements and calls, which may fail."""
    steps = []
    for _ in range(rng.randrange(2, 14)):
        n = rng.randrange(6)
        steps.append(
            rng.choice(
                [
                    (
                        "execute",
                        "INSERT INTO item VALUES (%s, %s) RETURNING id, name",
                        (n, rng.choice(["a;b", None, "é"])),
                    ),
                    ("execute", "UPDATE item SET name = name || %s WHERE id > %s", ("x", n)),
                    ("execute", "SELECT id, name, %s / %s FROM item ORDER BY id", (6, rng.randrange(5))),
                    ("execute", "DELETE FROM item WHERE id = %s", (n,)),
                    ("execute", "SELECT count(*), min(now() - now()), ARRAY[1, NULL] FROM item", None),
                    ("execute", "SELEC 1" if rng.random() < 0.1 else "SELECT 1", None),
                    ("execute", "-- empty" if rng.random() < 0.2 else "SELECT 2 AS two", None),
                    ("commit",),
                    ("rollback",),
                    ("executemany", "INSERT INTO item VALUES (%s)", [(n + 10,), (n + 20,)]),
                    ("callproc", "abs", (-n,)),
                    ("savepoint",),
                ]
            )
        )
    return steps


def run_program(conn, steps, is_pipelined, fetches):
    """What the statements gave; ends at the first error, as a program does that catches none."""
    found, later = [], []

    def fetched(cur):
        rows = cur.fetchall() if cur.description is not None else None
        return rows, cur.rowcount, cur.statusmessage

    def run():
        for step, fetch in zip(steps, fetches, strict=True):
            if step[0] in ("commit", "rollback"):
                getattr(conn, step[0])()
            elif step[0] == "savepoint":
                with conn.transaction():
                    later.append(conn.execute("SELECT 'inside'"))
            else:
                cur = conn.cursor()
                getattr(cur, step[0])(*step[1:])
                if fetch:
                    found.append(fetched(cur))
                else:
                    later.append(cur)

    error = None
    try:
        if is_pipelined:
            with conn.pipeline():
                run()
        else:
            run()
    except psycopg2.Error as caught:
        error = caught
    if error is None:
        found += [fetched(cur) for cur in later]
    status = conn.status, conn.get_transaction_status()
    conn.rollback()
    cur = conn.cursor()
    cur.execute("SELECT id, name FROM item ORDER BY id")
    left = cur.fetchall()
    cur.execute("TRUNCATE item")
    conn.commit()
    return found, status, left, error and (type(error).__mro__[1].__name__, error.pgcode, str(error))


@pytest.mark.parametrize("seed", range(60))
def test_as_one_by_one(conn, seed):
    """Random programs: in a pipeline the results, the errors and what is left are those of one by one."""
    rng = random.Random(seed)
    conn.autocommit = seed % 3 == 0
    steps = random_program(rng)
    fetches = [rng.random() < 0.4 for _ in steps]
    ordinary = run_program(conn, steps, False, fetches)
    pipelined = run_program(conn, steps, True, fetches)
    if ordinary[3] is not None:
        assert pipelined[3] is not None and pipelined[3][1:] == ordinary[3][1:]
        # rollback() doesn't raise what has failed before, and in autocommit the statements after it are executed.
        if not conn.autocommit and ("rollback",) not in steps:
            assert pipelined[2] == ordinary[2]
        return
    assert pipelined == ordinary


def test_datetimes_of_a_factory(conn):
    cur = conn.cursor()
    cur.tzinfo_factory = lambda offset: datetime.timezone(datetime.timedelta(minutes=1) + offset)
    with conn.pipeline():
        cur.execute("SELECT '2024-01-01 10:00+00'::timestamptz")
        assert cur.fetchone()[0].utcoffset() != datetime.timedelta(0)
