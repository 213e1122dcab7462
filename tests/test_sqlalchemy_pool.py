"""`GreenpgPool`: SQLAlchemy's pool interface, kept; and what greenpg's pool adds."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import weakref

import psycopg2
import pytest
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

import greenpg
from greenpg.errors import PatchError
from greenpg.hubs import hub
from greenpg.integrations.sqlalchemy import GreenpgPool, keep_connections

green = pytest.mark.only_hub("gevent", "eventlet")


def pid_of(conn):
    return conn.execute(text("SELECT pg_backend_pid()")).scalar()


def use(engine):
    with engine.begin() as conn:
        conn.execute(text("SELECT 1"))


def terminate(admin, *pids):
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) AS pid", (list(pids),))


# -- sizes and waiting


def test_sizes(make_engine):
    engine = make_engine(pool_size=2, max_overflow=1, pool_timeout=0.05)
    conns = [engine.connect() for _ in range(3)]
    assert engine.pool.status() == (
        "Pool size: 2  Connections in pool: 0 Current Overflow: 1 Current Checked out connections: 3 Waiting: 0"
    )
    with pytest.raises(exc.TimeoutError, match="size 2 overflow 1 reached, connection timed out: .*3 lent") as caught:
        engine.connect()
    assert caught.value.code == "3o7r"
    assert isinstance(caught.value.__cause__, greenpg.PoolTimeout)
    for conn in conns:
        conn.close()
    assert (engine.pool.size(), engine.pool.checkedin(), engine.pool.checkedout()) == (2, 3, 0)
    assert engine.pool.stats()["requests_errors"] == 1


@pytest.mark.parametrize("sizes", [{"pool_size": 0}, {"pool_size": 1, "max_overflow": -1}])
def test_no_limit(make_engine, sizes):
    engine = make_engine(**sizes)
    conns = [engine.connect() for _ in range(20)]
    assert engine.pool.checkedout() == 20
    for conn in conns:
        conn.close()


def test_overflow_goes_when_unused(make_engine):
    engine = make_engine(pool_size=1, max_overflow=3)
    pool = engine.pool.greenpg_pool
    pool.max_idle = 0.05
    conns = [engine.connect() for _ in range(4)]
    for conn in conns:
        conn.close()
    wait_until(lambda: engine.pool.checkedin() == 1, timeout=40)
    hub().sleep(0.2)
    assert engine.pool.checkedin() == 1


def test_timeout_of_zero_opens_but_does_not_wait(make_engine):
    engine = make_engine(pool_size=1, pool_timeout=0)
    with engine.connect():
        with pytest.raises(exc.TimeoutError):
            engine.connect()
    engine.connect().close()


def test_lifo_is_refused(dsn):
    with pytest.raises(exc.ArgumentError, match="pool_use_lifo can't be had"):
        create_engine("postgresql+greenpg://", pool_use_lifo=True)


def test_max_waiting(make_engine):
    engine = make_engine(pool_size=1, max_waiting=1, pool_timeout=20)
    with engine.connect():
        waiter = Task(use, engine)
        wait_until(lambda: engine.pool.greenpg_pool.get_stats()["requests_waiting"] == 1)
        with pytest.raises(exc.OperationalError, match="max_waiting"):
            engine.connect()
    waiter.result()


def test_first_come_first_served(make_engine):
    engine = make_engine(pool_size=1)
    order = []

    def wait(number):
        with engine.connect():
            order.append(number)

    with engine.connect():
        tasks = []
        for number in range(10):
            tasks.append(Task(wait, number))
            wait_until(lambda expected=number + 1: len(engine.pool._core.ledger.line) == expected)
    for task in tasks:
        task.result()
    assert order == list(range(10))


@green
def test_a_waiter_killed_at_the_hand_over_takes_nothing_along(make_engine):
    engine = make_engine(pool_size=1, pool_timeout=20)
    conn = engine.connect()
    first = Task(use, engine)
    wait_until(lambda: engine.pool._core.ledger.line)
    second = Task(use, engine)
    wait_until(lambda: len(engine.pool._core.ledger.line) == 2)
    began = hub().now()
    first.throw(Killed())
    conn.close()
    second.result()
    assert hub().now() - began < 5


@green
def test_five_greedy_tasks_do_not_starve_others(make_engine):
    engine = make_engine(pool_size=5)
    turns, ends_at = [], hub().now() + 1.5

    def loop():
        count = 0
        while hub().now() < ends_at:
            use(engine)
            count += 1
        turns.append(count)

    run_all([loop] * 50)
    assert min(turns) >= 0.7 * max(turns) > 1


# -- events


def test_events(make_engine):
    engine = make_engine(pool_size=1)
    seen = []
    for name in ("connect", "first_connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate", "close",
                 "detach", "close_detached"):  # fmt: skip
        event.listen(engine.pool, name, lambda *args, name=name: seen.append(name))

    def seen_now():
        names = [*seen]
        seen.clear()
        return names

    use(engine)
    assert seen_now() == ["first_connect", "connect", "checkout", "reset", "checkin"]
    conn = engine.connect()
    conn.connection.invalidate(soft=True)
    conn.close()
    assert seen_now() == ["checkout", "soft_invalidate", "reset", "checkin"]
    conn = engine.connect()
    assert seen_now() == ["close", "connect", "checkout"]
    conn.invalidate()
    conn.close()
    assert seen_now() == ["invalidate", "close", "checkin"]
    conn = engine.connect()
    conn.detach()
    conn.close()
    assert [name for name in seen_now() if name != "reset"] == ["connect", "checkout", "detach", "close_detached"]
    use(engine)
    seen.clear()
    engine.dispose()
    assert seen_now() == ["close"]


def test_an_event_handler_that_raises_costs_no_slot(make_engine):
    engine = make_engine(pool_size=1, pool_timeout=1)
    for name in ("checkin", "reset", "checkout"):

        def fail(*args, name=name):
            raise ZeroDivisionError(name)

        event.listen(engine.pool, name, fail)
        for _ in range(3):
            try:
                use(engine)
            except ZeroDivisionError:
                pass
        event.remove(engine.pool, name, fail)
        use(engine)


def test_info(engine):
    with engine.connect() as conn:
        conn.info["of the connection"] = 1
    with engine.connect() as conn:
        assert conn.info == {"of the connection": 1}
        conn.invalidate()
        conn.rollback()
        assert conn.info == {}


def test_do_connect_and_creator(dsn):
    engine = create_engine("postgresql+greenpg://", pool_size=1)
    event.listen(engine, "do_connect", lambda dialect, record, args, params: args.__setitem__(0, dsn))
    use(engine)
    engine.dispose()
    engine = create_engine("postgresql+greenpg://", creator=lambda: psycopg2.connect(dsn))
    use(engine)
    engine.dispose()


def test_creator_of_something_else(dsn):
    engine = create_engine("postgresql+greenpg://", creator=lambda: psycopg2.extensions.connection(dsn))
    with pytest.raises(TypeError, match=r"let the creator call greenpg.connect\(\)"):
        engine.connect()
    with greenpg.ConnectionPool(dsn, min_size=1) as pool:
        engine = create_engine("postgresql+greenpg://", creator=pool.getconn)
        with pytest.raises(TypeError, match="give it to create_engine as connection_pool"):
            engine.connect()
        pool.close()


def test_failing_connect_goes_to_who_asked(dsn):
    """Each request gets the error of its own attempt; none waits for the timeout."""
    errors = [ZeroDivisionError("first"), psycopg2.OperationalError("second")]

    def create():
        if errors:
            raise errors.pop(0)
        return psycopg2.connect(dsn)

    engine = create_engine("postgresql+greenpg://", creator=create, pool_timeout=30, pool_size=1, max_overflow=0)
    tasks = [Task(use, engine) for _ in range(3)]
    for task in tasks:
        task.join(10)
    assert [type(task.error) for task in tasks] == [ZeroDivisionError, exc.OperationalError, type(None)]
    engine.dispose()


# -- invalidation, recycling, disconnects


def test_recycle(make_engine, opened):
    engine = make_engine(pool_size=1, pool_recycle=0)
    pids = []
    for _ in range(3):
        with engine.connect() as conn:
            pids.append(pid_of(conn))
    assert len(set(pids)) == 3


def test_invalidated_in_the_middle(engine):
    with engine.connect() as conn:
        pid = pid_of(conn)
        conn.invalidate()
        with pytest.raises(exc.PendingRollbackError):
            conn.execute(text("SELECT 1"))
        conn.rollback()
        assert pid_of(conn) != pid
    assert engine.pool.checkedin() == 1


@pytest.mark.parametrize("options", [{}, {"pool_pre_ping": True}])
def test_dead_connections_are_not_lent(make_engine, admin, options):
    engine = make_engine(pool_size=3, **options)
    conns = [engine.connect() for _ in range(3)]
    pids = [pid_of(conn) for conn in conns]
    for conn in conns:
        conn.close()
    terminate(admin, *pids)
    hub().sleep(0.01)
    for _ in range(4):
        with engine.connect() as conn:
            assert pid_of(conn) not in pids


def test_one_lost_connection_makes_the_others_suspect(make_engine, admin):
    engine = make_engine(pool_size=3)
    conns = [engine.connect() for _ in range(3)]
    pids = [pid_of(conn) for conn in conns]
    conns[0].close()
    conns[1].close()
    terminate(admin, pids[2])
    with pytest.raises(exc.OperationalError) as caught:
        conns[2].execute(text("SELECT 1"))
    assert caught.value.connection_invalidated
    conns[2].close()
    slots = list(engine.pool._core.ledger.idle)
    assert [slot.is_suspect for slot in slots] == [True, True]
    for _ in range(2):
        with engine.connect() as conn:
            assert pid_of(conn) in pids[:2], "a connection that works was thrown away"


@pytest.mark.parametrize("code", ["25006", "57P03"])
def test_errors_that_evict(make_engine, code):
    engine = make_engine(pool_size=1)
    with engine.connect() as conn:
        pid = pid_of(conn)
        with pytest.raises(exc.DBAPIError):
            conn.execute(text(f"DO $$ BEGIN RAISE 'failing over' USING ERRCODE = '{code}'; END $$"))
    with engine.connect() as conn:
        assert pid_of(conn) != pid


def test_handler_that_invalidates_the_pool(make_engine):
    engine = make_engine(pool_size=2)
    with engine.connect() as one, engine.connect() as two:
        pids = {pid_of(one), pid_of(two)}

    @event.listens_for(engine, "checkout", once=True)
    def refuse(conn, record, fairy):
        raise exc.InvalidatePoolError()

    with engine.connect() as one, engine.connect() as two:
        assert not pids & {pid_of(one), pid_of(two)}


# -- dispose, detach


def test_dispose_closes_what_is_out_when_it_comes_back(engine, admin):
    conn, old_pool = engine.connect(), engine.pool
    pid = pid_of(conn)
    engine.dispose()
    assert engine.pool is not old_pool
    assert pid_of(conn) == pid
    conn.close()
    use(engine)
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))
        assert cur.fetchone() == (0,)
    with contextlib.closing(old_pool.connect()) as fairy, fairy.cursor() as cur:
        cur.execute("SELECT 1")
    old_pool.dispose()


def test_detach_frees_the_place(make_engine):
    engine = make_engine(pool_size=1, pool_timeout=2)
    conn = engine.connect()
    conn.detach()
    use(engine)
    assert conn.execute(text("SELECT 1")).scalar() == 1
    conn.close()
    assert engine.pool.checkedin() == 1


# -- what is left checked out


def test_garbage_is_returned(make_engine):
    engine = make_engine(pool_size=1, pool_timeout=10)
    for _ in range(3):
        conn = engine.connect()
        pid = pid_of(conn)
        del conn
        gc.collect()
        with engine.connect() as conn:
            assert pid_of(conn) == pid


@pytest.mark.only_hub("gevent")
def test_garbage_collected_in_the_hub(make_engine, caplog):
    import gevent

    engine = make_engine(pool_size=2)
    pids = set()

    class Circle:
        pass

    def forget_one():
        conn = engine.connect()
        pids.add(pid_of(conn))
        circle = Circle()
        circle.self, circle.conn = circle, conn

    use(engine)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            Task(forget_one).join()
            gevent.get_hub().loop.run_callback(gc.collect)
            wait_until(lambda: not engine.pool.checkedout())
    finally:
        gc.enable()
    assert len(pids) == 1
    assert not caplog.records


@green
def test_killed_task_that_closes_nothing(make_engine):
    """Killed in a statement, or elsewhere: its connection comes back all the same."""
    engine = make_engine(pool_size=2, pool_timeout=5)

    def sloppy(in_statement):
        conn = engine.connect()
        conn.execute(text("SELECT 1"))
        if in_statement:
            conn.execute(text("SELECT pg_sleep(10)"))
        hub().sleep(10)

    for in_statement in (True, False):
        task = Task(sloppy, in_statement)
        hub().sleep(0.1)
        native = weakref.ref(task.native)
        task.throw(Killed())
        task.join()
        del task
        gc.collect()
        wait_until(lambda: not engine.pool.checkedout())
        assert native() is None, "the pool keeps a task alive"
    use(engine)


@green
def test_session_outlives_the_task_that_began_it(make_engine):
    engine = make_engine(pool_size=1)
    session = Session(engine)
    Task(session.execute, text("CREATE TEMP TABLE t AS SELECT 1 AS a")).result()
    hub().sleep(0.05)
    assert session.execute(text("SELECT a FROM t")).scalar() == 1
    session.close()


@pytest.mark.only_hub("gevent")  # the end of eventlet's spawn_n() can't be known
def test_session_used_on_after_the_task_was_killed(make_engine):
    """Who else has the Session of a task that was killed finds it invalidated, not with another's connection."""
    engine = make_engine(pool_size=1)
    session = Session(engine)
    task = Task(session.execute, text("SELECT pg_sleep(10)"))
    hub().sleep(0.1)
    task.throw(Killed())
    task.join()
    wait_until(lambda: engine.pool.checkedin() == 1)
    with pytest.raises(exc.PendingRollbackError):
        session.execute(text("SELECT 1"))
    session.rollback()
    assert session.execute(text("SELECT 1")).scalar() == 1
    session.close()


