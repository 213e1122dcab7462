"""Kills (on threads: deadlines) at any moment of pipelines of a pool: nothing that was acknowledged is lost, nothing is
there that was reported as rolled back, no slot is lost."""

import random

import psycopg2
import pytest
from kit import Killed, Task, wait_until

import greenpg
from greenpg.errors import COMMITTED, ROLLED_BACK, UNKNOWN, DeadlineExceeded, commit_outcome
from greenpg.hubs import hub

TASKS, OPERATIONS, MAX_SIZE = 12, 400, 3


class Hasty(greenpg.Connection):
    """Is given up where others are kept."""

    interruption_grace = 0.002


@pytest.fixture
def tables(admin):
    with admin.cursor() as cur:
        cur.execute("CREATE TABLE account (id int PRIMARY KEY, balance int); CREATE TABLE done (op int PRIMARY KEY)")
        cur.execute("INSERT INTO account SELECT n, 100 FROM generate_series(0, 9) AS n")
        yield cur
        cur.execute("DROP TABLE account, done")


def transfer(pool, rng, op):
    """One operation; what became of it."""
    one, other = sorted(rng.sample(range(10), 2))
    has_begun_to_commit = False
    try:
        with pool.pipeline(timeout=20) as p:
            if rng.random() < 0.3:
                p.connection.statement_deadline = rng.choice([0.0005, 0.002, 0.01])
            p.execute("INSERT INTO done VALUES (%s)", (op,))
            first = p.execute("UPDATE account SET balance = balance - 1 WHERE id = %s RETURNING balance", (one,))
            if rng.random() < 0.3:
                p.execute("SELECT pg_sleep(%s)", (rng.random() * 0.004,))
            if rng.random() < 0.3:
                first.fetchone()
            if rng.random() < 0.2:
                p.execute("SELECT 1/0")
            p.execute("UPDATE account SET balance = balance + 1 WHERE id = %s", (other,))
            if rng.random() < 0.1:
                p.sync()
            has_begun_to_commit = True
    except (Killed, DeadlineExceeded, psycopg2.Error) as error:
        return commit_outcome(error) or (UNKNOWN if has_begun_to_commit else ROLLED_BACK)
    return COMMITTED


@pytest.mark.parametrize("connection_class", [greenpg.Connection, Hasty])
def test_storm(make_pool, tables, hub_name, connection_class):
    pool = make_pool(min_size=MAX_SIZE, connection_class=connection_class, timeout=20)
    rng = random.Random(22)
    ops = iter(range(OPERATIONS))
    outcomes = {}
    running = {}

    def work(number):
        for op in ops:
            own = random.Random(op)
            outcomes[op] = UNKNOWN  # killed outside of the pool's calls
            outcomes[op] = transfer(pool, own, op)
        running.pop(number)

    def work_on(number):
        while number in running:
            try:
                work(number)
            except Killed:
                continue

    for number in range(TASKS):
        running[number] = None
        running[number] = Task(work_on, number)
    if hub_name != "threads":
        while running:
            hub().sleep(rng.random() * 0.004)
            if tasks := [task for task in running.values() if task is not None]:
                rng.choice(tasks).throw(Killed())
    wait_until(lambda: not running, 60)
    wait_until(lambda: pool.get_stats()["pool_available"] == MAX_SIZE, 20)
    tables.execute("SELECT op FROM done")
    done = {row[0] for row in tables.fetchall()}
    assert {op for op, outcome in outcomes.items() if outcome == COMMITTED} - done == set()
    assert {op for op, outcome in outcomes.items() if outcome == ROLLED_BACK} & done == set()
    tables.execute("SELECT sum(balance), count(*) FROM account")
    assert tables.fetchone() == (1000, 10)
    kinds = set(outcomes.values())
    assert COMMITTED in kinds and ROLLED_BACK in kinds
    assert sum(outcome == UNKNOWN for outcome in outcomes.values()) < OPERATIONS / 2
    pool._core.ledger.check_invariants()
    for _ in range(3 * MAX_SIZE):  # whoever comes next isn't in anybody's pipeline
        with pool.connection() as conn:
            assert conn._gate.queue is None
            assert conn.execute("SELECT count(*) FROM done").fetchone() == (len(done),)
