"""Transactions whose BEGIN rides along: their round trips, and that nobody can tell them from psycopg2's own."""

import pickle

import psycopg2
import psycopg2.extras
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, is_waiting, needs_riding, run_all, wait_until
from psycopg2 import errors, extensions, sql

import greenpg
from greenpg import Rollback
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def table(admin):
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS tx; CREATE TABLE tx (n int PRIMARY KEY)")
    yield
    with admin.cursor() as cur:
        cur.execute("DROP TABLE tx")


def rows(admin):
    with admin.cursor() as cur:
        cur.execute("SELECT n FROM tx ORDER BY n")
        return [n for (n,) in cur.fetchall()]


def insert(conn, n):
    with conn.cursor() as cur:
        cur.execute("INSERT INTO tx VALUES (%s)", (n,))


# -- round trips


@pytest.fixture
def counted(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        with greenpg.ConnectionPool(extensions.make_dsn(server.tcp_dsn, port=counter.port), min_size=1) as pool:
            with pool.cursor() as cur:  # the first transaction of the process shows how psycopg2 begins
                cur.execute("SELECT 1")
            yield pool, counter


@needs_riding
def test_round_trips(counted):
    pool, counter = counted

    def statements(count):
        with pool.cursor() as cur:
            for _ in range(count):
                cur.execute("SELECT 1")

    def transaction():
        with pool.transaction() as conn:
            conn.cursor().execute("SELECT 1")

    def nested():
        with pool.transaction() as conn, conn.transaction():
            conn.cursor().execute("SELECT 1")

    def failing():
        with pytest.raises(ZeroDivisionError), pool.cursor() as cur:
            cur.execute("SELECT 1")
            1 / 0  # noqa: B018

    def plain():
        with pool.connection() as conn:
            conn.cursor().execute("SELECT 1")

    assert counter.of(lambda: statements(0)) == 0
    assert counter.of(lambda: statements(1)) == 2
    assert counter.of(lambda: statements(2)) == 3
    assert counter.of(transaction) == 2
    assert counter.of(nested) == 4
    assert counter.of(failing) == 2
    assert counter.of(lambda: pool.execute("SELECT 1")) == 1
    assert counter.of(lambda: pool.fetchval("SELECT 1")) == 1
    assert counter.of(lambda: pool.putconn(pool.getconn())) == 0
    assert counter.of(plain) == 2


def test_round_trips_of_executemany(counted, table, admin):
    pool, counter = counted

    def insert_many():
        with pool.cursor() as cur:
            cur.executemany("INSERT INTO tx VALUES (%s)", [(n,) for n in range(1000)])

    assert counter.of(insert_many) <= 20
    assert rows(admin) == list(range(1000))


# -- the traps of riding


@pytest.mark.parametrize("end", ["COMMIT", "\n  Rollback", "/* the end */ end"])
def test_first_statement_of_several_commands_that_end_the_transaction(make_pool, table, admin, end):
    """An error in it doesn't make it run a second time."""
    pool = make_pool(min_size=1)
    with pytest.raises(errors.DivisionByZero), pool.cursor() as cur:
        cur.execute(f"INSERT INTO tx VALUES (1);{end}; SELECT 1/0")
    assert rows(admin) == ([] if "Rollback" in end else [1])


def test_syntax_error_in_the_first_statement(make_pool, table, admin):
    pool = make_pool(min_size=1)
    with pytest.raises(errors.InFailedSqlTransaction, match="rolled back instead of committed"), pool.cursor() as cur:
        with pytest.raises(errors.SyntaxError) as caught:
            cur.execute("SELEC 1")
        assert cur.connection.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
        assert caught.value.diag.statement_position == "1"
        assert "LINE 1: SELEC 1\n        ^" in str(caught.value)
        assert cur.query == b"SELEC 1"
        with pytest.raises(errors.InFailedSqlTransaction):
            cur.execute("INSERT INTO tx VALUES (1)")
    assert rows(admin) == []
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
    assert pool.get_stats()["connections_num"] == 1


@pytest.mark.parametrize(
    ("query", "position", "marked"),
    [
        ("SELECT * FROM nowhere", "15", "LINE 1: SELECT * FROM nowhere\n                      ^"),
        ("SELECT 1,\n  nothing", "13", "LINE 2:   nothing\n          ^"),
        ("\n" * 9 + "SELECT nothing", "17", "LINE 10: SELECT nothing\n                ^"),
        ("\n" * 8 + "SELECT nothing", "16", "LINE 9: SELECT nothing\n               ^"),
    ],
)
def test_errors_point_into_the_users_statement(conn, query, position, marked):
    for riding in (True, False):
        with pytest.raises(errors.UndefinedTable if "nowhere" in query else errors.UndefinedColumn) as caught:
            if riding:
                with conn.transaction():
                    conn.cursor().execute(query)
            else:
                conn.cursor().execute(query)
        conn.rollback()
        error = caught.value
        assert error.diag.statement_position == position
        assert marked in str(error)
        assert marked in error.pgerror
        assert error.pgcode in ("42P01", "42703")
        assert error.diag.severity == "ERROR"
        assert error.cursor is not None
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert isinstance(again, psycopg2.ProgrammingError)


def test_what_the_cursor_shows(conn, table):
    with conn.transaction():
        cur = conn.cursor()
        cur.execute("INSERT INTO tx SELECT generate_series(1, %s) RETURNING n", (3,))
        assert cur.query == b"INSERT INTO tx SELECT generate_series(1, 3) RETURNING n"
        assert cur.statusmessage == "INSERT 0 3"
        assert cur.rowcount == 3
        assert [column.name for column in cur.description] == ["n"]
        assert cur.fetchall() == [(1,), (2,), (3,)]
        cur.execute("SELECT 2")
        assert cur.query == b"SELECT 2"


def test_query_in_an_error_shows_no_prefix(conn):
    cur = conn.cursor()
    with pytest.raises(errors.UndefinedTable), conn.transaction():
        cur.execute("SELECT * FROM nowhere")
    assert cur.query == b"SELECT * FROM nowhere"


def test_logging_cursor_logs_no_prefix(dsn):
    lines = []

    class Log:
        def write(self, text):
            lines.append(text)

    conn = psycopg2.connect(dsn, connection_factory=psycopg2.extras.LoggingConnection)
    conn.initialize(Log())
    with conn.transaction(), conn.cursor() as cur:
        cur.execute("SELECT 42")
    assert "".join(lines).strip() == "SELECT 42"
    conn.close()


def test_queries_of_every_kind(conn):
    for query, vars in [
        ("SELECT '%%'", ()),
        ("SELECT '%'", None),
        (b"SELECT 1", None),
        (sql.SQL("SELECT {}").format(sql.Literal(1)), None),
        ("SELECT %(one)s", {"one": 1}),
    ]:
        with conn.transaction(), conn.cursor() as cur:
            cur.execute(query, vars)
            assert cur.fetchone() in [("%",), (1,)]


@pytest.mark.parametrize("query", ["", ";", "-- nothing", "/* nothing */ ; "])
def test_empty_queries(conn, query):
    for riding in (True, False):
        with pytest.raises(psycopg2.ProgrammingError, match="can't execute an empty query"):
            if riding:
                with conn.transaction():
                    conn.cursor().execute(query)
            else:
                conn.cursor().execute(query)
        conn.rollback()
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE


def test_error_in_the_arguments_sends_nothing(conn):
    for query, vars, error in [
        ("SELECT %s", (object(),), psycopg2.ProgrammingError),
        ("SELECT %s %s", (1,), IndexError),
        (42, None, TypeError),
    ]:
        with pytest.raises(error), conn.transaction():
            conn.cursor().execute(query, vars)
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    with conn.transaction():
        with pytest.raises(TypeError):
            conn.cursor().execute(42)
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        conn.cursor().execute("SELECT 1")
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS


def test_status_and_autocommit(conn):
    assert not conn.autocommit
    with conn.transaction():
        assert conn.status == extensions.STATUS_BEGIN
        assert not conn.autocommit
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        conn.cursor().execute("SELECT 1")
        assert conn.status == extensions.STATUS_BEGIN
        assert conn.info.transaction_status == extensions.TRANSACTION_STATUS_INTRANS
        assert not conn.autocommit
    assert conn.status == extensions.STATUS_READY
    assert not conn.autocommit
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    conn.cursor().execute("SELECT 1")
    assert conn.status == extensions.STATUS_BEGIN, "psycopg2's own again"
    conn.rollback()
    conn.autocommit = True
    with conn.transaction():
        conn.cursor().execute("SELECT 1")
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
    assert conn.autocommit


def test_no_notices_of_our_own(conn):
    with conn.transaction():
        conn.cursor().execute("SELECT 1")
        named = conn.cursor("named")
        named.execute("SELECT generate_series(1, 3)")
        assert named.fetchall() == [(1,), (2,), (3,)]
        with conn.transaction():
            conn.cursor().execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$")
    assert conn.notices == ["NOTICE:  mine\n"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("withhold", [True, False])
def test_named_cursors(conn, table, admin, first, withhold):
    with conn.transaction():
        if not first:
            insert(conn, 1)
        named = conn.cursor("named", withhold=withhold)
        named.execute("SELECT generate_series(1, 5)")
        assert named.fetchmany(2) == [(1,), (2,)]
        insert(conn, 2)
        assert [row[0] for row in named] == [3, 4, 5]
        if withhold:
            kept = conn.cursor("kept", withhold=True)
            kept.execute("SELECT 7")
    assert rows(admin) == ([2] if first else [1, 2])
    if withhold:
        assert kept.fetchone() == (7,)
        kept.close()
        conn.rollback()
    assert conn.status == extensions.STATUS_READY
    assert not conn.autocommit


def test_named_cursor_of_an_ended_block_is_not_valid(conn):
    with conn.transaction():
        named = conn.cursor("named")
        named.execute("SELECT 1")
    with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
        named.fetchone()


def test_settings_before_and_in_the_transaction(conn):
    with conn.transaction():
        conn.set_session(isolation_level="SERIALIZABLE")
        with conn.cursor() as cur:
            cur.execute("SHOW transaction_isolation")
            assert cur.fetchone() == ("serializable",)
    with conn.transaction(), conn.cursor() as cur:
        cur.execute("SHOW transaction_isolation")
        assert cur.fetchone() == ("serializable",), "the connection's, now"
        with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
            conn.set_session(readonly=True)
    other = greenpg.connect(conn.dsn)
    with other.transaction():
        other.cursor().execute("SELECT 1")
        for change in (
            lambda: other.set_session(readonly=True),
            lambda: setattr(other, "autocommit", True),
            lambda: setattr(other, "isolation_level", "SERIALIZABLE"),
            lambda: setattr(other, "readonly", True),
            lambda: other.set_isolation_level(3),
            lambda: other.tpc_begin(other.xid(1, "a", "b")),
            lambda: other.set_client_encoding("LATIN1"),
        ):
            with pytest.raises(psycopg2.ProgrammingError, match="cannot be used inside a transaction"):
                change()
        assert other.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
    other.close()


def test_two_phase_commit(make_pool, table, admin):
    pool = make_pool(min_size=1)
    with pool.cursor() as cur:
        conn = cur.connection
        xid = conn.xid(7, "greenpg", "branch")
        conn.tpc_begin(xid)
        insert(conn, 1)
        conn.tpc_prepare()
        conn.tpc_commit()
    assert rows(admin) == [1]
    assert pool.get_stats()["connections_num"] == 1


def test_c_methods_that_reach_the_server_without_execute(conn, table, admin):
    import io

    with pytest.raises(ZeroDivisionError), conn.transaction():
        conn.cursor().executemany("INSERT INTO tx VALUES (%s)", [(1,), (2,)])
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), conn.transaction():
        conn.cursor().callproc("pg_advisory_xact_lock", (42,))
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), conn.transaction():
        conn.cursor().copy_from(io.StringIO("5\n6\n"), "tx")
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), conn.transaction():
        with conn.cursor().copy("COPY tx FROM STDIN") as copy:
            copy.write_row((9,))
        1 / 0  # noqa: B018
    assert rows(admin) == []
    with conn.transaction():
        oid = conn.lobject(0, "wb").oid
    with conn.transaction():
        conn.lobject(oid).unlink()
    with conn.transaction():
        insert(conn, 1)
        conn.cursor().copy_from(io.StringIO("5\n6\n"), "tx")
        conn.cursor().executemany("INSERT INTO tx VALUES (%s)", [(7,), (8,)])
    assert rows(admin) == [1, 5, 6, 7, 8]


