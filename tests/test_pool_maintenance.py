"""Sizes, pauses, leaks, forks, native threads, and what can be seen of a pool."""

import subprocess
import sys
import textwrap

import pytest
from kit import Task, run_all, wait_until

import greenpg
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


def stats(pool, *names):
    values = pool.get_stats()
    return tuple(values[name] for name in names)


# -- sizes


def test_shrinks_one_connection_per_max_idle(make_pool):
    pool = make_pool(min_size=1, max_size=4, max_idle=0.1)
    conns = [pool.getconn() for _ in range(4)]
    for conn in conns:
        pool.putconn(conn)
    assert stats(pool, "pool_size") == (4,)
    wait_until(lambda: stats(pool, "pool_size") == (1,), 5)
    assert conns[0].closed, "the one that was unused for longest goes first"
    with pool.connection():
        pass


def test_used_connections_are_kept(make_pool):
    pool = make_pool(min_size=1, max_size=2, max_idle=0.05)
    conns = [pool.getconn() for _ in range(2)]
    for conn in conns:
        pool.putconn(conn)
    for _ in range(10):
        with pool.connection(), pool.connection():
            hub().sleep(0.02)
    assert stats(pool, "pool_size") == (2,)


def test_resize(make_pool):
    pool = make_pool(min_size=1, max_size=2)
    pool.wait()
    pool.resize(3, 5)
    wait_until(lambda: stats(pool, "pool_available") == (3,))
    assert (pool.min_size, pool.max_size) == (3, 5)
    lent = [pool.getconn() for _ in range(5)]
    pool.resize(1, 2)
    assert stats(pool, "pool_size") == (5,)
    for conn in lent:
        pool.putconn(conn)
    assert stats(pool, "pool_size", "pool_available") == (2, 2)
    with pytest.raises(ValueError, match="max_size must be at least 1"):
        pool.resize(0, 0)
    pool.resize(4)
    assert pool.max_size == 4


def test_resize_serves_those_who_wait(make_pool):
    pool = make_pool(min_size=1, max_size=1)
    with pool.connection():
        waiting = Task(lambda: pool.putconn(pool.getconn()))
        wait_until(lambda: stats(pool, "requests_waiting") == (1,))
        pool.resize(1, 2)
        waiting.result()


def test_drain(make_pool):
    pool = make_pool(min_size=2, max_size=3)
    pool.wait()
    lent = pool.getconn()
    idle = pool._core.ledger.idle[0].conn
    pool.drain()
    assert idle.closed
    assert not lent.closed
    pool.putconn(lent)
    assert lent.closed
    wait_until(lambda: stats(pool, "pool_available") == (2,))
    with pool.connection() as conn:
        assert conn not in (lent, idle)


def test_drain_replaces_what_is_being_opened(make_pool):
    begun, drained = [], []

    def configure(conn):
        begun.append(conn)
        wait_until(lambda: drained)

    pool = make_pool(min_size=1, configure=configure)
    task = Task(pool.fetchval, "SELECT pg_backend_pid()")
    wait_until(lambda: begun)
    pool.drain()
    drained.append(True)
    task.result()
    assert len(begun) == 2
    assert begun[0].closed


def test_pause_and_resume(make_pool):
    pool = make_pool(min_size=2)
    pool.wait()
    lent = pool.getconn()
    pool.pause()
    assert "paused" in repr(pool)
    tasks = [Task(lambda: pool.putconn(pool.getconn())) for _ in range(4)]
    wait_until(lambda: stats(pool, "requests_waiting") == (4,))
    pool.putconn(lent)
    assert stats(pool, "requests_waiting", "pool_available") == (4, 2)
    with pytest.raises(greenpg.PoolTimeout):
        pool.getconn(timeout=0.02)
    pool.resume()
    for task in tasks:
        task.result()
    assert stats(pool, "pool_available") == (2,)


# -- NullConnectionPool


def test_null_pool(dsn):
    pool = greenpg.NullConnectionPool(dsn)
    pool.wait()
    assert pool.max_size == 0
    assert stats(pool, "pool_min", "pool_max", "pool_size") == (0, 0, 0)
    with pool.connection() as first, pool.connection() as second:
        assert first is not second
        assert stats(pool, "pool_size") == (2,)
    assert first.closed
    assert second.closed
    assert stats(pool, "pool_size", "pool_available") == (0, 0)
    pool.check()
    pool.close()


def test_null_pool_with_a_limit_hands_on_to_those_who_wait(dsn):
    with greenpg.NullConnectionPool(dsn, max_size=2) as pool:
        seen = []

        def work():
            with pool.cursor() as cur:
                cur.execute("SELECT pg_backend_pid(), pg_sleep(0.01)")
                seen.append(cur.fetchone()[0])

        run_all([work] * 10)
        assert len(set(seen)) <= 4
        assert stats(pool, "pool_size") == (0,)
    with pytest.raises(ValueError, match="min_size must be 0"):
        greenpg.NullConnectionPool(dsn, min_size=1)


