"""Behind a real PgBouncer, with two server connections for all clients: what works in which mode, what is refused."""

import io

import psycopg2
import pytest
from kit import Killed, Task, run_all, wait_until
from pgbouncer import PgBouncer, needs_pgbouncer

import greenpg
from greenpg import errors
from greenpg.hubs import hub
from greenpg.pool import pooler

pytestmark = needs_pgbouncer


@pytest.fixture(scope="module")
def bouncer(server):
    with PgBouncer(server, "transaction") as bouncer:
        yield bouncer


@pytest.fixture(scope="module")
def session_bouncer(server):
    with PgBouncer(server, "session", default_pool_size=20) as bouncer:
        yield bouncer


@pytest.fixture(scope="module")
def statement_bouncer(server):
    with PgBouncer(server, "statement") as bouncer:
        yield bouncer


@pytest.fixture
def pool(make_pool, bouncer):
    return make_pool(bouncer.dsn, min_size=8, pooler="transaction")


# -- what works in transaction mode


def test_many_tasks_share_two_server_connections(pool, admin):
    with pool.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS shared; CREATE TABLE shared (n int)")

    def work(n):
        with pool.transaction() as conn:
            conn.execute("INSERT INTO shared VALUES (%s)", (n,))
            pid = conn.execute("SELECT pg_backend_pid()").fetchone()[0]
            assert conn.execute("SELECT pg_backend_pid()").fetchone()[0] == pid
        return pid

    assert len(set(run_all([lambda n=n: work(n) for n in range(40)]))) <= 2
    assert pool.fetchval("SELECT count(*) FROM shared") == 40


def copy_and_read(pool):
    with pool.cursor() as cur:
        cur.execute("CREATE TEMP TABLE lines (n int, text text) ON COMMIT DROP")
        cur.copy_from(io.StringIO("1\tone\n2\ttwo\n"), "lines")
        with cur.copy("COPY lines FROM STDIN") as copy:
            copy.write_row((3, "three"))
        cur.execute("SELECT count(*) FROM lines")
        return cur.fetchone() == (3,)


def execute_many(pool):
    with pool.cursor() as cur:
        cur.execute("CREATE TEMP TABLE many (n int) ON COMMIT DROP")
        cur.executemany("INSERT INTO many VALUES (%s)", [(n,) for n in range(2000)])
        return cur.rowcount == 2000


def large_object(pool):
    with pool.connection() as conn:
        large = conn.lobject(0, "wb")
        large.write(b"large")
        large.close()
        found = conn.lobject(large.oid, "rb").read()
        conn.lobject(large.oid, "n").unlink()
        return found == b"large"


def named_cursor(pool):
    with pool.connection() as conn, conn.cursor("named") as cur:
        cur.execute("SELECT generate_series(1, 5000)")
        return sum(1 for _ in cur) == 5000


def savepoints(pool):
    with pool.transaction() as conn:
        with pytest.raises(psycopg2.errors.DivisionByZero), conn.transaction():
            conn.execute("SELECT 1 / 0")
        return conn.execute("SELECT 1").fetchone() == (1,)


def settled(pool):
    with pool.transaction(settle=True) as conn:
        conn.execute("SELECT 1")
        conn.execute("SELECT 2")
        name = conn.info.parameter_status("application_name")
    return name.startswith("greenpg ") and pool.fetchval("SHOW application_name") in ("", "app - 127.0.0.1")


def isolation(pool):
    with pool.transaction(isolation_level="SERIALIZABLE", readonly=True) as conn:
        return conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)


def advisory_of_a_transaction(pool):
    return pool.run(lambda conn: conn.execute("SELECT pg_advisory_xact_lock(7)").rowcount) == 1


def set_local(pool):
    with pool.transaction() as conn:
        conn.execute("SET LOCAL statement_timeout = '5s'")
    return pool.fetchval("SHOW statement_timeout") == "0"


WORKS = [
    copy_and_read,
    execute_many,
    large_object,
    named_cursor,
    savepoints,
    settled,
    isolation,
    advisory_of_a_transaction,
    set_local,
    lambda pool: sum(1 for _ in pool.stream("SELECT generate_series(1, 5000)")) == 5000,
    lambda pool: pool.fetchall("SELECT 1, 2") == [(1, 2)],
    lambda pool: pool.run(lambda conn: conn.execute("SELECT 3").fetchone()) == (3,),
    lambda pool: pool.notify("nobody", "listens") is None,
    lambda pool: pool.check() is None,
]


@pytest.mark.parametrize("works", WORKS, ids=lambda works: works.__name__)
def test_works_in_transaction_mode(pool, works):
    assert run_all([lambda: works(pool)] * 3) == [True] * 3