def test_with_connection_inside_is_refused(conn):
    with conn.transaction():
        with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction block"):
            conn.__enter__()
        conn.cursor().execute("SELECT 1")


@pytest.mark.parametrize("call", ["commit", "rollback", "reset"])
def test_explicit_end_inside_is_refused(conn, table, admin, call):
    with conn.transaction():
        insert(conn, 1)
        with pytest.raises(psycopg2.ProgrammingError, match=rf"{call}\(\) is not possible inside a transaction block"):
            getattr(conn, call)()
    assert rows(admin) == [1]


def test_failed_commit(conn, admin, table):
    with admin.cursor() as cur:
        cur.execute("ALTER TABLE tx DROP CONSTRAINT tx_pkey, ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(errors.UniqueViolation) as caught, conn.transaction():
        insert(conn, 1)
        insert(conn, 1)
    assert greenpg.errors.commit_outcome(caught.value) == "rolled back"
    assert conn.status == extensions.STATUS_READY
    assert rows(admin) == []
    with conn.transaction():
        insert(conn, 1)
    assert rows(admin) == [1]


def test_connection_closed_inside(conn):
    with pytest.raises(psycopg2.InterfaceError, match="already closed") as caught, conn.transaction():
        conn.cursor().execute("SELECT 1")
        conn.close()
    assert greenpg.errors.commit_outcome(caught.value) == greenpg.errors.UNKNOWN
    with pytest.raises(psycopg2.InterfaceError):
        conn.transaction().__enter__()


def test_range_and_json_registration_inside(conn):
    with conn.transaction():
        psycopg2.extras.register_range("int4range", "MyRange", conn)
        psycopg2.extras.register_composite("pg_stat_activity", conn)
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE


@green_only
def test_kill_in_the_first_statement(make_pool):
    pool = make_pool(min_size=1)

    def work():
        with pool.cursor() as cur:
            conns.append(cur.connection)
            cur.execute("SELECT pg_sleep(60)")

    conns = []
    task = Task(work)
    wait_until(lambda: conns and is_waiting(conns[0]))
    hub().sleep(0.02)
    task.throw(Killed)
    task.join(5)
    assert isinstance(task.error, Killed)
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.connection is conns[0]
    assert not conns[0].autocommit
    assert pool.get_stats()["connections_num"] == 1


# -- transaction(), as psycopg 3's


def test_nested_blocks_are_savepoints(conn, table, admin):
    with conn.transaction() as outer:
        insert(conn, 1)
        with pytest.raises(errors.UniqueViolation), conn.transaction() as inner:
            insert(conn, 2)
            insert(conn, 1)
        with conn.transaction("named point") as named:
            insert(conn, 3)
    assert rows(admin) == [1, 3]
    assert outer.savepoint_name is None
    assert inner.savepoint_name == "greenpg_2"
    assert named.savepoint_name == "named point"
    assert named.connection is conn


def test_block_in_a_transaction_of_psycopg2_is_a_savepoint(conn, table, admin):
    insert(conn, 1)
    with conn.transaction():
        insert(conn, 2)
    assert rows(admin) == []
    conn.commit()
    assert rows(admin) == [1, 2]


def test_rollback_exception(conn, table, admin):
    with conn.transaction():
        insert(conn, 1)
        with conn.transaction():
            insert(conn, 2)
            raise Rollback
        insert(conn, 3)
    assert rows(admin) == [1, 3]
    with conn.transaction() as outer:
        insert(conn, 4)
        with conn.transaction():
            insert(conn, 5)
            raise Rollback(outer)
    assert rows(admin) == [1, 3]


def test_force_rollback(conn, table, admin):
    with conn.transaction(force_rollback=True):
        insert(conn, 1)
    with conn.transaction():
        insert(conn, 2)
        with conn.transaction(force_rollback=True):
            insert(conn, 3)
    assert rows(admin) == [2]


@pytest.mark.parametrize("native", [False, True])
def test_characteristics(conn, native):
    def shown():
        with conn.cursor("named" if native else None) as cur:
            cur.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
            return cur.fetchone()

    with conn.transaction(isolation_level="serializable", readonly=True, deferrable=True):
        assert shown() == ("serializable", "on")
    with conn.transaction(isolation_level=extensions.ISOLATION_LEVEL_REPEATABLE_READ):
        assert shown() == ("repeatable read", "off")
    with conn.transaction():
        assert shown() == ("read committed", "off")
    assert conn.isolation_level is None
    with pytest.raises(ValueError, match="unknown isolation level 'chaos'"):
        conn.transaction(isolation_level="chaos")
    with conn.transaction(), pytest.raises(psycopg2.ProgrammingError, match="outermost"):
        with conn.transaction(readonly=True):
            pass


def test_blocks_left_in_the_wrong_order(conn):
    first, second = conn.transaction(), conn.transaction()
    first.__enter__()
    second.__enter__()
    with pytest.raises(psycopg2.ProgrammingError, match="wrong order"):
        first.__exit__(None, None, None)
    conn.close()


def test_swallowed_error_is_not_committed_in_silence(conn, table, admin):
    with pytest.raises(errors.InFailedSqlTransaction, match="rolled back instead of committed"), conn.transaction():
        insert(conn, 1)
        with pytest.raises(errors.UniqueViolation):
            insert(conn, 1)
    assert rows(admin) == []
    assert conn.status == extensions.STATUS_READY


# -- the pool's


def test_pool_transaction(make_pool, table, admin):
    pool = make_pool(min_size=1)
    with pool.transaction() as conn:
        insert(conn, 1)
    with pool.transaction(isolation_level="SERIALIZABLE") as conn:
        insert(conn, 2)
        raise Rollback
    with pytest.raises(ZeroDivisionError), pool.transaction() as conn:
        insert(conn, 3)
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="unknown isolation level"), pool.transaction(isolation_level="chaos"):
        pass
    assert rows(admin) == [1]
    assert pool.get_stats()["pool_available"] == 1


