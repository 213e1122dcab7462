"""Conninfo and kwargs that change: how often the functions are asked, and what happens when the server refuses."""

import itertools
import threading
from datetime import datetime, timedelta, timezone

import psycopg2
import pytest
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.connection.connect.credentials import Credentials
from greenpg.embedded import Server
from greenpg.hubs import hub


@pytest.fixture(scope="module")
def locked_server():
    with Server(port=0, password="postgres's") as server:
        yield server


numbers = itertools.count(1)


class Vault:
    """Rotates the password of a role, and says what it is: another role for each test."""

    def __init__(self, server):
        self.server = server
        self.role = f"app_{next(numbers)}"
        self.calls = 0
        self.running = self.most_running = 0
        self.password = "first"
        self.expiry = None
        self.conn = greenpg.connect(server.tcp_dsn)
        self.conn.autocommit = True
        self.conn.cursor().execute(f"CREATE ROLE {self.role} LOGIN PASSWORD 'first'")

    def rotate(self, password, *, told=True):
        self.conn.cursor().execute(f"ALTER ROLE {self.role} PASSWORD '{password}'")
        if told:
            self.password = password

    def dsn(self):
        return extensions.make_dsn(self.server.tcp_dsn, user=self.role, password=self.password)

    def __call__(self):
        self.calls += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        dsn = self.dsn()
        hub().sleep(0.02)
        self.running -= 1
        return dsn if self.expiry is None else (dsn, self.expiry)


@pytest.fixture
def vault(locked_server):
    vault = Vault(locked_server)
    yield vault
    vault.conn.close()


def test_connect_errors_have_their_sqlstate(locked_server):
    for change, code in (({"password": "wrong"}, "28P01"), ({"dbname": "nowhere"}, "3D000")):
        with pytest.raises(psycopg2.OperationalError, match="FATAL:  [a-z]") as caught:
            greenpg.connect(locked_server.tcp_dsn, **change)
        assert caught.value.pgcode == code
        assert "LOCATION" not in str(caught.value)
    with pytest.raises(psycopg2.OperationalError) as caught:
        greenpg.connect("host=127.0.0.1 port=1")
    assert caught.value.pgcode is None


def test_later_errors_are_as_ever(locked_server):
    conn = greenpg.connect(locked_server.tcp_dsn)
    with pytest.raises(psycopg2.errors.DivisionByZero) as caught:
        conn.cursor().execute("SELECT 1 / 0")
    assert str(caught.value) == "division by zero\n"
    conn.close()


def test_one_call_at_a_time_however_many_connections_open(make_pool, vault):
    pool = make_pool(vault, min_size=6, num_workers=6)
    pool.wait()
    assert vault.most_running == 1
    assert vault.calls <= 6
    assert pool.fetchval("SELECT current_user") == vault.role


@pytest.mark.parametrize("expiry", [60, 60.0, timedelta(minutes=1)], ids=str)
def test_kept_until_it_expires(make_pool, vault, expiry):
    vault.expiry = datetime.now(timezone.utc) + expiry if isinstance(expiry, timedelta) else expiry
    pool = make_pool(vault, min_size=6)
    pool.wait()
    assert vault.calls == 1
    pool.drain()
    wait_until(lambda: pool.get_stats()["pool_available"] == 6)
    assert vault.calls == 1


def test_asked_again_when_it_has_expired(make_pool, vault):
    vault.expiry = 0.05
    pool = make_pool(vault, min_size=1)
    pool.wait()
    assert vault.calls == 1
    hub().sleep(0.06)
    pool.drain()
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)
    assert vault.calls == 2


def test_kwargs_may_be_the_function(make_pool, vault):
    calls = []

    def find_kwargs():
        calls.append(1)
        return {"user": vault.role, "password": vault.password, "autocommit": True}, 60

    pool = make_pool(vault.server.tcp_dsn, kwargs=find_kwargs, min_size=3)
    pool.wait()
    assert len(calls) == 1
    with pool.connection() as conn:
        assert conn.autocommit
        assert conn.info.user == vault.role


def test_rotated_password_costs_one_call_and_no_error(make_pool, vault, caplog):
    """What was kept is refused: the connection is made all the same, at once."""
    vault.expiry = 3600
    pool = make_pool(vault, min_size=3, num_workers=3, reconnect_timeout=0)
    pool.wait()
    vault.rotate("second")
    pool.drain()
    assert pool.fetchval("SELECT 1") == 1
    wait_until(lambda: pool.get_stats()["pool_available"] == 3)
    assert vault.calls == 2
    assert pool.get_stats().get("connections_errors", 0) == 0
    assert "error connecting" not in caplog.text


