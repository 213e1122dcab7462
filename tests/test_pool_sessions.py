"""What one borrower does to a session doesn't reach the next one, in a pool with `reset="session"`."""

import contextlib

import psycopg2
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, needs_riding, wait_until
from psycopg2 import errors, extensions

import greenpg
from greenpg.hubs import hub

#: What is done to a session, in a transaction or out of one.
MISCHIEF = [
    "SET my.tenant = '42'",
    "SET application_name = 'tenant 42'",
    "SET statement_timeout = 60000",
    "SET lock_timeout = 60000",
    "SET default_transaction_isolation = 'serializable'",
    "SET default_transaction_read_only = on",
    "CREATE TEMP TABLE tenants (n int)",
    "SELECT pg_advisory_lock(42)",
    "LISTEN tenants",
    "PREPARE statement AS SELECT 1",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "SET datestyle TO 'German'",
    "SET ROLE pg_monitor",
]

#: (query, what a clean session answers)
TRACES = [
    ("SELECT coalesce(current_setting('my.tenant', true), '')", ""),
    ("SHOW application_name", "configured"),
    ("SHOW statement_timeout", "0"),
    ("SHOW lock_timeout", "0"),
    ("SHOW transaction_isolation", "read committed"),
    ("SHOW transaction_read_only", "off"),
    ("SELECT to_regclass('pg_temp.tenants')", None),
    ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", 0),
    ("SELECT count(*) FROM pg_listening_channels()", 0),
    ("SELECT count(*) FROM pg_prepared_statements", 0),
    ("SELECT count(*) FROM pg_cursors", 0),
    ("SELECT '2026-11-21'::date::text", "2026-11-21"),
    ("SELECT current_user = session_user", True),
]


@pytest.fixture
def pool(make_pool):
    def configure(conn):
        with conn.cursor() as cur:
            cur.execute("SET application_name = 'configured'")
        conn.commit()

    return make_pool(min_size=1, reset="session", configure=configure)


def check_traces(pool):
    with pool.connection() as conn, conn.cursor() as cur:
        for query, expected in TRACES:
            cur.execute(query)
            assert cur.fetchone() == (expected,), query
        return conn


def advisory_locks(admin):
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        return cur.fetchone()[0]


def in_connection(pool):
    with pool.connection() as conn:
        with conn.cursor() as cur:
            for statement in MISCHIEF:
                cur.execute(statement)
        conn.commit()
        conn.isolation_level = "SERIALIZABLE"
        conn.set_client_encoding("LATIN1")
        conn.autocommit = True
        conn.statement_deadline = 1
        return conn


def in_cursor(pool):
    with pool.cursor() as cur:
        for statement in MISCHIEF:
            cur.execute(statement)
        cur.connection.cursor_factory = extensions.cursor
        return cur.connection


def in_cursor_that_fails(pool):
    with contextlib.suppress(ZeroDivisionError), pool.cursor() as cur:
        for statement in MISCHIEF:
            cur.execute(statement)
        1 / 0  # noqa: B018
    return cur.connection


def in_cursor_with_error(pool):
    with contextlib.suppress(errors.DivisionByZero), pool.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(42)")
        cur.execute("SELECT 1 / 0")
    return cur.connection


def in_transaction(pool):
    with pool.transaction(isolation_level="SERIALIZABLE", readonly=False) as conn:
        for statement in MISCHIEF:
            conn.execute(statement)
        return conn


def in_psycopg2s_transaction(pool):
    with pool.transaction() as conn:
        conn.set_client_encoding("LATIN1")
        for statement in MISCHIEF:
            conn.execute(statement)
        return conn


def after_an_empty_transaction(pool):
    with pool.connection() as conn:
        with conn.transaction():
            pass
        for statement in MISCHIEF:
            conn.execute(statement)
        conn.commit()
        return conn