def test_null_pool_wait_raises_when_the_server_is_away(tmp_path):
    pool = greenpg.NullConnectionPool(f"host={tmp_path}")
    with pytest.raises(greenpg.PoolTimeout, match="No such file"):
        pool.wait(timeout=0.2)
    assert pool.closed


# -- tasks that end without returning what they took


def spawn_native(function):
    """A task of the kind users make, which the hub knows the end of."""
    if hub().name == "gevent":
        import gevent

        return gevent.spawn(function)
    if hub().name == "eventlet":
        import eventlet

        return eventlet.spawn(function)
    import threading

    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_task_that_ends_returns_its_connection(make_pool, caplog):
    pool = make_pool(min_size=1)

    taken = []

    def forget():
        taken.append(True)
        conn = pool.getconn()
        conn.cursor().execute("CREATE TABLE forgotten (n int)")

    pool.wait()
    spawn_native(forget)
    wait_until(lambda: taken)
    with pool.cursor(timeout=5) as cur:
        cur.execute("SELECT to_regclass('forgotten')")
        assert cur.fetchone() == (None,), "rolled back"
    assert "ended without returning the connection that it took in" in caplog.text
    assert f"{__file__}, line " in caplog.text
    assert "(forget); it is taken back" in caplog.text


@pytest.mark.only_hub("gevent")
def test_getconn_as_a_greenlets_own_function(make_pool, caplog):
    """gevent's greenlets are begun in C: the call has no caller in Python."""
    import gevent

    pool = make_pool(min_size=1)
    task = gevent.spawn(pool.getconn)
    task.join()
    assert task.exception is None
    with pool.cursor(timeout=5) as cur:
        cur.execute("SELECT 1")
    assert "that it took in its own call; it is taken back" in caplog.text


def test_task_that_ends_without_using_its_connection(make_pool):
    """Whoever used it before, and not this task, isn't taken for one that goes on with it."""
    pool = make_pool(min_size=1)
    pool.execute("SELECT 1")
    taken = []

    def take():
        pool.getconn()
        taken.append(True)

    spawn_native(take)
    wait_until(lambda: taken)
    with pool.cursor(timeout=5) as cur:
        cur.execute("SELECT 1")


@green_only
def test_task_that_is_killed_returns_its_connection(make_pool, caplog):
    pool = make_pool(min_size=1)
    taken = []

    def hold():
        taken.append(pool.getconn())
        hub().sleep(60)

    task = spawn_native(hold)
    wait_until(lambda: taken)
    task.kill()
    with pool.connection(timeout=5) as conn:
        assert conn is not taken[0] and taken[0].closed  # somebody may have kept it
    assert "ended without returning" in caplog.text


def test_connection_that_another_task_uses_is_not_taken_back(make_pool, caplog):
    pool = make_pool(min_size=1)
    passed_on = []

    def take():
        passed_on.append(pool.getconn())
        wait_until(lambda: done)

    done = []
    task = spawn_native(take)
    wait_until(lambda: passed_on)
    conn = passed_on[0]
    conn.cursor().execute("SELECT 1")
    done.append(True)
    task.join() if hub().name != "eventlet" else task.wait()
    hub().sleep(0.02)
    conn.cursor().execute("SELECT 2")
    conn.rollback()
    pool.putconn(conn)
    assert "ended without returning" not in caplog.text


def test_returning_in_another_task_is_fine(make_pool, caplog):
    pool = make_pool(min_size=1)
    passed_on, returned = [], []
    spawn_native(lambda: passed_on.append(pool.getconn()) or wait_until(lambda: returned))
    wait_until(lambda: passed_on)
    pool.putconn(passed_on[0])
    returned.append(True)
    hub().sleep(0.05)
    assert "ended without returning" not in caplog.text
    assert stats(pool, "pool_available") == (1,)


# -- observability


def test_leak_report(make_pool, caplog):
    pool = make_pool(min_size=1, leak_after=0.05, name="leaky", configure=greenpg.SqlLog())

    def hold_on_to_it():
        with pool.cursor() as cur:
            cur.execute("SELECT 'held'")
            wait_until(lambda: "has held a connection" in caplog.text)

    Task(hold_on_to_it).result()
    assert "pool 'leaky': " in caplog.text
    assert "(leak_after is 0.05)" in caplog.text
    assert "in hold_on_to_it" in caplog.text, "the stack where it was taken"
    assert "last statement: SELECT 'held'" in caplog.text
    assert caplog.text.count("has held a connection") == 1


def test_nested_request_on_an_exhausted_pool_is_reported_at_once(make_pool, caplog):
    pool = make_pool(min_size=1)
    with pool.connection(), pytest.raises(greenpg.PoolTimeout) as caught:
        pool.getconn(timeout=0.05)
    assert "probable deadlock: " in caplog.text
    assert "holds a connection and waits for another one, and all 1 are taken" in caplog.text
    assert (caught.value.size, caught.value.lent, caught.value.waiting) == (1, 1, 0)


def test_other_requests_are_no_deadlock(make_pool, caplog):
    pool = make_pool(min_size=1)
    with pool.connection():
        task = Task(lambda: pool.putconn(pool.getconn()))
        wait_until(lambda: stats(pool, "requests_waiting") == (1,))
    task.result()
    assert "deadlock" not in caplog.text


