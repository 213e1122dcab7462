"""Forks: the child leaves its parent's connections alone, whatever they are doing, and has pools of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
    import os, signal, socket, sys, time
    dsn, hub_name = sys.argv[1:]
    if hub_name == "gevent":
        from gevent import monkey; monkey.patch_all()
    elif hub_name == "eventlet":
        import eventlet; eventlet.monkey_patch()
    import greenpg, psycopg2
    from greenpg import errors
    from greenpg.hubs import hub
    from kit import Task, wait_until
    greenpg.patch(hub_name)

    def in_child(function):
        "Its exit code: 0 if the function doesn't raise."
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            code = 2
            try:
                function()
                code = 0
            except BaseException:
                import traceback; traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        end = time.monotonic() + 25
        while time.monotonic() < end:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            hub().sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hangs"

    def refused(call):
        try:
            call()
        except errors.ConnectionInherited:
            return True
        return False
"""


def run(program, dsn, hub_name, timeout=60):
    """What the program prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(program), dsn, hub_name],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


def test_connections_in_every_state(hub_name, dsn):
    """Idle, in a transaction, in a statement, in a COPY, waiting for a notification, asynchronous, and being made; the
    tasks that wait go on in the parent alone, though their deadlines pass in the child."""
    program = """
        idle, begun, closed_there = (greenpg.connect(dsn) for _ in range(3))
        begun.execute("SELECT 1")
        unfinished = greenpg.connect(dsn, async_=True)
        greenpg.wait(unfinished)
        asking = unfinished.cursor()
        asking.execute("SELECT pg_sleep(0.2)")
        answers = []

        def task(connect, use):
            def work():
                try:
                    answers.append(use(connect()))
                except errors.DeadlineExceeded:
                    answers.append("late")
            return Task(work)

        def query(conn):
            cur = conn.execute("SELECT 'answer', pg_sleep(0.4)")
            return cur.fetchone()[0]

        def late(conn):
            with conn.deadline(0.2):
                conn.execute("SELECT pg_sleep(5)")

        def copy(conn):
            import io
            sql = "COPY (SELECT i, pg_sleep(0.02) FROM generate_series(1, 20) i) TO STDOUT"
            with conn.cursor() as cur:
                cur.copy_expert(sql, target := io.StringIO())
            return target.getvalue().count("\\n")

        def rows(conn):
            with conn.cursor() as cur:
                cur.executemany("SELECT pg_sleep(0.02), %s", [(i,) for i in range(20)])
                return cur.rowcount

        conns = [greenpg.connect(dsn) for _ in range(4)]
        listening = greenpg.connect(dsn)
        listening.autocommit = True
        uses = [(lambda conn=conn: conn, use) for conn, use in zip(conns, (query, late, copy, rows))]
        uses.append((lambda: listening, lambda conn: conn.wait_notify(0.3)))
        silent = socket.create_server(("127.0.0.1", 0))
        lost = f"host=127.0.0.1 port={silent.getsockname()[1]} user=x dbname=x sslmode=disable gssencmode=disable"

        def fail():
            try:
                greenpg.connect(lost, total_connect_timeout=0.4)
            except psycopg2.OperationalError as error:
                return "timeout expired" in str(error)

        uses.append((fail, lambda result: result))
        tasks = [task(*use) for use in uses]
        wait_until(lambda: all(conn._gate.owner is not None for conn in conns))
        hub().sleep(0.1)

        def child():
            hub().sleep(0.6)
            assert not answers, answers
            for conn in [idle, begun, closed_there, unfinished, listening, *conns]:
                assert refused(lambda: conn.cursor().execute("SELECT 1")) and refused(conn.commit)
                assert conn is unfinished or refused(conn.cancel)
            closed_there.close()
            conns[0].close()  # in which somebody waits: psycopg2's lock is held
            own = greenpg.connect(dsn)
            assert closed_there.closed and own.execute("SELECT 1").fetchone() == (1,)

        code = in_child(child)
        for each in tasks:
            each.result(10)
        greenpg.wait(unfinished)
        good = idle.execute("SELECT 2").fetchone() == (2,) and closed_there.execute("SELECT 3").fetchone() == (3,)
        begun.commit()
        print(code, good, *map(str, sorted(answers, key=str)))
    """
    assert run(program, dsn, hub_name) == ["0", "True", "20", "20", "None", "True", "answer", "late"]


def test_a_pool_in_use(hub_name, dsn):
    """One connection is lent, one in a statement, one being reset, one being made, and a request waits in the line."""
    program = """
        def configure(conn):
            conn.execute("SELECT pg_sleep(0.05)")
            conn.commit()

        def reset(conn):
            conn.execute("SELECT pg_sleep(0.1)")
            conn.rollback()

        pool = greenpg.ConnectionPool(dsn, min_size=2, max_size=3, configure=configure, reset=reset, timeout=10)
        pool.wait()
        held = pool.getconn()
        block = pool.connection()
        also_held = block.__enter__()
        answers = []
        def ask(n):
            answers.append(pool.fetchval("SELECT pg_sleep(0.1), %s", (n,)) and n)

        tasks = [Task(lambda n=n: ask(n)) for n in range(4)]
        hub().sleep(0.03)

        def child():
            assert refused(lambda: held.execute("SELECT 1"))
            block.__exit__(None, None, None)
            try:
                pool.putconn(held)
                raise AssertionError("putconn() takes the parent's connection")
            except ValueError:
                pass
            answers.clear()
            for _ in range(3):
                assert pool.fetchval("SELECT 7") == 7
            hub().sleep(0.4)
            assert not answers, answers
            assert pool.get_stats()["pool_size"] <= 3
            pool.close()

        code = in_child(child)
        block.__exit__(None, None, None)
        held.execute("SELECT 1")
        pool.putconn(held)
        for task in tasks:
            task.result(10)
        print(code, pool.fetchval("SELECT 8"), len(answers) >= 4)
        pool.close()
    """
    assert run(program, dsn, hub_name) == ["0", "8", "True"]


@pytest.mark.only_hub("gevent", "eventlet")  # native threads aren't inherited
def test_a_kill_ends_an_inherited_task_and_cancels_nothing(hub_name, dsn):
    program = """
        conn = greenpg.connect(dsn)
        outcomes = []
        def work():
            try:
                outcomes.append(conn.execute("SELECT 'answer', pg_sleep(0.3)").fetchone()[0])
            except BaseException as error:
                outcomes.append(error)
        task = Task(work)
        wait_until(lambda: conn._gate.owner is not None)

        class Killed(BaseException):
            pass

        def child():
            task.throw(Killed())
            wait_until(lambda: outcomes, 0.2)
            assert isinstance(outcomes[0], Killed), outcomes

        code = in_child(child)
        task.result(10)
        print(code, outcomes[0])
    """
    assert run(program, dsn, hub_name) == ["0", "answer"]


def test_the_child_of_a_block_ends_with_its_own_exit_code(hub_name, dsn):
    """By an exception that leaves blocks of the parent's connections."""
    program = """
        pool = greenpg.ConnectionPool(dsn, min_size=1)
        lone = greenpg.connect(dsn)

        with pool.transaction() as conn, lone.transaction():
            conn.execute("SELECT 1")
            lone.execute("SELECT 1")
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                sys.exit(5)
            end = time.monotonic() + 20
            while not (found := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < end:
                hub().sleep(0.01)
            lone.execute("SELECT 2")
            conn.execute("SELECT 2")
        print(os.waitstatus_to_exitcode(found[1]), pool.fetchval("SELECT 8"))
        pool.close()
    """
    assert run(program, dsn, hub_name) == ["5", "8"]