# -- shared with greenpg


def test_shared_pool(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=1)
    engine = create_engine("postgresql+greenpg://", connection_pool=pool)
    assert engine.pool.greenpg_pool is pool
    pid = pool.fetchval("SELECT pg_backend_pid()")
    for _ in range(2):
        with engine.connect() as conn:
            assert pid_of(conn) == pid
            with pytest.raises(greenpg.PoolTimeout):
                pool.getconn(timeout=0.05)
    with pool.connection(), pytest.raises(exc.TimeoutError):
        engine.connect()
    with engine.connect() as conn:
        conn.invalidate()
        conn.rollback()
        assert pid_of(conn) != pid
    assert pool.fetchval("SELECT 1") == 1
    engine.dispose()
    with engine.connect() as conn:
        assert pid_of(conn) != pid


def test_shared_pool_has_its_own_sizes(make_pool):
    with pytest.raises(exc.ArgumentError, match="connection_pool's own"):
        create_engine("postgresql+greenpg://", connection_pool=make_pool(min_size=0, max_size=1), pool_size=5)


def test_shared_pool_with_close_returns(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=1, close_returns=True)
    engine = create_engine("postgresql+greenpg://", connection_pool=pool)
    with engine.connect() as conn:
        pid = pid_of(conn)
        conn.invalidate()
    with engine.connect() as conn:
        assert pid_of(conn) != pid