@pytest.mark.only_hub("gevent", "eventlet")
def test_cancel_goes_to_the_right_statement(pool, admin):
    """Two statements, on the two server connections; the task of one is killed."""
    sleeping = [Task(lambda: pool.fetchval("SELECT 'kept' FROM pg_sleep(0.4)")) for _ in range(2)]
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT ''kept''%' AND state = 'active'"
    cur = admin.cursor()
    wait_until(lambda: (cur.execute(busy), cur.fetchone()[0])[1] == 2)
    sleeping[0].throw(Killed())
    with pytest.raises(Killed):
        sleeping[0].result()
    assert sleeping[1].result() == "kept"


def test_deadline_cancels(pool):
    with pytest.raises(errors.DeadlineExceeded), pool.connection() as conn, conn.deadline(0.05):
        conn.execute("SELECT pg_sleep(10)")
    assert run_all([lambda: pool.fetchval("SELECT 1")] * 8) == [1] * 8


def test_pause_and_resume(make_pool, server):
    with PgBouncer(server, "transaction") as bouncer:
        pool = make_pool(bouncer.dsn, min_size=8, pooler="transaction")
        pause_and_resume(pool, bouncer)
        pool.close()


def pause_and_resume(pool, bouncer):
    pool.wait()
    assert run_all([lambda: pool.fetchval("SELECT 1 FROM pg_sleep(0.02)")] * 4) == [1] * 4
    bouncer.tell("PAUSE")
    waiting = [Task(lambda: pool.fetchval("SELECT 5")) for _ in range(4)]
    hub().sleep(0.05)
    assert not any(task.is_over for task in waiting)
    bouncer.tell("RESUME")
    assert [task.result() for task in waiting] == [5] * 4
    # A login that it breaks off itself PgBouncer takes for a failed one, and refuses clients for a while.
    bouncer.tell("RECONNECT")
    assert pool.run(lambda conn: conn.execute("SELECT 6").fetchone(), attempts=50) == (6,)


def test_restart_of_the_pooler(pool, bouncer):
    pool.wait()
    bouncer.stop()
    bouncer.start()
    assert run_all([lambda: pool.fetchval("SELECT 5")] * 8) == [5] * 8
    assert pool.get_stats()["pool_size"] == 8


def test_query_wait_timeout_is_an_error_and_costs_nothing(make_pool, server):
    with PgBouncer(server, "transaction", default_pool_size=1, query_wait_timeout=1) as bouncer:
        pool = make_pool(bouncer.dsn, min_size=2, pooler="transaction")
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            with pytest.raises(psycopg2.Error):
                pool.fetchval("SELECT 1")
            conn.execute("SELECT 1")
        assert run_all([lambda: pool.fetchval("SELECT 5")] * 4) == [5] * 4
        pool.close()


def test_short_server_lifetime(make_pool, server):
    with PgBouncer(server, "transaction", server_lifetime=0) as bouncer:
        pool = make_pool(bouncer.dsn, min_size=3, pooler="transaction")
        assert run_all([lambda: pool.fetchval("SELECT 5")] * 30) == [5] * 30
        pool.close()


# -- what is refused


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("LISTEN news", "direct_conninfo"),
        ("select pg_advisory_lock(1)", "pg_advisory_xact_lock"),
        ("SELECT pg_try_advisory_lock_shared(1)", "pg_advisory_xact_lock"),
        ("SET work_mem = '1MB'", "SET LOCAL"),
        ("SET SESSION work_mem = '1MB'", "SET LOCAL"),
        ("CREATE TEMP TABLE t (n int)", "ON COMMIT DROP"),
        ("PREPARE p AS SELECT 1", "prepared"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD"),
        ("LOAD 'auto_explain'", "LOAD"),
    ],
)
def test_what_a_session_keeps_is_refused(pool, statement, reason):
    with pool.connection() as conn:
        with pytest.raises(psycopg2.NotSupportedError, match=f"pooler in transaction mode: .*{reason}"):
            conn.execute(statement)
        with pytest.raises(psycopg2.NotSupportedError):
            conn.cursor().execute(statement.encode())
        assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE, "nothing was sent"


@pytest.mark.parametrize("statement", ["SET LOCAL work_mem = '1MB'", "SET TRANSACTION READ ONLY", "SELECT 'LISTEN'"])
def test_what_a_transaction_keeps_is_not(pool, statement):
    pool.run(lambda conn: conn.execute(statement))


def test_held_cursors_are_refused(pool):
    with pool.connection() as conn, pytest.raises(psycopg2.NotSupportedError, match="WITH HOLD"):
        conn.cursor("held", withhold=True).execute("SELECT 1")


def test_resetting_sessions_is_refused():
    with pytest.raises(ValueError, match="no session to be reset"):
        greenpg.ConnectionPool(pooler="transaction", reset="session")
    with pytest.raises(ValueError, match="pooler must be"):
        greenpg.ConnectionPool(pooler="odyssey")


