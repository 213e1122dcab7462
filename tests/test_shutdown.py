"""`greenpg.shutdown()`, and what the interpreter's exit leaves at the server."""

import signal
import subprocess
import sys
import textwrap
import time

import psycopg2
import pytest
from kit import Task, is_waiting, wait_until

import greenpg
from greenpg.connection.forking import all_open


def sleepers(admin, name):
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state = 'active'", (name,))
        return cur.fetchone()[0]


def test_shutdown_cancels_what_runs_and_closes_pools(dsn, admin):
    pool = greenpg.ConnectionPool(dsn, min_size=3, max_size=3, kwargs={"application_name": "shut"})
    conn = greenpg.connect(dsn, application_name="shut")
    tasks = [Task(pool.fetchval, "SELECT pg_sleep(60)") for _ in range(3)]
    tasks.append(Task(conn.execute, "SELECT pg_sleep(60)"))
    wait_until(lambda: sleepers(admin, "shut") == 4)
    waiting = Task(pool.fetchval, "SELECT 1")
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    greenpg.shutdown()
    for task in tasks:
        task.join(1)
        assert isinstance(task.error, psycopg2.errors.QueryCanceled)
    waiting.join(1)
    assert isinstance(waiting.error, greenpg.PoolClosed)
    assert pool.closed
    assert sleepers(admin, "shut") == 0
    assert not conn.closed
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.close()
    greenpg.shutdown()  # again is harmless
    with pytest.raises(ValueError, match="negative"):
        greenpg.shutdown(-1)


def test_a_commit_is_not_cancelled(dsn, admin):
    conn = greenpg.connect(dsn, application_name="committing")
    conn.execute(
        """
        CREATE TEMP TABLE slow (id int);
        CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON slow INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()
        """
    )
    conn.commit()
    conn.execute("INSERT INTO slow VALUES (1)")
    committing = Task(conn.commit)
    wait_until(lambda: is_waiting(conn))
    greenpg.shutdown()
    committing.result()
    assert conn.execute("SELECT count(*) FROM slow").fetchone() == (1,)
    conn.close()


def test_shutdown_ends_in_time_though_the_server_is_silent(through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    task = Task(conn.execute, "SELECT pg_sleep(60)")
    wait_until(lambda: is_waiting(conn))
    proxy.stall()
    started = time.monotonic()
    greenpg.shutdown(0.5)
    assert time.monotonic() - started < 5
    proxy.cut()
    task.join()
    assert isinstance(task.error, psycopg2.OperationalError)
    conn.close()


def test_a_connection_that_is_forgotten_is_not_kept(dsn):
    conn = greenpg.connect(dsn)
    assert conn in all_open()
    count = len(all_open())
    del conn
    assert len(all_open()) == count - 1


PROGRAM = """
    {monkey}
    import signal, sys, threading, time
    import greenpg
    greenpg.patch({hub!r})
    conns = [greenpg.connect(sys.argv[1], application_name=sys.argv[2]) for _ in range(3)]
    threads = [threading.Thread(target=conn.execute, args=("SELECT pg_sleep(30)",), daemon=True) for conn in conns]
    for thread in threads: thread.start()
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
    print("ready", flush=True)
    while True: time.sleep(0.05)
"""


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize(
    ("hub", "monkey"),
    [
        ("gevent", "from gevent import monkey; monkey.patch_all()"),
        ("eventlet", "import eventlet; eventlet.monkey_patch()"),
        ("threads", ""),
    ],
)
def test_sigterm_leaves_no_statement_behind(dsn, admin, hub, monkey):
    name = f"ends-{hub}"
    # Without the server's own look at its client, so that nothing but the exit can have ended them.
    program = textwrap.dedent(PROGRAM.format(monkey=monkey, hub=hub))
    quiet = psycopg2.extensions.make_dsn(dsn, options="-c client_connection_check_interval=0")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, quiet, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        wait_until(lambda: sleepers(admin, name) == 3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == 0
        wait_until(lambda: sleepers(admin, name) == 0, 3)
    finally:
        process.kill()
        process.communicate()
