"""pgclient's README with one import changed, and what the original got wrong."""

import logging
import pickle
import time

import psycopg2
import psycopg2.errors
import psycopg2.extras
import psycopg2.pool
import pytest
from kit import Killed, Task, is_waiting, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.compat.pgclient import PostgresClient
from greenpg.compat.pgclient import exceptions as pg_exc
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def make_client(dsn):
    clients = []

    def make(dsn=dsn, **options):
        clients.append(PostgresClient(dsn=dsn, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def users(admin):
    cur = admin.cursor()
    cur.execute("DROP TABLE IF EXISTS users; CREATE TABLE users (id serial PRIMARY KEY, username varchar NOT NULL)")
    cur.execute("INSERT INTO users (username) VALUES ('Ann'), ('Bob')")
    yield cur
    cur.execute("DROP TABLE users")


@pytest.fixture
def pg_client(make_client, users):
    return make_client(pool_size=3)


# -- the README


def test_initialize_the_client(dsn, users):
    parts = extensions.parse_dsn(dsn)
    by_parts = {
        "host": parts.get("host"),
        "port": parts.get("port"),
        "user": parts.get("user"),
        "database": parts.get("dbname"),
        "password": parts.get("password"),
    }
    for client in (PostgresClient(dsn=dsn), PostgresClient(**by_parts)):
        with client:
            with client.get_cursor() as cursor:
                cursor.execute("SELECT * FROM users")
            assert len(cursor.fetchall()) == 2
    by_parts["username"] = by_parts.pop("user")  # as the README has it
    with PostgresClient(**by_parts) as client:
        with client.get_cursor() as cursor:
            cursor.execute("SELECT current_user AS name")
        assert cursor.fetchone()["name"] == parts["user"]


def test_cursor_context_manager(pg_client):
    with pg_client.get_cursor() as cursor:
        cursor.execute("SELECT * FROM users")
    users = cursor.fetchall()
    assert users[0]["username"] == "Ann"


def test_override_the_factory_for_the_client(make_client, users):
    client = make_client(cursor_factory=psycopg2.extras.NamedTupleCursor)
    with client.get_cursor() as cursor:
        cursor.execute("SELECT * FROM users")
    assert cursor.fetchall()[1].username == "Bob"


def test_override_the_factory_for_a_context(pg_client):
    with pg_client.get_cursor(cursor_factory=psycopg2.extras.NamedTupleCursor) as cursor:
        cursor.execute("SELECT * FROM users")
        assert cursor.fetchone().username == "Ann"
    with pg_client.get_cursor() as cursor:
        cursor.execute("SELECT * FROM users")
        assert cursor.fetchone()["username"] == "Ann"


def test_safe_transactions(pg_client, users):
    with pg_client.get_cursor() as transaction:
        transaction.execute("INSERT INTO users (username) VALUES ('Mark')")
        transaction.execute("INSERT INTO users (username) VALUES ('Paolo')")
        transaction.execute("SELECT * FROM users")
        users.execute("SELECT count(*) FROM users")
        assert users.fetchone() == (2,)
    assert [user["username"] for user in transaction.fetchall()] == ["Ann", "Bob", "Mark", "Paolo"]
    users.execute("SELECT count(*) FROM users")
    assert users.fetchone() == (4,)


def test_rolled_back_in_case_of_database_errors(pg_client, users):
    with pytest.raises(pg_exc.PgClientError):
        with pg_client.get_cursor() as transaction:
            transaction.execute("INSERT INTO users (username) VALUES ('Mark')")
            transaction.execute("INSERT INTO users (username) VALUES (NULL)")
    users.execute("SELECT count(*) FROM users")
    assert users.fetchone() == (2,)


def test_auto_reconnect(pg_client, admin):
    with pg_client.get_cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() AS pid")
    pid = cursor.fetchone()["pid"]
    admin.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pg_client.get_cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() AS pid")
    assert cursor.fetchone()["pid"] != pid
    # Or manually
    conn = pg_client.acquire_conn()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    pg_client.release_conn(conn)
    assert pg_client.available_connections == 1


def test_extended_errors(pg_client):
    with pytest.raises(pg_exc.IntegrityConstraintViolation) as info:
        with pg_client.get_cursor() as transaction:
            transaction.execute("INSERT INTO users (username) VALUES (NULL)")
    err = info.value
    assert err.message.startswith("ERROR:  null value in column")
    assert err.pgcode == "23502"
    assert err.diag.column_name == "username"
    assert str(err).startswith("IntegrityConstraintViolation(ERROR:  null value")
    assert isinstance(err.__context__, psycopg2.errors.NotNullViolation)
    with pytest.raises(pg_exc.DataException):
        with pg_client.get_cursor() as transaction:
            transaction.execute("SELECT 1/0")


def test_catch_all_errors(pg_client):
    with pytest.raises(pg_exc.PgClientError):
        with pg_client.get_cursor() as transaction:
            transaction.execute("SELECT nothing")


# -- errors


def test_errors_are_psycopg2s_as_well(pg_client):
    def fail(sql="INSERT INTO users VALUES (1, 'Ann')"):
        with pg_client.get_cursor() as cursor:
            cursor.execute(sql)

    for wanted in (
        pg_exc.IntegrityConstraintViolation,
        greenpg.errors.IntegrityConstraintViolation,
        psycopg2.errors.UniqueViolation,
        psycopg2.IntegrityError,
    ):
        with pytest.raises(wanted) as info:
            fail()
    copy = pickle.loads(pickle.dumps(info.value))
    assert type(copy) is type(info.value)
    assert (copy.message, copy.pgcode, copy.diag.constraint_name) == (info.value.message, "23505", "users_pkey")


def test_the_commit_fails(pg_client, users):
    users.execute("ALTER TABLE users ADD UNIQUE (username) DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(pg_exc.IntegrityConstraintViolation) as info:
        with pg_client.get_cursor() as cursor:
            cursor.execute("INSERT INTO users (username) VALUES ('Ann')")
    assert greenpg.errors.commit_outcome(info.value) == greenpg.errors.ROLLED_BACK
    assert pg_client.available_connections == 1


@pytest.mark.parametrize(
    ("code", "wanted"),
    [("ZZ001", pg_exc.PgClientError), ("10ABC", pg_exc.XQueryError), ("72ABC", pg_exc.SnapshotFailure)],
)
def test_unknown_sqlstates(pg_client, code, wanted):
    with pytest.raises(wanted) as info:
        with pg_client.get_cursor() as cursor:
            cursor.execute(f"DO $$BEGIN RAISE 'x' USING ERRCODE = '{code}'; END$$")
    assert info.value.pgcode == code
    assert str(pg_exc.PgClientError()) == "PgClientError(None, None, None)"


def test_client_side_errors_have_a_message(pg_client):
    with pytest.raises(pg_exc.PgClientError) as info:
        with pg_client.get_cursor() as cursor:
            cursor.fetchone()
    assert info.value.message == "no results to fetch"
    with pytest.raises(psycopg2.InterfaceError) as info:
        with pg_client.get_cursor() as cursor:
            cursor.close()
            cursor.execute("SELECT 1")
    assert isinstance(info.value, pg_exc.PgClientError)


def test_other_exceptions_pass_unchanged(pg_client, users):
    with pytest.raises(ValueError, match="mine"):
        with pg_client.get_cursor() as cursor:
            cursor.execute("DELETE FROM users")
            raise ValueError("mine")
    users.execute("SELECT count(*) FROM users")
    assert users.fetchone() == (2,)


def test_the_exceptions_can_be_imported_as_before():
    from greenpg.compat.pgclient.exceptions import DataException, ErrorsRegistry

    assert ErrorsRegistry.get_error_class("22012") is DataException
    assert ErrorsRegistry.get_error_class(None) is pg_exc.PgClientError
    assert len(ErrorsRegistry.ERRORS) == 44


# -- the pool


def test_an_exhausted_pool_raises_at_once(pg_client):
    conns = [pg_client.acquire_conn() for _ in range(3)]
    for acquire in (pg_client.acquire_conn, lambda: pg_client.get_cursor().__enter__()):
        with pytest.raises(psycopg2.pool.PoolError, match="connection pool exhausted"):
            acquire()
    pg_client.release_conn(conns[0])
    with pg_client.get_cursor() as cursor:
        cursor.execute("SELECT 1")
    for conn in conns[1:]:
        pg_client.release_conn(conn)
    assert pg_client.available_connections == 3


def test_waiting_is_opt_in(make_client):
    client = make_client(pool_size=2, timeout=5)

    def work():
        with client.get_cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.01)")

    run_all([work] * 20)
    client.timeout = 0.05
    conns = [client.acquire_conn() for _ in range(2)]
    with pytest.raises(psycopg2.pool.PoolError, match="connection pool exhausted"):
        client.acquire_conn()
    for conn in conns:
        client.release_conn(conn)


def test_releasing_what_is_not_lent(pg_client, dsn):
    conn = pg_client.acquire_conn()
    pg_client.release_conn(conn)
    foreign = psycopg2.connect(dsn)
    for other in (conn, foreign):
        with pytest.raises(psycopg2.pool.PoolError):
            pg_client.release_conn(other, close=True)
    assert not foreign.closed
    foreign.close()


def test_released_in_a_transaction_closed_or_with_close(pg_client, users):
    conn = pg_client.acquire_conn()
    conn.execute("DELETE FROM users")
    pg_client.release_conn(conn)
    users.execute("SELECT count(*) FROM users")
    assert users.fetchone() == (2,)
    again = pg_client.acquire_conn()
    assert again is conn
    pg_client.release_conn(again, close=True)
    assert conn.closed
    conn = pg_client.acquire_conn()
    conn.close()
    pg_client.release_conn(conn)
    wait_until(lambda: pg_client.available_connections == 1)


def test_an_acquired_connection_has_no_transaction(pg_client):
    conn = pg_client.acquire_conn()
    assert conn.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
    conn.autocommit = True
    pg_client.release_conn(conn)
    conn = pg_client.acquire_conn()
    assert not conn.autocommit
    pg_client.release_conn(conn)


def test_wrong_values():
    with pytest.raises(ValueError, match="Wrong pool_size value"):
        PostgresClient(dsn="dbname=x", pool_size=0)


@pytest.mark.parametrize("auto_reconnect", [True, False])
def test_an_unknown_database_fails_at_once(dsn, auto_reconnect):
    with pytest.raises(psycopg2.OperationalError, match='database "nowhere" does not exist'):
        PostgresClient(dsn=dsn + " dbname=nowhere", auto_reconnect=auto_reconnect)


def test_a_dead_server_fails_in_time(dsn):
    started = time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match="(?i)connection"):
        PostgresClient(dsn="host=127.0.0.1 port=1 dbname=x user=x", reconnect_timeout=0.3)
    assert time.monotonic() - started < 20
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        PostgresClient(dsn="host=127.0.0.1 port=1 dbname=x user=x", auto_reconnect=False)


def test_a_closed_client(make_client):
    client = make_client()
    client.close()
    with pytest.raises(psycopg2.pool.PoolError, match="closed"):
        client.acquire_conn()


def test_the_programs_logging_is_left_alone():
    assert not logging.getLogger("pgclient").handlers
    assert logging.getLogger("pgclient").level == logging.NOTSET


def test_properties_of_0_2_3(pg_client):
    with pg_client.cursor as cursor:
        cursor.execute("SELECT username FROM users")
        assert cursor.fetchone() == ("Ann",)
    with pg_client.dict_cursor as cursor:
        cursor.execute("SELECT username FROM users")
        assert cursor.fetchone()["username"] == "Ann"
    with pg_client.nt_cursor as cursor:
        cursor.execute("SELECT username FROM users")
        assert cursor.fetchone().username == "Ann"


@green_only
def test_a_killed_task_costs_no_connection(pg_client):
    def work():
        with pg_client.get_cursor() as cursor:
            cursor.execute("SELECT pg_sleep(10)")

    tasks = [Task(work) for _ in range(3)]
    wait_until(lambda: pg_client._lent_count == 3)
    for task in tasks:
        task.throw(Killed())
    for task in tasks:
        task.join()
    conns = [pg_client.acquire_conn() for _ in range(3)]
    for conn in conns:
        pg_client.release_conn(conn)


# -- timeouts that raise psycopg2's errors


@green_only
def test_timeout_that_is_one_of_psycopg2s_errors(pg_client):
    """It was thrown in, so it is none of the client's errors, and no sign of a dead connection."""
    thrown = psycopg2.OperationalError("too slow")

    def work():
        with pg_client.get_cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")

    task = Task(work)
    wait_until(lambda: any(is_waiting(conn) and conn._gate.call == "execute" for conn in pg_client._lent))
    hub().sleep(0.05)
    task.throw(thrown)
    task.join(5)
    assert task.error is thrown
    with pg_client.get_cursor() as cursor:
        cursor.execute("SELECT 1 AS n")
        assert cursor.fetchone()["n"] == 1
