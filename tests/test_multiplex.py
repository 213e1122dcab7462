"""`ConnectionPool(multiplex=)`: single statements of many tasks on a few connections; whose is what."""

import random
import time

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from kit import Killed, Task, run_all, statements_running, wait_until
from psycopg2 import extensions, sql

import greenpg
from greenpg.errors import DeadlineExceeded, commit_outcome
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
SLOW = "SELECT count(*) FROM generate_series(1, 500000000)"  # pg_sleep() isn't shared


@pytest.fixture
def pool(make_pool, dsn):
    return ready(make_pool(extensions.make_dsn(dsn, application_name="tested"), min_size=4, multiplex=2))


def ready(pool):
    """Its lines are open: the first statement of each opens one, and goes the ordinary way."""
    pool.wait()
    for _ in range(200):
        pool.fetchval("SELECT 1")
        if pool.get_stats()["statements_multiplexed"]:
            return pool
        hub().sleep(0.005)
    raise AssertionError("no statement is shared")


def shared(pool):
    return pool.get_stats()["statements_multiplexed"]


@pytest.fixture
def table(admin):
    admin.execute("CREATE TABLE muxed (id int UNIQUE, name text)")
    yield
    admin.execute("DROP TABLE muxed")


def test_results(pool, table):
    before = shared(pool)
    assert pool.execute("INSERT INTO muxed SELECT n, 'é;' || n FROM generate_series(1, 9) AS n") == 9
    assert pool.fetchone("SELECT id, name, NULL, 1.5 FROM muxed WHERE id = %s", (3,))[:3] == (3, "é;3", None)
    assert pool.fetchone("SELECT id FROM muxed WHERE id = %(id)s", {"id": 77}) is None
    assert pool.fetchall("SELECT id FROM muxed WHERE id < %s ORDER BY id", (4,)) == [(1,), (2,), (3,)]
    assert pool.fetchval("SELECT count(*) FROM muxed") == 9
    assert pool.fetchval("SELECT '%'") == "%"
    assert pool.execute("UPDATE muxed SET name = 'x' WHERE id > %s;", (5,)) == 4
    assert shared(pool) - before == 7
    with pytest.raises(psycopg2.ProgrammingError, match="no results") as caught:
        pool.fetchone("UPDATE muxed SET name = 'y'")
    assert commit_outcome(caught.value) == "committed"
    assert pool.fetchval("SELECT count(*) FROM muxed WHERE name = 'y'") == 9


def test_errors_are_their_own(pool, table):
    def good(n):
        return pool.fetchval("SELECT %s + 1", (n,))

    def bad(n):
        with pytest.raises(psycopg2.errors.DivisionByZero) as caught:
            pool.fetchval("SELECT %s / 0", (n,))
        assert commit_outcome(caught.value) == "rolled back"
        return n + 1

    before = shared(pool)
    found = run_all([lambda n=n: (bad if n % 3 == 0 else good)(n) for n in range(60)])
    assert found == list(range(1, 61)) and shared(pool) > before
    with pytest.raises(psycopg2.errors.SyntaxError) as caught:
        pool.execute("SELECT nonsense nonsense nonsense")
    assert caught.value.diag.statement_position is not None
    with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
        pool.fetchone("SELECT %s", (object(),))
    with pytest.raises(IndexError):
        pool.fetchone("SELECT %s, %s", (1,))


def test_each_is_a_transaction(pool, table):
    run_all(
        [lambda n=n: pool.execute("INSERT INTO muxed VALUES (%s, pg_current_xact_id()::text)", (n,)) for n in range(40)]
    )
    assert pool.fetchval("SELECT count(DISTINCT name) FROM muxed") == 40


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("SET work_mem TO 4096", None),
        ("LISTEN something", None),
        ("SELECT set_config('work_mem', '4096', false)", None),
        ("SELECT pg_advisory_lock(22)", None),
        ("SELECT pg_sleep(0)", None),
        ("CREATE TEMP TABLE IF NOT EXISTS nothing ()", None),
        ("SELECT 1; SELECT 2", None),
        ("SELECT %s", (extensions.AsIs("1; SELECT 2"),)),
        ("BEGIN", None),
        (sql.SQL("SELECT 1"), None),
    ],
)
def test_what_goes_elsewhere(pool, query, arguments):
    before = shared(pool)
    pool.execute(query, arguments)
    assert shared(pool) == before
    pool.execute("SELECT 1")


def test_other_cursors_and_large_results(pool):
    before = shared(pool)
    row = pool.fetchone("SELECT 1 AS one", cursor_factory=psycopg2.extras.RealDictCursor)
    assert row == {"one": 1} and shared(pool) == before
    query = "SELECT n FROM generate_series(1, 5000) AS n"
    for _ in range(3):
        assert len(pool.fetchall(query)) == 5000
    assert shared(pool) == before + 1  # the others knew


@pytest.mark.usual_times
def test_nothing_is_queued_behind_a_slow_statement(pool, admin):
    slow = Task(lambda: pool.fetchval(SLOW))
    wait_until(lambda: statements_running(admin))
    hub().sleep(0.05)
    for _ in range(20):
        assert pool.fetchval("SELECT 5") == 5
    assert slow.error is None and statements_running(admin)
    admin.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query = %s", (SLOW,))
    with pytest.raises(psycopg2.errors.QueryCanceled):
        slow.result()