def test_listening_is_refused_or_goes_to_the_server(pool, make_pool, bouncer, server):
    with pytest.raises(psycopg2.NotSupportedError, match="direct_conninfo"):
        pool.listen("news")
    both = make_pool(bouncer.dsn, min_size=1, pooler="transaction", direct_conninfo=server.tcp_dsn)
    with both.listen("news") as subscription:
        both.notify("news", "hello")
        assert subscription.get(timeout=5).payload == "hello"


# -- found by itself


def test_transaction_mode_is_found_when_it_matters(make_pool, bouncer):
    pool = make_pool(bouncer.dsn, min_size=2)
    pool.wait()
    with pytest.raises(psycopg2.NotSupportedError, match="transaction mode"):
        pool.listen("news")
    assert pool._core.pooler == "transaction"


def test_transaction_mode_is_found_by_the_listener(make_pool, bouncer):
    pool = make_pool(bouncer.dsn, min_size=0, max_size=1)
    with pytest.raises(psycopg2.NotSupportedError, match="transaction mode"):
        pool.listen("news")


def test_nothing_is_reset_behind_it(make_pool, bouncer):
    """`reset="session"`, which emptied application_name and left psycopg2 and the server with different encodings."""
    pool = make_pool(f"{bouncer.dsn} application_name=mine", min_size=2, reset="session")
    for _ in range(3):
        with pool.connection() as conn:
            conn.set_client_encoding("LATIN1")
            assert conn.execute("SELECT %s", ("é",)).fetchone() == ("é",)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2)
        with pool.connection() as conn:
            assert conn.encoding == "UTF8"
            assert conn.execute("SHOW client_encoding").fetchone() == ("UTF8",)
            assert conn.execute("SHOW application_name").fetchone() == ("mine",)
            assert conn.execute("SELECT %s", ("é€",)).fetchone() == ("é€",)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2)


def test_a_process_number_that_could_be_a_servers(bouncer):
    """A pooler makes them up, and one in a thousand or two is so low."""
    for _ in range(20_000):
        conn = greenpg.connect(bouncer.dsn)
        if pooler.can_be_servers(conn.info.backend_pid):
            break
        conn.close()
    assert pooler.mode_seen(conn, lambda: greenpg.connect(bouncer.dsn)) == "transaction"
    conn.close()


def test_transaction_mode_is_found_among_many_servers(server):
    """Where others are at work, it takes luck to get the same server process as another connection."""
    with PgBouncer(server, "transaction", default_pool_size=20, server_round_robin=1) as bouncer:
        conns = [greenpg.connect(bouncer.dsn) for _ in range(20)]
        for conn in conns:  # a transaction that stays open takes each a server connection
            conn.cursor().execute("SELECT 1")
        for conn in conns:
            conn.rollback()
        assert pooler.mode_seen(conns[0], lambda: greenpg.connect(bouncer.dsn)) == "transaction"
        for conn in conns:
            conn.close()


def test_a_server_is_no_pooler(make_pool):
    pool = make_pool(min_size=1)
    with pool.listen("news"):
        assert pool._core.pooler in (None, "none")


# -- session mode: all of it


def test_session_mode(make_pool, session_bouncer):
    pool = make_pool(session_bouncer.dsn, min_size=2, reset="session")
    pool.wait()
    with pool.listen("news") as subscription:
        pool.notify("news", "hello")
        assert subscription.get(timeout=5).payload == "hello"
    with pool.connection() as conn:
        conn.execute("SET work_mem = '1MB'")
        conn.execute("SELECT pg_advisory_lock(99)")
    wait_until(lambda: pool.get_stats()["pool_available"] == 2)
    assert run_all([lambda: pool.fetchval("SHOW work_mem")] * 2) == ["4MB"] * 2
    assert pool.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 99") == 0
    assert pool._core.pooler == "session"


# -- statement mode


def test_statement_mode(make_pool, statement_bouncer):
    pool = make_pool(statement_bouncer.dsn, min_size=4, pooler="statement")
    assert run_all([lambda: pool.fetchval("SELECT 5")] * 10) == [5] * 10
    assert pool.execute("SELECT 1") == 1
    pool.notify("nobody", "listens")
    with pool.connection() as conn:
        assert conn.autocommit
        assert conn.execute("SELECT 6").fetchone() == (6,)
    for block in (pool.cursor, pool.transaction, lambda: pool.stream("SELECT 1")):
        with (
            pytest.raises(psycopg2.NotSupportedError, match="statement mode: there are no transactions"),
            block() as found,
        ):
            next(iter(found))
    with pytest.raises(psycopg2.NotSupportedError, match="statement mode"):
        pool.run(lambda conn: None)
