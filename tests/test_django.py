"""The engine within a process: what is borrowed comes back, and Django's own ways hold."""

from __future__ import annotations

import copy
import gc
import io
import logging
import os
import subprocess
import sys

import pytest
from django_kit import TESTS, Databases, execute, set_up, states
from kit import Killed, Task, run_all, wait_until

pytest.importorskip("django")
from counting import RoundTripCounter
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from psycopg2 import extensions

import greenpg
from greenpg.hubs import hub

only_green = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture(autouse=True)
def _site(dsn):
    set_up(dsn)


@pytest.fixture
def make_database():
    databases = Databases()
    yield databases.make
    databases.close()


@pytest.fixture
def other(make_database):
    """An alias with a pool of 3."""
    return make_database()


@pytest.fixture
def items():
    """Django's manager of the site's table, which is emptied."""
    from django_site.models import Item

    execute("default", "WITH gone AS (DELETE FROM django_site_item RETURNING 1) SELECT count(*) FROM gone")
    connections["default"].close()
    yield Item.objects
    connections["default"].close()


def stats(alias):
    return connections[alias].pool.get_stats()


def is_whole(alias):
    found = stats(alias)
    return found["pool_available"] == found["pool_size"] and not found["requests_waiting"]


# -- borrowing


def test_nothing_is_opened_before_the_first_query(other, admin):
    wrapper = connections[other]
    assert wrapper.connection is None
    assert stats(other)["pool_size"] == 0
    assert states(admin, other) == []
    assert execute(other, "SELECT 1") == 1
    assert len(states(admin, other)) == 1


def test_close_gives_back(other, admin):
    pids = set()
    for _ in range(5):
        pids.add(execute(other, "SELECT pg_backend_pid()"))
        assert stats(other)["pool_available"] == 0
        connections[other].close()
        connections[other].close()  # again is harmless
        assert is_whole(other)
    assert len(pids) == 1


def test_tasks_share_the_pool_and_its_limit(other, admin):
    def work():
        try:
            return execute(other, "SELECT 1 FROM pg_sleep(0.02)")
        finally:
            connections[other].close()

    tasks, sizes = [Task(work) for _ in range(30)], []
    while not all(task._done.value for task in tasks):
        sizes.append(len(states(admin, other)))
        hub().sleep(0.005)
    assert [task.result() for task in tasks] == [1] * 30
    assert max(sizes) == 3
    assert is_whole(other)


@pytest.mark.parametrize("block", ["none", "atomic", "manual"])
def test_a_task_that_ends_gives_back(other, admin, block, caplog):
    def work():
        if block == "manual":
            transaction.set_autocommit(False, using=other)
        if block == "atomic":
            transaction.atomic(using=other).__enter__()
        execute(other, "SELECT 1")

    for _ in range(7):
        Task(work).join()
    wait_until(lambda: gc.collect() is not None and is_whole(other))
    assert set(states(admin, other)) == {"idle"}
    if block == "none":
        assert not caplog.records


def test_a_wrapper_that_is_dropped_gives_back(other):
    wrapper = connections[other].copy()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    pool = wrapper.pool
    assert pool.get_stats()["pool_available"] == 0
    del wrapper, cursor
    gc.collect()
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)


def test_a_copy_of_a_wrapper_takes_nothing_along(other):
    with transaction.atomic(using=other):
        pid = execute(other, "SELECT pg_backend_pid()")
        copy.copy(connections[other])
        gc.collect()
        hub().sleep(0.05)
        assert execute(other, "SELECT pg_backend_pid()") == pid


@only_green
@pytest.mark.parametrize("block", ["none", "atomic"])
def test_killed_in_a_query(other, admin, block):
    def work():
        try:
            if block == "atomic":
                with transaction.atomic(using=other):
                    execute(other, "SELECT pg_sleep(60)")
            else:
                execute(other, "SELECT pg_sleep(60)")
        except Killed:
            # The connection is as good as before, and nothing runs at the server.
            assert execute(other, "SELECT 1") == 1
            raise

    tasks = [Task(work) for _ in range(3)]
    wait_until(lambda: states(admin, other).count("active") == 3)
    for task in tasks:
        task.throw(Killed)
    for task in tasks:
        with pytest.raises(Killed):
            task.result()
    wait_until(lambda: is_whole(other))
    assert states(admin, other) == ["idle"] * 3


@only_green
def test_killed_while_waiting_for_the_pool(make_database):
    alias = make_database(pool={"max_size": 1})
    execute(alias, "SELECT 1")
    task = Task(execute, alias, "SELECT 1")
    wait_until(lambda: stats(alias)["requests_waiting"] == 1)
    task.throw(Killed)
    with pytest.raises(Killed):
        task.result()
    connections[alias].close()
    assert Task(execute, alias, "SELECT 2").result() == 2