def test_connection_returned_inside_its_block(make_pool, table, admin, caplog):
    pool = make_pool(min_size=1)
    with pool.cursor() as cur:
        insert(cur.connection, 1)
        pool.putconn(cur.connection)
    assert rows(admin) == []
    with pool.cursor() as cur:
        insert(cur.connection, 2)
    assert rows(admin) == [2]


def test_begin_executed_in_autocommit_does_not_leak(make_pool, caplog):
    pool = make_pool(min_size=1, kwargs={"autocommit": True})
    with pool.connection() as conn:
        conn.cursor().execute("BEGIN; SELECT 1")
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    pool.execute("BEGIN")
    assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE


def test_pool_cursor_in_autocommit(make_pool, table, admin):
    pool = make_pool(min_size=1, kwargs={"autocommit": True})
    with pytest.raises(ZeroDivisionError), pool.cursor() as cur:
        insert(cur.connection, 1)
        1 / 0  # noqa: B018
    assert rows(admin) == [1]
    with pytest.raises(ZeroDivisionError), pool.transaction() as conn:
        insert(conn, 2)
        1 / 0  # noqa: B018
    assert rows(admin) == [1]


def test_one_shots(make_pool, table):
    pool = make_pool(min_size=1)
    assert pool.execute("INSERT INTO tx SELECT generate_series(1, %s)", (3,)) == 3
    assert pool.fetchone("SELECT n FROM tx ORDER BY n") == (1,)
    assert pool.fetchone("SELECT n FROM tx WHERE false") is None
    assert pool.fetchall("SELECT n FROM tx ORDER BY n") == [(1,), (2,), (3,)]
    assert pool.fetchall("SELECT 1 AS one", cursor_factory=psycopg2.extras.RealDictCursor) == [{"one": 1}]
    assert pool.fetchval("SELECT max(n) FROM tx") == 3
    assert pool.fetchval("SELECT n FROM tx WHERE false") is None
    with pytest.raises(errors.UniqueViolation):
        pool.execute("INSERT INTO tx VALUES (1)")
    with pool.connection() as conn:
        assert not conn.autocommit
    assert pool.get_stats()["connections_num"] == 1