@pytest.mark.only_hub("gevent")  # gunicorn has no worker for eventlet any more
def test_pools_used_before_gunicorn_forks(hub_name, dsn, tmp_path):
    """The pool still connects when the workers are forked; each worker serves by connections of its own, and all of
    them end when they're told to."""
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        from gevent import monkey; monkey.patch_all()
        import os, greenpg
        greenpg.patch()
        def configure(conn):
            conn.execute("SELECT pg_sleep(0.1)")
            conn.commit()
        pool = greenpg.ConnectionPool(os.environ["DSN"], min_size=4, timeout=10, configure=configure)
        assert pool.fetchval("SELECT 1") == 1
        def app(environ, start_response):
            query = environ["QUERY_STRING"]
            with pool.cursor() as cur:
                cur.execute("SELECT %s, pg_sleep(0.003)", (query,))
                answer = cur.fetchone()[0]
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [f"{os.getpid()} {answer}".encode()]
        """)
    )
    program = f"""
        import signal, socket, subprocess, sys, time, urllib.request
        from concurrent.futures import ThreadPoolExecutor
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = f"--preload -w 2 -k gevent -b 127.0.0.1:{{port}} --graceful-timeout 5 --log-level error app:app"
        command = [sys.executable, "-W", "ignore", "-m", "gunicorn", *options.split()]
        master = subprocess.Popen(command, cwd={str(tmp_path)!r})
        def get(n):
            with urllib.request.urlopen(f"http://127.0.0.1:{{port}}/?{{n}}", timeout=10) as answer:
                pid, text = answer.read().decode().split()
            return pid, text == str(n)
        try:
            end = time.monotonic() + 15
            while True:
                try:
                    get(0); break
                except OSError:
                    assert time.monotonic() < end and master.poll() is None
                    time.sleep(0.02)
            with ThreadPoolExecutor(10) as executor:
                answers = list(executor.map(get, range(150)))
            print(all(good for _, good in answers), len({{pid for pid, _ in answers}}))
        finally:
            master.send_signal(signal.SIGTERM)
            try:
                print(master.wait(10))
            except subprocess.TimeoutExpired:
                master.kill()
                print("hangs")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"DSN": dsn, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["True", "2", "0"], done.stderr