def test_shared_pool_and_an_engine_with_settings_of_its_own(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=1)
    engine = create_engine("postgresql+greenpg://", connection_pool=pool, isolation_level="AUTOCOMMIT")
    for _ in range(2):
        with engine.connect() as conn:
            assert conn.connection.dbapi_connection.autocommit is True
            conn.invalidate()
            conn.rollback()
            assert conn.connection.dbapi_connection.autocommit is True
        with pool.connection() as conn:
            assert conn.autocommit is False


def test_two_engines_share_a_pool(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=1)
    connects = []
    engines = [create_engine("postgresql+greenpg://", connection_pool=pool) for _ in range(2)]
    for engine in engines:
        event.listen(engine, "connect", lambda *args: connects.append(1))
    for engine in engines * 3:
        use(engine)
    assert len(connects) == 2


def test_engines_own_pool_directly(engine):
    use(engine)
    pool = engine.pool.greenpg_pool
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
    assert pool.fetchval("SELECT 2") == 2
    with pytest.raises(greenpg.WaitTimeout, match=r"use greenpg\.Listener"):
        pool.listen("channel", timeout=1).__enter__()


def test_poolclass_with_psycopg2s_dialect(dsn):
    engine = create_engine(
        "postgresql+psycopg2://", connect_args=extensions.parse_dsn(dsn), poolclass=GreenpgPool, pool_size=1
    )
    for _ in range(3):
        use(engine)
    assert engine.pool.stats()["connections_num"] == 1
    engine.dispose()