def test_run_repeats_until_it_succeeds(make_pool, admin):
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS counter; CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)")
    pool = make_pool(min_size=2)

    def increment(conn):
        with conn.cursor() as cur:
            cur.execute("SELECT n FROM counter")
            (n,) = cur.fetchone()
            cur.execute("UPDATE counter SET n = %s", (n + 1,))
            return n

    def work():
        for _ in range(200):
            pool.run(increment, isolation_level="SERIALIZABLE", attempts=1000)

    run_all([work] * 2)
    assert pool.fetchval("SELECT n FROM counter") == 400
    with admin.cursor() as cur:
        cur.execute("DROP TABLE counter")


def test_run_gives_up_and_says_how_often_it_tried(make_pool):
    pool = make_pool(min_size=1)
    tries = []

    def fail(conn):
        tries.append(conn.isolation_level)
        conn.cursor().execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40P01'; END $$")

    with pytest.raises(errors.DeadlockDetected, match=r"(?s)again.*\(tried 3 times\)"):
        pool.run(fail, attempts=3)
    assert len(tries) == 3
    with pytest.raises(ZeroDivisionError):
        pool.run(lambda conn: 1 / 0)
    with pytest.raises(ValueError, match="attempts must be at least 1"):
        pool.run(fail, attempts=0)
    assert pool.run(lambda conn: 42) == 42