def test_role_that_may_not_log_in_is_asked_for_once_more(make_pool, vault):
    """28000."""
    vault.expiry = 3600
    pool = make_pool(vault, min_size=1, reconnect_timeout=0)
    pool.wait()
    vault.conn.cursor().execute(f"ALTER ROLE {vault.role} NOLOGIN")
    old_role, vault.role, vault.password = vault.role, "postgres", "postgres's"
    pool.drain()
    assert pool.fetchval("SELECT current_user") == "postgres"
    assert vault.calls == 2
    vault.conn.cursor().execute(f"DROP ROLE {old_role}")


def test_refused_twice_is_an_error(make_pool, vault):
    vault.expiry = 3600
    vault.rotate("second", told=False)
    pool = make_pool(vault, min_size=1, fail_fast=True, reconnect_timeout=0)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed") as caught:
        pool.fetchval("SELECT 1")
    assert caught.value.pgcode == "28P01"
    assert vault.calls == 2


def test_other_errors_ask_for_nothing(make_pool, vault):
    vault.expiry = 3600
    pool = make_pool(vault, kwargs={"dbname": "nowhere"}, min_size=1, fail_fast=True, reconnect_timeout=0)
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        pool.fetchval("SELECT 1")
    assert vault.calls == 1


def test_value_that_does_not_change_is_not_tried_twice(make_pool, vault):
    pool = make_pool(f"{vault.dsn()} password=wrong", min_size=1, fail_fast=True, reconnect_timeout=0)
    with pytest.raises(psycopg2.OperationalError):
        pool.fetchval("SELECT 1")
    assert pool.get_stats()["connections_num"] == 1


def test_listener_of_a_pool_uses_what_is_kept(make_pool, vault):
    vault.expiry = 3600
    pool = make_pool(vault, min_size=1)
    pool.wait()
    with pool.listen("news") as subscription:
        assert vault.calls == 1
        pool.notify("news", "hello")
        assert subscription.get(timeout=5).payload == "hello"


def test_listener_with_a_rotated_password(vault):
    vault.expiry = 3600
    with greenpg.Listener(vault) as listener:
        listener.subscribe("news").close()
        vault.rotate("second")
        vault.conn.cursor().execute("SELECT pg_terminate_backend(%s)", (listener.backend_pid,))
        listener.subscribe("other").close()
        assert vault.calls == 2


def test_new_function_is_asked_from_then_on(make_pool, vault):
    pool = make_pool(vault, min_size=1)
    pool.wait()
    pool.conninfo = lambda: (extensions.make_dsn(vault.dsn(), application_name="changed"), 60)
    pool.drain()
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)
    assert pool.fetchval("SHOW application_name") == "changed"


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (5, "must return a str"),
        (("x", "soon"), "seconds from now"),
        (("dbname=x", datetime(2030, 1, 1)), "time zone"),
        ((b"dbname=x", 5), "must return a str"),
    ],
)
def test_function_that_returns_nonsense(make_pool, returned, what):
    pool = make_pool(lambda: returned, min_size=1, fail_fast=True, reconnect_timeout=0)
    with pytest.raises(TypeError, match=what):
        pool.fetchval("SELECT 1")


# -- the calls by themselves


def test_who_waits_for_a_call_gets_its_error():
    calls = []

    def fail():
        calls.append(1)
        hub().sleep(0.02)
        raise LookupError("no vault")

    credentials = Credentials(fail, None)
    tasks = [Task(credentials.get) for _ in range(5)]
    errors = []
    for task in tasks:
        with pytest.raises(LookupError, match="no vault") as caught:
            task.result()
        errors.append(caught.value)
    assert len(calls) == 1
    assert len(set(map(id, errors))) == 5


@pytest.mark.only_hub("gevent", "eventlet")
def test_killed_call_is_made_by_the_next_one():
    calls = []

    def find():
        calls.append(1)
        hub().sleep(0.05 if len(calls) == 1 else 0)
        return f"dbname=x{len(calls)}"

    credentials = Credentials(find, None)
    first = Task(credentials.get)
    wait_until(lambda: calls)
    others = [Task(credentials.get) for _ in range(3)]
    hub().sleep(0.01)
    first.throw(Killed())
    with pytest.raises(Killed):
        first.result()
    assert {task.result()[0] for task in others} == {"dbname=x2"}
    assert len(calls) == 2


def test_from_several_native_threads():
    calls = []

    def find():
        calls.append(threading.get_ident())
        hub().natives().sleep(0.01)
        return "dbname=x", 60

    credentials = Credentials(find, None)
    results = []
    done = [hub().event() for _ in range(4)]

    def ask(event):
        results.append(credentials.get()[0])
        event.set()

    for event in done:
        hub().natives().spawn(ask, event)
    for event in done:
        assert event.wait(hub().now() + 5)
    assert results == ["dbname=x"] * 4
    assert len(calls) == 1


def test_many_tasks_share_a_call():
    calls = []

    def find():
        calls.append(1)
        hub().sleep(0.3)  # native threads are slow to begin
        return "dbname=x"

    credentials = Credentials(find, None)
    assert {found[0] for found in run_all([credentials.get] * 20)} == {"dbname=x"}
    assert len(calls) == 1