def by_itself(pool):
    for statement in MISCHIEF:
        pool.execute(f"{statement}; SELECT 1")
    pool.execute("; ".join(MISCHIEF))


@pytest.mark.parametrize(
    "do_mischief",
    [
        in_connection,
        in_cursor,
        in_cursor_that_fails,
        in_cursor_with_error,
        in_transaction,
        in_psycopg2s_transaction,
        after_an_empty_transaction,
        by_itself,
    ],
)
def test_nothing_is_left_to_the_next_borrower(pool, admin, do_mischief):
    conn = do_mischief(pool)
    wait_until(lambda: advisory_locks(admin) == 0)  # it doesn't take a next borrower to give them back
    again = check_traces(pool)
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)  # a task of the pool's resets it again
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)  # the reset is over
    assert again is conn or conn is None
    assert not again.autocommit
    assert again.isolation_level is None
    assert again.encoding == "UTF8"
    assert again.statement_deadline is None
    assert again.cursor_factory is None
    assert pool.get_stats()["connections_num"] == 1


@needs_riding
def test_round_trips(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        dsn = extensions.make_dsn(server.tcp_dsn, port=counter.port)
        with greenpg.ConnectionPool(dsn, min_size=1, reset="session") as pool:
            pool.wait()

            def transaction():
                with pool.transaction() as conn:
                    conn.execute("SET my.tenant = '42'")

            def failing():
                with pytest.raises(ZeroDivisionError), pool.cursor() as cur:
                    cur.execute("SET my.tenant = '42'")
                    1 / 0  # noqa: B018

            def reset():
                wait_until(lambda: pool.get_stats()["pool_available"] == 1)

            transaction()
            reset()  # a pool's first asks the server, once, whether a pooler stands before it
            for use, count in ((transaction, 2), (failing, 2), (lambda: pool.execute("SET my.tenant = '42'"), 1)):
                assert counter.of(lambda: [use(), reset()]) == count + 1, "the reset is the pool's own"  # noqa: B023


def test_commit_that_fails(pool, admin):
    with admin.cursor() as cur:
        cur.execute("CREATE TABLE tenant (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        with pytest.raises(errors.UniqueViolation) as caught, pool.cursor() as cur:
            cur.execute("SELECT pg_advisory_lock(42)")
            cur.execute("INSERT INTO tenant VALUES (1), (1)")
        assert greenpg.errors.commit_outcome(caught.value) == greenpg.errors.ROLLED_BACK
        wait_until(lambda: advisory_locks(admin) == 0)
        assert check_traces(pool) is cur.connection
    finally:
        with admin.cursor() as cur:
            cur.execute("DROP TABLE tenant")


def test_reset_that_fails_does_not_undo_the_commit(pool, admin, dsn, caplog):
    """Another session locks the temporary table, and then the reset is cancelled."""
    with admin.cursor() as cur:
        cur.execute("CREATE TABLE tenant (id int)")
    with pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE tenants (n int)")
        conn.commit()  # for the other session to see it
        pids = [conn.info.backend_pid]
        other = psycopg2.connect(dsn)
        with other.cursor() as cur:
            cur.execute("SELECT relnamespace::regnamespace FROM pg_class WHERE relname = 'tenants'")
            cur.execute(f"LOCK TABLE {cur.fetchone()[0]}.tenants IN ACCESS EXCLUSIVE MODE")
        conn.execute("INSERT INTO tenant VALUES (1)")
    try:
        with admin.cursor() as cur:

            def reset_waits():
                cur.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", pids)
                return cur.fetchone() == ("Lock",)

            wait_until(reset_waits)
            cur.execute("SELECT count(*) FROM tenant")
            assert cur.fetchone() == (1,)
            with pytest.raises(greenpg.PoolTimeout):
                pool.getconn(timeout=0.05)
            cur.execute("SELECT pg_cancel_backend(%s)", pids)
        wait_until(lambda: "error resetting connection" in caplog.text)
        other.rollback()
        assert check_traces(pool).info.backend_pid != pids[0]
    finally:
        other.close()
        with admin.cursor() as cur:
            cur.execute("DROP TABLE tenant")


@pytest.mark.only_hub("gevent", "eventlet")
def test_kill_in_the_reset_is_not_the_borrowers(make_pool, admin):
    """Who is killed after his COMMIT isn't told that it failed: the reset is done by a task of the pool's own."""
    pool = make_pool(min_size=1, reset=lambda conn: [conn.execute("SELECT pg_sleep(0.2)"), conn.rollback()])

    def work():
        with pool.cursor() as cur:
            cur.execute("SELECT 1")
        hub().sleep(5)

    task = Task(work)
    wait_until(lambda: pool._core.ledger.resetting)
    task.throw(Killed())
    with pytest.raises(Killed):
        task.result()
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
    assert pool.get_stats()["connections_num"] == 1


def test_rollback_reset_keeps_the_session(make_pool):
    pool = make_pool(min_size=1, reset="rollback")
    with pool.cursor() as cur:
        cur.execute("SET my.tenant = '42'")
    with pool.cursor() as cur:
        cur.execute("SHOW my.tenant")
        assert cur.fetchone() == ("42",)
    with pytest.raises(ValueError, match=r"reset must be .rollback., .session. or a function"):
        greenpg.ConnectionPool(reset="everything")


def test_typecasters_and_attributes_end_with_the_borrowing(make_pool):
    def configure(conn):
        conn.tenant = None
        extensions.register_type(extensions.new_type((23,), "hundreds", lambda value, cur: int(value) * 100), conn)

    class Labelled(greenpg.Connection):
        label = "none"

    pool = make_pool(min_size=1, max_size=1, reset="session", configure=configure, connection_class=Labelled)
    with pool.connection() as conn:
        conn.tenant, conn.user_id, conn.label = 42, 7, "mine"
        extensions.register_type(extensions.new_type((23,), "words", lambda value, cur: "word"), conn)
        extensions.register_type(extensions.new_type((25,), "shouted", lambda value, cur: value.upper()), conn)
        assert conn.execute("SELECT 1, 'a'::text").fetchone() == ("word", "A")
    with pool.connection() as other:
        assert other is conn
        assert other.execute("SELECT 1, 'a'::text").fetchone() == (100, "a")
        assert other.tenant is None
        assert not hasattr(other, "user_id")
        assert other.label == "none"


@pytest.mark.parametrize("reset", ["rollback", "session"])
@pytest.mark.parametrize(
    ("setting", "value", "shown_by"),
    [
        ("readonly", True, "transaction_read_only"),
        ("isolation_level", 3, "transaction_isolation"),
        ("encoding", "LATIN1", "client_encoding"),
    ],
)
def test_settings_that_a_rollback_by_hand_took_back(make_pool, reset, setting, value, shown_by):
    """psycopg2 doesn't know of the rollback, and believes what it has told the server."""
    pool = make_pool(min_size=1, max_size=1, reset=reset)

    def shown():
        with pool.cursor() as cur:
            cur.execute(f"SHOW {shown_by}")
            return cur.fetchone()[0]

    before = shown()
    conn = pool.getconn()
    conn.autocommit = True
    usual = getattr(conn, setting)

    def assign(value):
        if setting == "encoding":
            conn.set_client_encoding(value)
        else:
            setattr(conn, setting, value)

    assign(value)
    with conn.cursor() as cur:
        cur.execute("BEGIN")
        assign(usual)
        cur.execute("ROLLBACK")
        cur.execute(f"SHOW {shown_by}")
        assert cur.fetchone()[0] != before
    pool.putconn(conn)
    assert shown() == before
    with pool.connection() as conn:
        assert getattr(conn, setting) == usual
    assert pool.get_stats()["connections_num"] == 1
