"""Native threads on one connection take turns, as psycopg2 lets them; under green hubs too."""

import io
import time

import psycopg2
import pytest
from kit import wait_until

import greenpg
from greenpg import errors
from greenpg.hubs import hub

THREADS = 6


class NativeTask:
    """A function in a new native thread, which has no event loop (one of the hub's pool may have got one)."""

    def __init__(self, function):
        self._done = hub().event()
        hub().natives().spawn(self._run, function)

    def _run(self, function):
        try:
            self._outcome = function(), None
        except BaseException as error:
            self._outcome = None, error
        self._done.set()

    def result(self):
        assert self._done.wait(time.monotonic() + 30), "the thread doesn't end"
        result, error = self._outcome
        if error is not None:
            raise error
        return result


def in_threads(functions):
    """Run them all at once; their results."""
    return [task.result() for task in [NativeTask(function) for function in functions]]


@pytest.fixture(params=["here", "in a thread"])
def shared(request, dsn):
    if request.param == "in a thread":
        conn = in_threads([lambda: greenpg.connect(dsn)])[0]
    else:  # turns are taken from when two native threads have met
        conn = greenpg.connect(dsn)
        task = NativeTask(lambda: conn.cursor().execute("SELECT pg_sleep(0.1)"))
        wait_until(lambda: conn._gate.owner is not conn._gate.free)
        in_threads([lambda: conn.cursor().execute("SELECT 1")])
        task.result()
    assert conn._gate.free is not None
    yield conn
    conn.close()


def test_statements(shared):
    def ask(number):
        for i in range(30):
            with shared.cursor() as cur:
                cur.execute("SELECT %s, %s, pg_sleep(%s)", (number, i, 0.001 if i % 10 == 0 else 0))
                assert cur.fetchone()[:2] == (number, i)
        return number

    assert in_threads([lambda n=n: ask(n) for n in range(THREADS)]) == list(range(THREADS))


def test_transactions_copy_executemany_and_large_objects(shared):
    shared.cursor().execute("CREATE TEMPORARY TABLE turns (who int, i int)")
    shared.commit()

    def insert(number):
        with shared.cursor() as cur:
            cur.executemany("INSERT INTO turns VALUES (%s, %s)", [(number, i) for i in range(300)])
            assert cur.rowcount == 300

    def generate(number):
        with shared.cursor() as cur:
            cur.executemany("INSERT INTO turns VALUES (%s, %s)", ((number, i) for i in range(300)))
            assert cur.rowcount == 300

    def copy_in(number):
        with shared.cursor() as cur:
            cur.copy_expert("COPY turns FROM STDIN", io.StringIO("".join(f"{number}\t{i}\n" for i in range(300))))
            assert cur.rowcount == 300

    def copy_out(number):
        with shared.cursor() as cur:
            cur.copy_expert(f"COPY (SELECT {number} FROM generate_series(1, 300)) TO STDOUT", target := io.StringIO())
            assert target.getvalue() == f"{number}\n" * 300

    def large_object(number):
        obj = shared.lobject(0, "wb")
        obj.write(bytes([number]) * 1000)
        obj.seek(0)
        assert obj.read() == bytes([number]) * 1000
        obj.close()

    def server_cursor(number):
        with shared.cursor(f"named{number}") as cur:
            cur.execute("SELECT %s FROM generate_series(1, 50)", (number,))
            assert cur.fetchall() == [(number,)] * 50

    works = [insert, generate, copy_in, copy_out, large_object, server_cursor]
    in_threads([lambda n=n: works[n % len(works)](n) for n in range(2 * len(works))])
    shared.commit()
    with shared.cursor() as cur:
        cur.execute("SELECT who, count(*), count(DISTINCT i) FROM turns GROUP BY who ORDER BY who")
        assert cur.fetchall() == [(n, 300, 300) for n in range(2 * len(works)) if n % len(works) < 3]


@pytest.mark.only_hub("gevent", "eventlet")
def test_who_must_not_be_blocked_is_refused(shared):
    """A task of an event loop can't wait natively."""
    with shared.cursor() as cur:
        cur.execute("SELECT 1")
    task = NativeTask(lambda: shared.cursor().execute("SELECT pg_sleep(0.3)"))
    hub().sleep(0.1)
    with pytest.raises(errors.ConnectionInUse):
        shared.cursor().execute("SELECT 2")
    task.result()
    with shared.cursor() as cur:
        cur.execute("SELECT 3")
        assert cur.fetchone() == (3,)


def test_an_error_passes_the_turn_on(shared):
    shared.rollback()
    shared.autocommit = True

    def fail():
        with pytest.raises(psycopg2.errors.DivisionByZero):
            shared.cursor().execute("SELECT 1/0")

    in_threads([fail] * 4)
    with shared.cursor() as cur:
        cur.execute("SELECT 4")
        assert cur.fetchone() == (4,)