def test_safe_to_retry(make_pool, dsn, tmp_path):
    pool = make_pool(min_size=1)
    with pool.connection(), pytest.raises(greenpg.PoolTimeout) as caught:
        pool.getconn(timeout=0)
    assert greenpg.errors.safe_to_retry(caught.value)
    for connect in (greenpg.connect, psycopg2.connect):
        with pytest.raises(psycopg2.OperationalError) as caught:
            connect(host=str(tmp_path))
        assert greenpg.errors.safe_to_retry(caught.value)
    with pytest.raises(psycopg2.Error) as caught:
        pool.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert not greenpg.errors.safe_to_retry(caught.value)
    assert not greenpg.errors.safe_to_retry(ValueError())


# -- autocommit, which a pool leaves on underneath


def use_in_turn(pool):
    """One connection in all the ways that there are, after each other."""

    def in_cursor():
        with pool.cursor() as cur:
            cur.execute("SELECT 1")

    def in_transaction():
        with pool.transaction() as conn:
            conn.execute("SELECT 1")

    def in_empty_transaction():
        with pool.transaction():
            pass

    def in_transaction_of_psycopg2s():
        with pool.cursor() as cur, cur.connection.cursor("named") as named:
            named.execute("SELECT 1")

    def failing():
        with pytest.raises(errors.DivisionByZero):
            pool.execute("SELECT 1 / 0")

    def begun_by_hand():
        pool.execute("BEGIN")

    return [
        in_cursor,
        in_transaction,
        in_empty_transaction,
        in_transaction_of_psycopg2s,
        failing,
        begun_by_hand,
        lambda: pool.execute("SELECT 1"),
        lambda: list(pool.stream("SELECT 1")),
        pool.check,
    ]


