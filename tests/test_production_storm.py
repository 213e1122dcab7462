"""A storm of kills (on threads: of deadlines) over everything that a pool's connections do, at any moment.

Nothing that was acknowledged is lost, nothing is there that was reported as rolled back, no slot and no connection is
lost, and the server never sees more connections than the pool may have. `GREENPG_STORM` sets how many transactions.
"""

import io
import os
import random
import time

import pytest
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg import errors
from greenpg.hubs import hub

OPERATIONS = int(os.environ.get("GREENPG_STORM", "240"))
TASKS = 24
MAX_SIZE = 5
ROWS = 40


class Hasty(greenpg.Connection):
    """Is given up where others are kept."""

    interruption_grace = 0.01


def reset_by_function(conn):
    with conn.cursor() as cur:
        cur.execute("SELECT pg_sleep(random() * 0.005)")
    conn.rollback()


class Watch:
    """A task that looks again and again how many connections the pool has at the server."""

    def __init__(self, dsn):
        self._dsn = dsn
        self.most = self.looks = 0
        self._is_over = False

    def look(self):
        conn = greenpg.connect(self._dsn, application_name="watch")
        conn.autocommit = True
        with conn.cursor() as cur:
            while not self._is_over:
                cur.execute(
                    "SELECT pid, backend_type, state, query, backend_start, query_start, now() FROM pg_stat_activity "
                    "WHERE application_name = 'storm' ORDER BY backend_start"
                )
                backends = cur.fetchall()
                self.looks += 1
                if len(backends) > self.most:
                    self.most, self.backends = len(backends), backends
                hub().sleep(0.002)
        conn.close()

    def __enter__(self):
        self._task = Task(self.look)
        return self

    def __exit__(self, *exc_info):
        self._is_over = True
        self._task.join()