@pytest.mark.only_hub("gevent")
def test_a_timeout_that_looks_like_a_database_error_stays_itself(other):
    import gevent
    import psycopg2

    ours = psycopg2.OperationalError("too slow")
    with pytest.raises(psycopg2.OperationalError) as caught:
        with gevent.Timeout(0.05, ours):
            execute(other, "SELECT pg_sleep(60)")
    assert caught.value is ours


def test_close_in_an_atomic_block(other):
    with pytest.raises(DatabaseError, match="atomic"), transaction.atomic(using=other):
        execute(other, "SELECT 1")
        connections[other].close()
        assert is_whole(other)
        execute(other, "SELECT 1")
    assert execute(other, "SELECT 2") == 2


def test_a_cursor_is_closed_when_its_connection_goes_back(other):
    cursor = connections[other].cursor()
    cursor.execute("SELECT 1")
    connections[other].close()
    with pytest.raises(InterfaceError, match="given back"):
        cursor.execute("SELECT 2")


def test_an_iterator_that_is_left_leaves_no_cursor_at_the_server(items):
    for number in range(20):
        items.create(name=f"item {number}")
    iterator = items.order_by("pk").iterator(chunk_size=2)
    assert next(iterator).name == "item 0"
    assert execute("default", "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 1
    connections["default"].close()
    assert execute("default", "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
    assert stats("default")["pool_size"] == 1
    with pytest.raises(InterfaceError):
        list(iterator)


def test_iterator_lets_others_run(items):
    items.bulk_create([items.model(name=str(number)) for number in range(2000)])
    beats = []
    ticker = Task(lambda: [(beats.append(None), hub().sleep(0.001)) for _ in range(50)])
    assert sum(1 for _ in items.iterator(chunk_size=10)) == 2000
    ticker.join()
    assert len(beats) == 50


def test_a_connection_that_the_server_has_ended_is_replaced(other, admin):
    pid = execute(other, "SELECT pg_backend_pid()")
    connections[other].close()
    with admin.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
    wait_until(lambda: states(admin, other) == [])
    hub().sleep(0.01)
    assert execute(other, "SELECT pg_backend_pid()") != pid


def test_shared_between_tasks(other):
    wrapper = connections[other]
    wrapper.inc_thread_sharing()
    try:

        def use():
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                return cursor.fetchone()[0]

        first = Task(use).result()
        hub().sleep(0.05)
        assert wrapper.connection is not None  # though the task that borrowed it has ended
        assert use() == Task(use).result() == first
    finally:
        wrapper.dec_thread_sharing()
    with pytest.raises(DatabaseError, match="created in a"):
        Task(use).result()


FORK = """
import os, sys
hub = sys.argv[1]
if hub == "gevent":
    from gevent import monkey; monkey.patch_all()
elif hub == "eventlet":
    import eventlet; eventlet.monkey_patch()
import django
django.setup()
from django.db import connection, transaction

def pid():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

parents = pid()
with transaction.atomic():
    pid()
    child = os.fork()
    if child == 0:
        import gc; gc.collect()
        connection.close()
        connection.in_atomic_block = False
        os._exit(0 if pid() != parents and connection.pool.get_stats()["pool_size"] == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pid() == parents
"""


def test_fork(hub_name, dsn):
    """In the child the connection that the parent has borrowed is nobody's, and the parent's goes on."""
    environment = os.environ | {"DJANGO_SITE_DSN": dsn, "DJANGO_SETTINGS_MODULE": "django_site.settings"}
    environment |= {"PYTHONPATH": os.pathsep.join([TESTS, os.path.dirname(TESTS)]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", FORK, hub_name], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# -- transactions


@pytest.fixture
def counted(server, make_database):
    """An alias whose round trips are counted, its connection in the pool."""
    where = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(where["host"], where["port"]) as counter:

        def make(**database):
            alias = make_database(HOST="127.0.0.1", PORT=str(counter.port), **database)
            execute(alias, "SELECT 1")
            connections[alias].close()
            return alias

        yield counter, make


def request(alias, in_atomic, queries=1):
    if in_atomic:
        with transaction.atomic(using=alias):
            for _ in range(queries):
                execute(alias, "SELECT 1")
    else:
        execute(alias, "SELECT 1")
    connections[alias].close()


@pytest.mark.parametrize("options", [{}, {"isolation_level": extensions.ISOLATION_LEVEL_SERIALIZABLE}])
def test_round_trips(counted, options):
    counter, make = counted
    alias = make(options=options)
    assert counter.of(lambda: request(alias, in_atomic=False)) == 1
    assert counter.of(lambda: request(alias, in_atomic=True, queries=0)) == 0
    assert counter.of(lambda: request(alias, in_atomic=True)) == 2
    assert counter.of(lambda: request(alias, in_atomic=True, queries=3)) == 4


def test_round_trips_of_bulk_statements(counted, items):
    counter, make = counted
    alias = make()
    there = items.using(alias)

    def create():
        there.bulk_create([items.model(name=str(number)) for number in range(500)])

    def rename(number):
        rows = [(f"{number} {key}", key) for key in keys]
        with connections[alias].cursor() as cur:
            cur.executemany("UPDATE django_site_item SET name = %s WHERE id = %s", rows)
            assert cur.rowcount == 500

    def rename_in_a_transaction():
        with transaction.atomic(using=alias):
            rename(2)

    def update():
        there.bulk_update([items.model(id=key, name="same") for key in keys], ["name"])

    assert counter.of(create) <= 3
    keys = list(items.values_list("id", flat=True))
    assert len(keys) == 500
    few = 20  # of 500: 3, and more where the server answers before all has gone out
    assert counter.of(lambda: rename(1)) <= few
    assert counter.of(rename_in_a_transaction) <= few
    assert set(items.values_list("name", flat=True)) == {f"2 {key}" for key in keys}
    assert counter.of(update) <= 3
    assert set(items.values_list("name", flat=True)) == {"same"}
    connections[alias].close()


def test_round_trips_with_health_checks(counted):
    counter, make = counted
    alias = make(CONN_HEALTH_CHECKS=True)
    assert counter.of(lambda: request(alias, in_atomic=False)) == 2


def test_nested_blocks_are_savepoints(items):
    ran = []
    with transaction.atomic():
        items.create(name="kept")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            items.create(name="rolled back")
            transaction.on_commit(lambda: ran.append("inner"))
            raise ZeroDivisionError
        transaction.on_commit(lambda: ran.append("outer"))
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
            pass
        assert not ran
    assert ran == ["outer"]
    assert [item.name for item in items.all()] == ["kept"]


def test_isolation_level(make_database):
    alias = make_database(options={"isolation_level": extensions.ISOLATION_LEVEL_REPEATABLE_READ})
    for _ in range(2):
        with transaction.atomic(using=alias):
            assert execute(alias, "SHOW transaction_isolation") == "repeatable read"
        connections[alias].close()
    assert connections[alias].isolation_level == extensions.ISOLATION_LEVEL_REPEATABLE_READ


def test_time_zone_role_and_parameters_of_the_session(make_database, admin):
    with admin.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS django_role")
        cursor.execute("CREATE ROLE django_role")
    alias = make_database(
        options={"assume_role": "django_role", "options": "-c statement_timeout=7s"}, TIME_ZONE="Asia/Tokyo"
    )
    for _ in range(2):
        assert execute(alias, "SELECT current_user") == "django_role"
        assert execute(alias, "SHOW timezone") == "Asia/Tokyo"
        assert execute(alias, "SHOW statement_timeout") == "7s"
        # What a borrower changes is put right where Django looks itself; all else with reset="session".
        execute(alias, "SELECT set_config('TimeZone', 'America/Lima', false)")
        connections[alias].close()


def test_reset_session(make_database):
    seen = []
    alias = make_database(
        pool={"max_size": 1, "reset": "session", "configure": seen.append},
        options={"isolation_level": extensions.ISOLATION_LEVEL_SERIALIZABLE},
    )
    execute(alias, "SELECT set_config('search_path', 'nowhere', false)")
    connections[alias].close()
    assert execute(alias, "SHOW search_path") != "nowhere"
    assert execute(alias, "SHOW timezone") == "Europe/Berlin" or execute(alias, "SHOW timezone") == "UTC"
    assert execute(alias, "SHOW transaction_isolation") == "serializable"
    assert len(seen) >= 2


def test_json_and_time_zones(items):
    item = items.create(name="x", data={"numbers": [1, 2.5, None]})
    again = items.get(pk=item.pk)
    assert again.data == {"numbers": [1, 2.5, None]}
    assert again.made == item.made and again.made.utcoffset() is not None


def test_copy(other):
    with transaction.atomic(using=other), connections[other].cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copied (n int) ON COMMIT DROP")
        cursor.copy_expert("COPY copied FROM STDIN", io.StringIO("1\n2\n"))
        with cursor.copy("COPY copied FROM STDIN") as copy:
            copy.write_row([3])
        cursor.execute("SELECT sum(n) FROM copied")
        assert cursor.fetchone() == (6,)


# -- errors


def test_an_empty_pool(make_database):
    alias = make_database(pool={"max_size": 1, "timeout": 0.05})
    execute(alias, "SELECT 1")
    with pytest.raises(OperationalError, match="1 of 1 connections, 1 lent") as caught:
        Task(execute, alias, "SELECT 1").result()
    assert isinstance(caught.value.__cause__, greenpg.PoolTimeout)


def test_who_cannot_connect_is_told_at_once(make_database):
    alias = make_database(pool={"timeout": 100}, NAME="no_such_database")
    with pytest.raises(OperationalError, match='database "no_such_database" does not exist'):
        execute(alias, "SELECT 1")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"CONN_MAX_AGE": 60}, "Pooling doesn't support persistent connections.*max_idle"),
        ({"CONN_MAX_AGE": None}, "Pooling doesn't support persistent connections"),
        ({"pool": {"size": 3}}, "'size', which a pool doesn't know. It knows .*max_size"),
        ({"pool": 10}, "must be a dict .* not 10"),
        ({"pool": {"max_size": 0}}, "max_size must be at least 1"),
        ({"pool": {"timeout": -1}}, "timeout can't be negative"),
        ({"options": {"server_side_binding": True}}, "psycopg 3's"),
        ({"options": {"isolation_level": 17}}, "Invalid transaction isolation level 17"),
    ],
)
def test_settings_that_make_no_sense(make_database, settings, says):
    alias = make_database(**settings)
    with pytest.raises(ImproperlyConfigured, match=says):
        execute(alias, "SELECT 1")