@pytest.mark.only_hub("gevent")
@pytest.mark.parametrize("poolclass", [NullPool, QueuePool])
def test_sqlalchemys_pools_with_this_dialect(dsn, poolclass):
    import gevent

    engine = create_engine("postgresql+greenpg://", connect_args=extensions.parse_dsn(dsn), poolclass=poolclass)
    with engine.connect() as conn:
        pid = pid_of(conn)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            conn.execute(text("SELECT pg_sleep(10)"))
        conn.rollback()
        assert pid_of(conn) == pid
    engine.dispose()


@green
@pytest.mark.parametrize("poolclass", [NullPool, QueuePool])
def test_psycopg2s_dialect_keeps_connections_if_asked(dsn, poolclass):
    """The kill comes out, the connection is used on; one that is lost goes as ever."""
    engine = create_engine("postgresql+psycopg2://", connect_args=extensions.parse_dsn(dsn), poolclass=poolclass)
    keep_connections(engine)
    keep_connections(engine)  # harmless

    def interrupted():
        with engine.connect() as conn:
            pid = pid_of(conn)
            with pytest.raises(Killed):
                conn.execute(text("SELECT pg_sleep(10)"))
            conn.rollback()
            assert pid_of(conn) == pid
            with pytest.raises(exc.DBAPIError) as caught:
                conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
            assert caught.value.connection_invalidated

    task = Task(interrupted)
    wait_until(lambda: task.native is not None)
    hub().sleep(0.1)
    task.throw(Killed())
    task.result()
    use(engine)
    engine.dispose()