class Storm:
    def __init__(self, pool, seed, disturbs_by_deadline):
        self.pool = pool
        self.random = random.Random(seed)
        self.by_deadline = disturbs_by_deadline
        self.numbers = iter(range(1, 1_000_000_000))
        self.kinds = {}
        self.acknowledged = set()
        self.rolled_back = set()
        self.unknown = set()
        self.without_rows = set()
        self.surprises = []
        self.disturbed = 0
        self.longest = 0.0

    # -- what is disturbed: each puts rows with its number into the table, or none

    def execute(self, number, conn):
        conn.execute("SELECT pg_sleep(%s)", (self.random.random() * 0.01,))
        conn.execute("INSERT INTO storm SELECT %s, n FROM generate_series(1, %s) n", (number, ROWS))

    def executemany(self, number, conn):
        conn.cursor().executemany("INSERT INTO storm VALUES (%s, %s)", ((number, n) for n in range(ROWS)))

    def copy_in(self, number, conn):
        with conn.cursor().copy("COPY storm FROM STDIN") as copy:
            for n in range(ROWS):
                copy.write_row((number, n))

    def copy_file(self, number, conn):
        conn.cursor().copy_from(io.StringIO("".join(f"{number}\t{n}\n" for n in range(ROWS))), "storm")

    def copy_out(self, number, conn):
        with conn.cursor().copy("COPY (SELECT n, repeat('x', 500) FROM generate_series(1, 3000) n) TO STDOUT") as copy:
            assert sum(len(block) for block in copy) > 1_500_000
        self.execute(number, conn)

    def named_cursor(self, number, conn):
        cur = conn.cursor("named")
        cur.itersize = 100
        cur.execute("SELECT n FROM generate_series(1, 500) n")
        assert [n for (n,) in cur] == list(range(1, 501))
        self.execute(number, conn)

    def slow_commit(self, number, conn):
        conn.execute("INSERT INTO storm_slow VALUES (%s)", (self.random.choice([0.01, 0.05, 0.1, 0.5]),))
        self.execute(number, conn)

    def raises(self, number, conn):
        self.execute(number, conn)
        raise ZeroDivisionError

    def in_transaction(self, number):
        kind = self.random.choice(["connection", "cursor", "transaction"])
        work = self.random.choice(
            [
                self.execute,
                self.executemany,
                self.copy_in,
                self.copy_file,
                self.copy_out,
                self.named_cursor,
                self.slow_commit,
                self.raises,
            ]
        )
        self.kinds[number] = f"{kind} {work.__name__}"
        with getattr(self.pool, kind)() as lent:
            conn = lent.connection
            if self.by_deadline:
                with conn.deadline(0.0005 + self.random.random() * 0.05):
                    work(number, conn)
                conn.statement_deadline = 0.0005 + self.random.random() * 0.05  # of the COMMIT
            else:
                work(number, conn)

    def one_shot(self, number):
        self.kinds[number] = "one-shot"
        self.pool.execute("INSERT INTO storm SELECT %s, n FROM generate_series(1, %s) n", (number, ROWS))

    def stream(self, number):
        self.kinds[number] = "stream"
        self.without_rows.add(number)  # what is told of an interrupted COMMIT is of the stream's transaction
        for seen, (n,) in enumerate(self.pool.stream("SELECT n FROM generate_series(1, 400) n", chunk_size=50)):
            assert n == seen + 1
            if seen == 300 and self.random.random() < 0.2:
                break
        self.without_rows.remove(number)
        self.one_shot(number)

    def putconn(self, number):
        """Returned in its transaction: to be rolled back."""
        self.kinds[number] = "putconn"
        conn = self.pool.getconn()
        try:
            self.execute(number, conn)
        finally:
            self.pool.putconn(conn)
        raise ZeroDivisionError

    # -- the books

    def operation(self):
        number = next(self.numbers)
        do = self.random.choice([*[self.in_transaction] * 5, self.one_shot, self.stream, self.putconn])
        try:
            do(number)
        except BaseException as exception:
            outcome = errors.commit_outcome(exception)
            books = {errors.COMMITTED: self.acknowledged, errors.UNKNOWN: self.unknown}
            book = self.rolled_back if number in self.without_rows else books.get(outcome, self.rolled_back)
            book.add(number)
            if not isinstance(exception, Killed | ZeroDivisionError | errors.DeadlineExceeded):
                self.surprises.append((self.kinds[number], exception))
            return exception
        self.acknowledged.add(number)
        return None

    def work(self, operations):
        for _ in range(operations):
            task = Task(self.operation)
            if not self.by_deadline:
                for _ in range(self.random.choice([0, 1, 1, 1, 2, 2])):
                    hub().sleep(self.random.random() * self.random.choice([0.001, 0.01, 0.05, 0.1]))
                    task.throw(Killed())
                    self.disturbed += 1
                thrown_at = time.monotonic()
                task.join()
                if isinstance(task.value, Killed):
                    self.longest = max(self.longest, time.monotonic() - thrown_at)
            task.join()

    def run(self):
        run_all([lambda: self.work(OPERATIONS // TASKS)] * TASKS, timeout=1200)


@pytest.fixture
def tables(admin):
    with admin.cursor() as cur:
        cur.execute(
            """
            DROP TABLE IF EXISTS storm, storm_slow;
            CREATE TABLE storm (number int, n int);
            CREATE TABLE storm_slow (seconds float);
            CREATE OR REPLACE FUNCTION storm_slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(NEW.seconds); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON storm_slow DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION storm_slow();
            """
        )
    yield
    with admin.cursor() as cur:
        cur.execute("DROP TABLE storm, storm_slow CASCADE")


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("reset", ["rollback", "session", reset_by_function], ids=["rollback", "session", "function"])
@pytest.mark.parametrize("connection_class", [greenpg.Connection, Hasty])
def test_storm(make_pool, dsn, admin, tables, hub_name, reset, connection_class, caplog):
    caplog.set_level("CRITICAL", "greenpg")
    pool = make_pool(
        min_size=MAX_SIZE,
        max_size=MAX_SIZE,
        reset=reset,
        connection_class=connection_class,
        kwargs={"application_name": "storm"},
    )
    pool.wait()
    seed = int(os.environ.get("GREENPG_SEED", "1"))
    storm = Storm(pool, seed, disturbs_by_deadline=hub_name == "threads")
    with Watch(dsn) as watch:
        storm.run()
        wait_until(lambda: pool.get_stats()["pool_available"] == MAX_SIZE, 10)
    with admin.cursor() as cur:
        cur.execute("SELECT number, count(*) FROM storm GROUP BY number")
        rows = dict(cur.fetchall())
        cur.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'storm' AND state <> 'idle'")
        running = cur.fetchone()[0]
    print(
        f"storm on {hub_name}, seed {seed}: {len(storm.kinds)} operations, {storm.disturbed} kills, "
        f"{len(storm.acknowledged)} acknowledged, {len(storm.rolled_back)} rolled back, {len(storm.unknown)} unknown; "
        f"connections made: {pool.get_stats()['connections_num']}, most at the server: {watch.most} in {watch.looks} "
        f"looks; longest from a kill to its coming out: {storm.longest:.2f} s"
    )
    present = set(rows)
    assert storm.surprises == []
    assert {number: storm.kinds[number] for number in storm.acknowledged - present} == {}, "acknowledged, but lost"
    assert {number: storm.kinds[number] for number in storm.rolled_back & present} == {}, "there, but rolled back"
    assert {number: count for number, count in rows.items() if count != ROWS} == {}, "a part of a transaction"
    assert watch.most <= MAX_SIZE, watch.backends
    assert running == 0, "left running"
    conns = [pool.getconn(timeout=5) for _ in range(MAX_SIZE)]
    assert all(conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE for conn in conns)
    for conn in conns:
        pool.putconn(conn)
