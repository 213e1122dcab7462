"""Two greenlets on one connection: whatever they call, the process goes on. Each test is a program under a watchdog,
because a process that is frozen can't fail its own test.
"""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.only_hub("threads")

PATCHING = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


def run_watched(hub, program, *arguments, timeout=60):
    code = f"{PATCHING[hub]}\nimport sys; sys.path.insert(0, 'tests')\n" + textwrap.dedent(program)
    try:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.fail("the process is frozen")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("hub", PATCHING)
@pytest.mark.parametrize("call", ["commit", "rollback", "close", "reset"])
def test_the_four_calls_that_freeze_psycopg2(dsn, hub, call):
    printed = run_watched(
        hub,
        """
        import sys, time, psycopg2, greenpg
        greenpg.patch()
        from kit import is_waiting, Task, wait_until
        dsn, call = sys.argv[1:]
        conn = greenpg.connect(dsn)
        task = Task(conn.cursor().execute, "SELECT pg_sleep(0.5)")
        wait_until(lambda: is_waiting(conn))
        try:
            getattr(conn, call)()
        except psycopg2.Error as error:
            print(type(error).__name__)
        task.join()
        print("error" if task.error else "fine")
        """,
        dsn,
        call,
    )
    assert printed.split() == (["error"] if call == "close" else ["ConnectionInUse", "fine"])


@pytest.mark.parametrize("hub", PATCHING)
@pytest.mark.parametrize("seed", range(3))
def test_random_calls_of_three_greenlets(dsn, hub, seed):
    """Statements, transactions, closes, kills in any order; the connection is replaced when it's closed."""
    printed = run_watched(
        hub,
        """
        import random, sys, time, psycopg2, greenpg
        greenpg.patch()
        from greenpg.hubs import hub
        from kit import Task
        dsn, seed = sys.argv[1:]
        rng = random.Random(seed)

        class Killed(BaseException):
            pass

        calls = [
            lambda conn: conn.cursor().execute("SELECT pg_sleep(%s)", (rng.random() * 0.01,)),
            lambda conn: conn.cursor().execute("SELECT pg_sleep(%s)", (rng.random() * 0.1,)),
            lambda conn: conn.cursor().execute("nonsense"),
            lambda conn: conn.cursor().callproc("pg_backend_pid"),
            lambda conn: conn.cursor().executemany("SELECT %s", [(1,), (2,)]),
            lambda conn: conn.cursor("named").execute("SELECT 1"),
            lambda conn: conn.commit(),
            lambda conn: conn.rollback(),
            lambda conn: conn.reset(),
            lambda conn: conn.cancel(),
            lambda conn: conn.set_client_encoding(rng.choice(["UTF8", "LATIN1"])),
            lambda conn: setattr(conn, "autocommit", rng.random() < 0.5),
            lambda conn: conn.set_session(readonly=rng.random() < 0.5),
            lambda conn: conn.tpc_recover(),
            lambda conn: conn.close() if rng.random() < 0.3 else None,
        ]
        shared = [greenpg.connect(dsn)]
        made = 0

        def one():
            rng.choice(calls)(shared[0])

        def work():
            global made
            while time.monotonic() < end:
                task = Task(one)
                if rng.random() < 0.3:
                    hub().sleep(rng.random() * 0.02)
                    task.throw(Killed)
                task.join(20)
                if task.error is not None and not isinstance(task.error, (psycopg2.Error, Killed)):
                    raise task.error
                made += 1
                if shared[0].closed:
                    shared[0] = greenpg.connect(dsn)
                hub().sleep(0)

        end = time.monotonic() + 3
        for task in [Task(work) for _ in range(3)]:
            task.result(30)
        shared[0].close()
        print(made)
        """,
        dsn,
        str(seed),
    )
    assert int(printed) > 20


def test_control_c_cancels_the_statement_and_keeps_the_connection(dsn):
    """On native threads KeyboardInterrupt comes out of poll(2)."""
    program = """
        import os, signal, sys, threading, psycopg2, greenpg
        greenpg.patch("threads")
        conn = greenpg.connect(sys.argv[1], application_name="control-c")
        cur = conn.cursor()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            cur.execute("SELECT pg_sleep(60)")
        except KeyboardInterrupt:
            print("interrupted", conn.closed)
        conn.rollback()
        cur.execute("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")
        print(cur.fetchone()[0])
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), dsn], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["interrupted", "0", "0"]
