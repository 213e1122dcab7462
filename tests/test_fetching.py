"""A big result is fetched in turns with the other tasks; what comes out is psycopg2's."""

import psycopg2
import psycopg2.extras
import pytest
from kit import Killed, Task
from psycopg2 import extensions

from greenpg.connection.bulk import pacing
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
FACTORIES = [
    extensions.cursor,
    psycopg2.extras.DictCursor,
    psycopg2.extras.RealDictCursor,
    psycopg2.extras.NamedTupleCursor,
    psycopg2.extras.LoggingCursor,
]
SELECT = "SELECT n AS id, 'name ' || n AS name FROM generate_series(1, %s) AS n"


def selected(conn, count, factory=None):
    cur = conn.cursor(cursor_factory=factory)
    if factory is psycopg2.extras.LoggingCursor:
        extensions.cursor.execute(cur, SELECT, (count,))
    else:
        cur.execute(SELECT, (count,))
    return cur


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 1250, 5003])
@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_all_rows(conn, factory, count):
    conn._gate.call = "execute"
    cur = selected(conn, count, factory)
    rows = cur.fetchall()
    assert len(rows) == count
    assert isinstance(rows, list)
    assert [row["id"] if isinstance(row, dict) else row[0] for row in rows] == list(range(1, count + 1))
    assert cur.rownumber == count
    assert cur.fetchall() == []
    assert cur.fetchone() is None
    if count:
        cur.scroll(0, "absolute")
    assert list(cur) == rows
    assert list(cur) == []
    if factory is psycopg2.extras.NamedTupleCursor and rows:
        assert rows[-1].name == f"name {count}"


@pytest.mark.parametrize("factory", FACTORIES[:-1], ids=lambda factory: factory.__name__)
def test_iteration_takes_no_row_beforehand(conn, factory):
    cur = selected(conn, 3000, factory)
    found = []
    for row in cur:
        found.append(row)
        if len(found) == 600:
            break
    assert cur.rownumber == 600
    found += cur.fetchmany(10)
    for row in cur:
        found.append(row)
        if cur.rownumber % 7 == 0 and cur.rownumber < 3000:
            found.append(cur.fetchone())
    assert [row["id"] if isinstance(row, dict) else row[0] for row in found] == list(range(1, 3001))


def test_iteration_leaves_off_where_the_cursor_was_moved(conn):
    cur = selected(conn, 3000)
    rows = iter(cur)
    assert next(rows)[0] == 1
    cur.scroll(2998, "absolute")
    assert [row[0] for row in rows] == [2999, 3000]


@pytest.mark.parametrize("count", [10, 3000])
def test_a_class_that_makes_something_of_each_row(conn, count):
    class Upper(extensions.cursor):
        def __next__(self):
            return super().__next__()[1].upper()

    cur = selected(conn, count, Upper)
    assert list(cur) == [f"NAME {n}" for n in range(1, count + 1)]
    assert cur.fetchone() is None


def test_a_small_result_is_its_own_iterator(conn):
    cur = selected(conn, 10)
    assert iter(cur) is cur
    assert next(cur) == (1, "name 1")


# -- executed again meanwhile


def seen_by_loop(conn, factory, again, after):
    """What a `for` loop sees whose body does something with the cursor, and how it ends."""
    cur = conn.cursor(cursor_factory=factory)
    cur.execute(SELECT, (2000,))
    seen = []
    try:
        for row in cur:
            seen.append(tuple(row.values()) if isinstance(row, dict) else tuple(row))
            if len(seen) == after:
                again(cur)
            if len(seen) > 10_000:
                return seen, "endless"
    except Exception as error:
        return seen, (type(error), str(error).strip())
    return seen, "ended"


AGAIN = {
    "smaller": lambda cur: cur.execute(SELECT, (7,)),
    "smaller, moved on": lambda cur: (cur.execute(SELECT, (7,)), extensions.cursor.fetchone(cur)),
    "of one row": lambda cur: cur.execute("SELECT 7, 'x'"),
    "of one row, which is taken": lambda cur: (cur.execute("SELECT 7, 'x'"), cur.fetchone()),
    "empty": lambda cur: cur.execute(SELECT, (0,)),
    "bigger": lambda cur: cur.execute(SELECT, (5000,)),
    "as big": lambda cur: cur.execute(SELECT, (2000,)),
    "other columns": lambda cur: cur.execute("SELECT n, n + 1 AS b, n + 2 AS c FROM generate_series(1, 1500) n"),
    "no result": lambda cur: cur.execute("CREATE TEMP TABLE IF NOT EXISTS again (n int)"),
    "no result, many rows": lambda cur: cur.execute("CREATE TEMP TABLE many AS SELECT generate_series(1, 5000)"),
    "failed": lambda cur: cur.execute("SELECT nonsense"),
    "executemany": lambda cur: cur.executemany("SELECT %s, 'x'", [(1,), (2,)]),
    "callproc": lambda cur: cur.callproc("generate_series", (1, 1200)),
    "closed": lambda cur: cur.close(),
    "moved to the end": lambda cur: cur.scroll(2000 - 3, "absolute"),
    "moved back": lambda cur: cur.scroll(-1) if cur.rownumber == 500 else None,
    "taken by fetchall": lambda cur: cur.fetchall(),
    "loop in the loop": lambda cur: list(cur),
}