def test_histograms(make_pool):
    pool = make_pool(min_size=1, histograms=True)
    with pool.connection():
        task = Task(lambda: pool.putconn(pool.getconn()))
        wait_until(lambda: stats(pool, "requests_waiting") == (1,))
        hub().sleep(0.03)
    task.result()
    histograms = pool.get_histograms()
    assert sum(histograms["hold_ms"].values()) == 2
    assert sum(histograms["wait_ms"].values()) in (1, 2)  # the first may have waited for the connection
    assert list(histograms["wait_ms"])[-1] == "inf"
    assert sum(count for bound, count in histograms["hold_ms"].items() if bound == "inf" or float(bound) > 25) >= 1
    with pytest.raises(ValueError, match="make it with histograms=True"):
        make_pool().get_histograms()


# -- forks


@pytest.mark.only_hub("gevent", "threads")
def test_fork(hub_name, dsn):
    """The child gets new connections; the parent's stay untouched, and no Terminate is sent on them."""
    program = """
        import os, sys
        dsn, hub = sys.argv[1:]
        if hub == "gevent":
            from gevent import monkey; monkey.patch_all()
        import greenpg
        greenpg.patch(hub)
        pool = greenpg.ConnectionPool(dsn, min_size=2)
        pool.wait()

        def pids():
            with pool.connection() as first, pool.connection() as second:
                return {first.info.backend_pid, second.info.backend_pid}

        def works():
            with pool.cursor() as cur:
                cur.execute("SELECT 1")
                return cur.fetchone() == (1,)

        parents = pids()
        held = pool.getconn()
        child = os.fork()
        if child == 0:
            del held
            import gc; gc.collect()
            good = works() and not (pids() & parents) and pool.get_stats()["pool_size"] == 2
            pool.close()
            os._exit(0 if good else 1)
        status = os.waitpid(child, 0)[1]
        held.cursor().execute("SELECT 1")
        held.rollback()
        pool.putconn(held)
        print(status, works(), pids() == parents)
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), dsn, hub_name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["0", "True", "True"], done.stderr


# -- native threads


@pytest.mark.only_hub("gevent", "eventlet")
def test_native_threads_and_greenlets_share_a_pool(make_pool):
    """Threads of the hub's own thread pool, which have no event loop, and greenlets: each gets its own results."""
    pool = make_pool(min_size=3)
    numbers = iter(range(100_000))

    def work():
        for _ in range(10):
            number = next(numbers)
            with pool.cursor() as cur:
                cur.execute("SELECT %s, pg_sleep(0.001)", (number,))
                assert cur.fetchone()[0] == number
        return True

    tasks = [Task(hub().run_in_thread, work) for _ in range(5)] + [Task(work) for _ in range(10)]
    assert [task.result() for task in tasks] == [True] * 15
    assert stats(pool, "pool_available", "requests_waiting") == (3, 0)


@pytest.mark.only_hub("gevent")
def test_native_threads_with_hubs_of_their_own(make_pool):
    import gevent

    pool = make_pool(min_size=3)

    def work():
        with pool.cursor() as cur:
            cur.execute("SELECT pg_sleep(0.002), 7")
            assert cur.fetchone()[1] == 7
        return 1

    def thread():
        tasks = [gevent.spawn(work) for _ in range(10)]
        gevent.joinall(tasks, raise_error=True)
        return sum(task.value for task in tasks)

    threads = [Task(hub().run_in_thread, thread) for _ in range(3)]
    own = [Task(work) for _ in range(20)]
    assert [task.result() for task in threads] == [10] * 3
    assert [task.result() for task in own] == [1] * 20
    assert stats(pool, "pool_available", "requests_waiting") == (3, 0)


# -- many waiters


@green_only
def test_ten_thousand_waiters(make_pool):
    """All are served in order; those that give up leave, from anywhere in the line."""
    pool = make_pool(min_size=10, timeout=60)
    pool.wait()
    lent = [pool.getconn() for _ in range(10)]
    order, gave_up = [], []

    def work(n):
        try:
            with pool.connection(timeout=0.5 if n % 10 == 0 else None):
                order.append(n)
        except greenpg.PoolTimeout:
            gave_up.append(n)

    tasks = [Task(work, n) for n in range(10_000)]
    wait_until(lambda: len(gave_up) == 1000, 30)
    assert stats(pool, "requests_waiting") == (9000,)
    for conn in lent:
        pool.putconn(conn)
    for task in tasks:
        task.result()
    assert order == [n for n in range(10_000) if n % 10]


def test_reconnect_with_a_rotated_password(dsn, make_pool):
    asked = []

    def conninfo():
        asked.append(1)
        if len(asked) == 2:
            raise ValueError("the vault is closed")
        return dsn

    pool = make_pool(conninfo, min_size=1)
    with pool.connection() as conn:
        pass
    with pool.connection() as conn:
        conn.close()
    with pool.connection(timeout=5):
        pass
    assert len(asked) == 3
    assert stats(pool, "connections_errors") == (1,)