@green_only
def test_a_kill_leaves_the_others_alone(pool, table, admin):
    def work(n):
        return pool.fetchval("INSERT INTO muxed VALUES (%s) RETURNING id", (n,))

    tasks = [Task(work, n) for n in range(100)]
    killed = tasks[::7]
    hub().sleep(0)
    for task in killed:
        task.throw(Killed())
    for task in tasks:
        task.join()
    rest = [task for task in tasks if task.error is None]
    assert [task.value for task in rest] == [n for n, task in enumerate(tasks) if task.error is None]
    assert all(isinstance(task.error, Killed) for task in tasks if task.error is not None)
    there = {row[0] for row in pool.fetchall("SELECT id FROM muxed")}
    assert there >= {task.value for task in rest}
    for n, task in enumerate(tasks):
        outcome = task.error and commit_outcome(task.error)
        assert not (outcome == "committed" and n not in there)
        assert not (outcome == "rolled back" and n in there)


@green_only
@pytest.mark.usual_times
def test_a_statement_that_nobody_waits_for_is_cancelled(pool, admin):
    tasks = [Task(lambda: pool.fetchval(SLOW)) for _ in range(2)]
    wait_until(lambda: statements_running(admin))
    hub().sleep(0.05)
    started = time.monotonic()
    for task in tasks:
        task.throw(Killed())
    for task in tasks:
        task.join(10)
        assert isinstance(task.error, Killed) and commit_outcome(task.error) in ("unknown", "rolled back")
    assert time.monotonic() - started < 10  # not as long as the statement would take
    wait_until(lambda: not statements_running(admin))
    ready(pool)


@pytest.mark.usual_times
def test_deadline(make_pool, dsn, admin):
    pool = make_pool(
        extensions.make_dsn(dsn, application_name="tested"), min_size=3, multiplex=1, statement_deadline=0.2
    )
    ready(pool)
    with pytest.raises(DeadlineExceeded):
        pool.fetchval(SLOW)
    wait_until(lambda: not statements_running(admin))
    assert ready(pool).fetchval("SELECT 2") == 2


def test_lost_connection(pool, admin):
    task = Task(lambda: pool.fetchval(SLOW))
    wait_until(lambda: statements_running(admin))
    admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tested' AND state = 'active'"
    )
    with pytest.raises(psycopg2.OperationalError) as caught:
        task.result()
    assert commit_outcome(caught.value) in ("unknown", "rolled back")
    assert ready(pool).fetchval("SELECT 3") == 3


@pytest.mark.usual_times
def test_connections_come_back(pool):
    before = shared(pool)
    for _ in range(3):
        assert run_all([lambda: pool.fetchval("SELECT 1") for _ in range(20)]) == [1] * 20
    assert shared(pool) > before
    wait_until(lambda: pool.get_stats()["pool_available"] == 4)  # nothing to do: they're everybody's
    with pool.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    ready(pool)
    pool.drain()
    assert pool.fetchval("SELECT 1") == 1
    wait_until(lambda: pool.get_stats()["pool_available"] == 4)


def test_with_everything_else(pool, table):
    """Transactions of others go on beside, all connections are used."""
    rng = random.Random(3)

    def work(n):
        kind = rng.randrange(3)
        if kind == 0:
            return pool.execute("INSERT INTO muxed VALUES (%s)", (n,))
        if kind == 1:
            with pool.cursor() as cur:
                cur.execute("INSERT INTO muxed VALUES (%s)", (n,))
                return cur.rowcount
        with pool.pipeline() as p:
            cur = p.execute("INSERT INTO muxed VALUES (%s)", (n,))
        return cur.rowcount

    assert sum(run_all([lambda n=n: work(n) for n in range(150)])) == 150
    assert pool.fetchval("SELECT count(*) FROM muxed") == 150


def test_settings_that_it_respects(make_pool):
    """One-shots that are more than a statement aren't shared."""
    pool = make_pool(min_size=3, multiplex=1, configure=lambda conn: conn.set_session(readonly=True))
    for _ in range(5):
        assert pool.fetchval("SHOW transaction_read_only") == "on"
        assert pool.fetchval("SELECT current_setting('transaction_read_only')") == "on"
        hub().sleep(0.005)
    assert shared(pool) == 0
    events = []
    traced = make_pool(min_size=3, multiplex=1, on_event=events.append)
    for _ in range(5):
        traced.fetchval("SELECT 1")
        hub().sleep(0.005)
    assert shared(traced) == 0 and sum(event.name == "query" for event in events) == 5


@pytest.mark.parametrize(
    "options", [{"multiplex": 2, "max_size": 2}, {"multiplex": -1}, {"multiplex": 1, "reset": "session"}]
)
def test_wrong_options(options, dsn):
    with pytest.raises(ValueError, match="multiplex"):
        greenpg.ConnectionPool(dsn, min_size=2, **options)


def test_closed(make_pool, dsn):
    pool = ready(make_pool(dsn, min_size=3, multiplex=2))
    tasks = [Task(lambda: pool.fetchval("SELECT count(*) FROM generate_series(1, 100000)")) for _ in range(10)]
    hub().sleep(0.002)
    pool.close()
    for task in tasks:
        task.join()
        assert task.value == 100000 or isinstance(task.error, greenpg.PoolClosed)
    with pytest.raises(greenpg.PoolClosed):
        pool.fetchval("SELECT 1")