def test_without_a_pool(make_database, admin):
    alias = make_database(pool=False, CONN_MAX_AGE=60)
    assert execute(alias, "SELECT 1") == 1
    assert connections[alias].pool is None
    connections[alias].close_if_unusable_or_obsolete()
    assert len(states(admin, alias)) == 1
    connections[alias].close()
    wait_until(lambda: states(admin, alias) == [])


def test_other_parameters_are_another_pool(make_database):
    alias = make_database()
    before = connections[alias].pool
    execute(alias, "SELECT 1")
    connections[alias].close()
    connections[alias].settings_dict["OPTIONS"]["options"] = "-c statement_timeout=9s"
    assert execute(alias, "SHOW statement_timeout") == "9s"
    assert connections[alias].pool is not before
    wait_until(lambda: before.closed)


# -- run_in_transaction


def test_run_in_transaction_repeats(items):
    from greenpg.integrations.django import run_in_transaction

    item, ran, tries = items.create(name="0"), [], []

    def add():
        tries.append(None)
        with connections["default"].cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        value = int(items.get(pk=item.pk).name)
        transaction.on_commit(lambda: ran.append(value))
        hub().sleep(0.01)
        items.filter(pk=item.pk).update(name=str(value + 1))
        return value

    def work():
        return run_in_transaction(add, attempts=50)

    assert sorted(run_all([work] * 5)) == [0, 1, 2, 3, 4]
    assert items.get(pk=item.pk).name == "5"
    assert sorted(ran) == [0, 1, 2, 3, 4]
    assert len(tries) > 5


def test_run_in_transaction_gives_up(other):
    from greenpg.integrations.django import run_in_transaction

    tries = []

    def fail(code):
        tries.append(code)
        execute(other, f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")

    with pytest.raises(OperationalError):
        run_in_transaction(lambda: fail("40001"), using=other, attempts=3)
    assert tries == ["40001"] * 3
    with pytest.raises(DatabaseError):
        run_in_transaction(lambda: fail("23505"), using=other)
    assert len(tries) == 4
    with pytest.raises(ValueError, match="at least 1"):
        run_in_transaction(tries.clear, attempts=0)
    with transaction.atomic(using=other), pytest.raises(RuntimeError, match="durable"):
        run_in_transaction(tries.clear, using=other)


# -- checks


def check(alias):
    return {message.id for message in connections[alias].validation.check()}


def test_checks(make_database, caplog):
    assert check(make_database("good")) == set()
    assert check(make_database("big", pool={"max_size": 10_000})) == {"greenpg.too_many_connections"}
    assert check(make_database("aged", CONN_MAX_AGE=60)) == {"greenpg.E001"}
    assert check(make_database("bound", options={"server_side_binding": True})) == {"greenpg.E001"}
    assert check(make_database("plain", pool=False)) == set()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