@pytest.mark.parametrize("factory", FACTORIES[:-1], ids=lambda factory: factory.__name__)
@pytest.mark.parametrize("after", [1, 500, 2000])
@pytest.mark.parametrize("again", AGAIN)
def test_executed_again_in_a_loop(dsn, conn, factory, after, again):
    """As psycopg2's own cursors do: `extensions.connection` makes them."""
    plain = extensions.connection(dsn)
    try:
        expected = seen_by_loop(plain, factory, AGAIN[again], after)
    finally:
        plain.close()
    assert seen_by_loop(conn, factory, AGAIN[again], after) == expected


def test_an_iterator_goes_on_with_the_next_result(conn):
    """An exhausted one, too: under psycopg2 it is the cursor itself."""
    cur = selected(conn, 1500)
    rows = iter(cur)
    assert len(list(rows)) == 1500
    with pytest.raises(StopIteration):
        next(rows)
    cur.execute("SELECT 7")
    assert next(rows) == (7,)
    cur.execute("CREATE TEMP TABLE t (n int)")
    with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
        next(rows)
    cur.execute("SELECT 8")
    assert next(rows) == (8,)


@green_only
def test_executed_by_another_task_during_fetchall(conn, monkeypatch):
    """fetchall() pauses: rows of two results must not be mixed."""
    monkeypatch.setattr(pacing, "LONGEST_RUN", 0.0)
    cur = conn.cursor()

    def fetching_all(statement):
        cur.execute(statement, (30000,) if "%s" in str(statement) else None)
        task = Task(cur.fetchall)
        while cur.rownumber == 0:
            hub().sleep(0)
        assert cur.rownumber < 30000
        return task

    assert len(fetching_all(SELECT).result()) == 30000
    same = b"SELECT generate_series(1, 30000)"  # psycopg2 keeps the very object as the cursor's query
    for first, again in ((SELECT, "SELECT 7"), (same, same)):
        task = fetching_all(first)
        cur.execute(again)
        with pytest.raises(psycopg2.ProgrammingError, match="another task has executed the cursor again|no results to"):
            task.result()
    assert len(cur.fetchall()) == 30000
    task = fetching_all(SELECT)
    cur.close()
    with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
        task.result()


def test_errors_are_psycopg2s(conn):
    cur = conn.cursor()
    with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
        cur.fetchall()
    cur.execute("CREATE TEMP TABLE t AS " + SELECT, (5000,))
    assert cur.rowcount == 5000
    with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
        cur.fetchall()
    with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
        list(cur)
    cur.close()
    with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
        cur.fetchall()


def test_named_cursors_are_as_before(conn):
    for iterate in (False, True):
        with conn.cursor(f"named{iterate}") as cur:
            cur.execute(SELECT, (5000,))
            assert len(list(cur) if iterate else cur.fetchall()) == 5000


@green_only
@pytest.mark.parametrize("factory", [None, psycopg2.extras.NamedTupleCursor], ids=["tuples", "namedtuples"])
@pytest.mark.parametrize("iterate", [False, True], ids=["fetchall", "iteration"])
def test_other_tasks_run_meanwhile(conn, iterate, factory):
    cur = selected(conn, 200_000, factory)
    beats = 0
    is_over = False

    def beat():  # a timer, not a mere callback
        nonlocal beats
        while not is_over:
            hub().sleep(0.001)
            beats += 1

    task = Task(beat)
    hub().sleep(0.01)
    beats = 0
    rows = list(cur) if iterate else cur.fetchall()
    found = beats
    is_over = True
    task.result()
    assert len(rows) == 200_000
    assert found >= 3


@green_only
def test_killed_midway(conn, monkeypatch):
    monkeypatch.setattr(pacing, "LONGEST_RUN", 0)
    cur = selected(conn, 100_000)
    task = Task(cur.fetchall)
    hub().sleep(0)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    cur.execute("SELECT 1")
    assert cur.fetchall() == [(1,)]


@green_only
def test_others_may_use_the_connection_meanwhile(conn, monkeypatch):
    monkeypatch.setattr(pacing, "LONGEST_RUN", 0)
    cur = selected(conn, 50_000)
    task = Task(cur.fetchall)
    hub().sleep(0)
    other = conn.cursor()
    other.execute("SELECT 2")
    assert other.fetchall() == [(2,)]
    assert len(task.result()) == 50_000