@pytest.mark.parametrize("is_kept", [False, True])
def test_creator_getconn(dsn, make_pool, is_kept):
    """As with psycopg_pool. What SQLAlchemy invalidates it only closes, so the pool has to be told that it isn't to be
    lent again."""
    pool = make_pool(min_size=1, max_size=1, timeout=2, close_returns=True)
    engine = create_engine("postgresql+psycopg2://", creator=pool.getconn, poolclass=NullPool)
    if is_kept:
        keep_connections(engine)
    pids = []
    for _ in range(3):
        with engine.connect() as conn:
            pids.append(pid_of(conn))
            conn.invalidate()
    assert len(set(pids)) == (3 if is_kept else 1)
    for _ in range(3):
        use(engine)
    assert pool.get_stats()["connections_num"] == (4 if is_kept else 1)


@pytest.mark.only_hub("gevent")
def test_fork(make_engine):
    engine = make_engine(pool_size=2)
    conn = engine.connect()
    pid = pid_of(conn)
    use(engine)
    child = os.fork()
    if not child:
        status = 1
        try:
            with engine.connect() as own:
                if pid_of(own) != pid and engine.pool.checkedout() == 1:
                    status = 0
            del conn
            gc.collect()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert pid_of(conn) == pid
    conn.close()
    assert engine.pool.checkedin() == 2


def test_reset_on_return(make_engine, caplog):
    engine = make_engine(pool_reset_on_return="commit", pool_size=1)
    with engine.connect() as conn:
        conn.connection.cursor().execute("CREATE TEMP TABLE t (a int)")
    fairy = engine.raw_connection()
    fairy.cursor().execute("CREATE TABLE pg_temp.u (a int)")
    fairy.close()
    fairy = engine.raw_connection()
    fairy.cursor().execute("SELECT * FROM u")
    fairy.close()
    engine = make_engine(pool_reset_on_return=None, pool_size=1)
    fairy = engine.raw_connection()
    fairy.cursor().execute("CREATE TEMP TABLE v (a int)")
    with caplog.at_level(logging.WARNING, "greenpg.pool"):
        fairy.close()
    assert "rolling back returned connection" in caplog.text  # a pool of greenpg's lends nothing with a transaction


@pytest.mark.only_hub("gevent")
def test_patch_is_missing(dsn):
    greenpg.unpatch()
    try:
        engine = create_engine("postgresql+greenpg://", connect_args=extensions.parse_dsn(dsn))
        with pytest.raises(PatchError, match=r"call greenpg\.patch\(\) at startup"):
            engine.connect()
    finally:
        greenpg.patch("gevent")