@pytest.mark.parametrize("lends", ["connection", "getconn", "transaction", "cursor"])
def test_after_any_use_autocommit_is_off(make_pool, table, admin, lends):
    pool = make_pool(min_size=1)
    for use in use_in_turn(pool) * 2:
        use()
        if lends == "getconn":
            conn = pool.getconn()
            assert not conn.autocommit
            insert(conn, 1)
            assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
            pool.putconn(conn)
        else:
            with pytest.raises(ZeroDivisionError), getattr(pool, lends)() as lent:
                conn = lent.connection
                assert not conn.autocommit
                insert(conn, 1)
                assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
                1 / 0  # noqa: B018
        assert rows(admin) == []
    assert pool.get_stats()["connections_num"] == 1


def make_mischief(conn):
    conn.set_session("SERIALIZABLE", readonly=True, deferrable=True)
    conn.autocommit = True
    conn.set_client_encoding("LATIN1")
    conn.cursor_factory = psycopg2.extras.DictCursor
    conn.notices = []
    conn.notifies = []
    conn.statement_deadline = 7
    conn.deadline(9).__enter__()
    conn.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$")


def settings_of(conn):
    return (
        (conn.isolation_level, conn.readonly, conn.deferrable, conn.autocommit, conn.encoding, conn.cursor_factory),
        (conn.statement_deadline, conn._gate.next_deadline() is None, list(conn.notices)),
    )


@pytest.mark.parametrize("is_autocommit", [False, True])
@pytest.mark.parametrize("is_configured", [False, True])
@pytest.mark.parametrize("reset", ["rollback", "session", lambda conn: None])
def test_settings_that_a_borrower_leaves_are_put_back(make_pool, reset, is_configured, is_autocommit):
    def configure(conn):
        conn.set_session("REPEATABLE READ", readonly=False)
        conn.cursor_factory = extensions.cursor
        conn.statement_deadline = 3

    pool = make_pool(
        min_size=1,
        reset=reset,
        configure=configure if is_configured else None,
        kwargs={"autocommit": True} if is_autocommit else None,
    )
    with pool.connection() as conn:
        before = settings_of(conn)
        server_before = conn.execute("SHOW transaction_isolation").fetchone()
        conn.rollback()
        make_mischief(conn)
        assert settings_of(conn) != before
    with pool.connection() as again:
        assert again is conn
        assert settings_of(again) == before
        assert again.execute("SHOW transaction_isolation").fetchone() == server_before
        assert again.execute("SHOW transaction_read_only").fetchone() == ("off",)
        assert again.execute("SHOW client_encoding").fetchone()[0] == "UTF8"
    assert pool.get_stats()["connections_num"] == 1


@pytest.mark.parametrize("lends", ["connection", "getconn"])
def test_commit_by_hand_does_not_spoil_the_connection(make_pool, table, admin, caplog, lends):
    """psycopg2 thinks that it is in a transaction still, and wouldn't begin one for the next borrower."""
    pool = make_pool(min_size=1)
    for use in use_in_turn(pool):
        if lends == "connection":
            with pool.connection() as conn:
                conn.execute("SELECT 1")
                conn.execute("COMMIT")
        else:
            conn = pool.getconn()
            conn.execute("SELECT 1")
            conn.execute("COMMIT")
            pool.putconn(conn)
        use()
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            insert(conn, 1)
            1 / 0  # noqa: B018
        assert rows(admin) == []
    assert pool.get_stats()["connections_num"] == 1
    assert caplog.text.count("rolling back returned connection") == 1, "of the BEGIN by hand"


def test_one_shots_obey_the_settings_of_the_session(make_pool, table, admin):
    pool = make_pool(min_size=1, configure=lambda conn: conn.set_session("SERIALIZABLE", readonly=True))
    for use in [lambda: None, *use_in_turn(pool)]:
        use()
        assert pool.fetchval("SHOW transaction_isolation") == "serializable"
        with pool.cursor() as cur:
            cur.execute("SHOW transaction_isolation")
            assert cur.fetchone() == ("serializable",)
        with pool.connection() as conn:
            assert not conn.autocommit
            assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
    with pytest.raises(errors.ReadOnlySqlTransaction):
        pool.execute("INSERT INTO tx VALUES (1)")
    assert rows(admin) == []


def test_callbacks_find_autocommit_off(make_pool):
    seen = []
    note = lambda conn: seen.append(conn.autocommit)  # noqa: E731
    pool = make_pool(min_size=1, configure=note, check=note, reset=note)
    for use in use_in_turn(pool):
        use()
    assert len(seen) >= 15
    assert not any(seen)
