"""executemany() whose rows are transactions of their own, or whose results are kept."""

import contextlib
import random

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, is_waiting, psycopg2s_executemany, statements_running, usable, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.errors import DeadlineExceeded

IDLE, ACTIVE, INTRANS, INERROR = range(4)
INSERT = "INSERT INTO item VALUES (%s, %s)"


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TEMP TABLE item (id int UNIQUE, name text)")
    conn.execute("CREATE TEMP TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    conn.commit()
    conn.autocommit = True
    return conn


def outcome(conn, call, query, rows):
    """What it does, and leaves behind."""
    cur = conn.cursor()
    error = None
    try:
        call(cur, query, rows)
    except psycopg2.Error as caught:
        error = caught.pgcode, str(caught)
    description = cur.description
    found = error, cur.rowcount, cur.statusmessage, cur.query, description, conn.get_transaction_status()
    with pytest.raises(psycopg2.ProgrammingError if error is None else psycopg2.Error):
        cur.fetchone()
    left = conn.execute("SELECT id, name FROM item ORDER BY id").fetchall()
    late = conn.execute("SELECT id FROM late ORDER BY id").fetchall()
    conn.execute("TRUNCATE item, late")
    return found, left, late


def executemany(cur, query, rows):
    cur.executemany(query, rows)


ROWS = [
    (INSERT, [(n, f"é{n};") for n in range(40)]),
    (INSERT, []),
    (INSERT, [(1, "x")]),
    (INSERT, [(1, "x"), (2, "y")]),
    (INSERT, [(1, "x"), (2, "y"), (1, "z"), (3, "x")]),
    (INSERT, [(1, "x"), (2, "y"), ("bad", "z"), (3, "x")]),
    ("INSERT INTO late VALUES (%s)", [(1,), (2,), (1,), (3,)]),
    ("INSERT INTO item VALUES (%s) RETURNING id", [(n,) for n in range(9)]),
    ("SELECT 1 / %s", [(1,), (2,), (0,), (3,)]),
    ("SELEC %s", [(1,), (2,)]),
    ("SELECT nonsense, %s", [(1,), (2,)]),
    ("UPDATE item SET name = %s", [("x",), ("y",), ("z",)]),
    ("CREATE TABLE pg_temp.made_%s ()", [(1,), (2,), (3,)]),
    ("VACUUM item", [(), (), ()]),
]


@pytest.mark.parametrize(("query", "rows"), ROWS)
@pytest.mark.parametrize("kind", [list, iter])
def test_as_psycopg2_in_autocommit(conn, query, rows, kind):
    if "made" in query:
        rows = [(extensions.AsIs(row[0]),) for row in rows]
    expected = outcome(conn, psycopg2s_executemany, query, rows)
    if "made" in query:
        conn.execute("DROP TABLE made_1, made_2, made_3")
    assert outcome(conn, executemany, query, kind(rows)) == expected


AFTERWARDS = {
    "scroll": lambda cur: cur.scroll(1),
    "scroll back": lambda cur: cur.scroll(-1),
    "no rows": lambda cur: cur.executemany(INSERT, []),
    "refused arguments": lambda cur: cur.execute("SELECT %s", (1, 2)),
    "an empty query": lambda cur: cur.execute(""),
    "no query": lambda cur: cur.execute(5),
    "a fetch": lambda cur: cur.fetchmany(0),
}


@pytest.mark.parametrize("ids", [(1, 2, 3), (1, 2, 1, 3)])
@pytest.mark.parametrize("afterwards", AFTERWARDS.values(), ids=AFTERWARDS)
def test_what_a_call_that_does_nothing_leaves(conn, ids, afterwards):
    def left(call, between):
        cur = conn.cursor()
        with contextlib.suppress(psycopg2.errors.UniqueViolation):
            call(cur, INSERT, [(n, "x") for n in ids])
        between(cur)
        told = None
        try:
            afterwards(cur)
        except (psycopg2.Error, TypeError) as error:
            told = type(error), str(error), getattr(error, "cursor", None) is cur
        conn.execute("TRUNCATE item")
        return told, cur.rowcount, cur.statusmessage, cur.query, cur.rownumber

    for between in (lambda cur: None, lambda cur: cur.execute("SELECT 5"), lambda cur: cur.close()):
        assert left(executemany, between) == left(psycopg2s_executemany, between)


def test_adapters_that_use_the_connection_behind_a_row_that_fails(conn):
    class Querying:
        def __conform__(self, protocol):
            conn.execute("SELECT 1")
            return extensions.adapt("x")

    def left(call):
        cur = conn.cursor()
        with pytest.raises(psycopg2.errors.UniqueViolation):
            call(cur, INSERT, [(n, Querying()) for n in (1, 2, 1, 3)])
        conn.execute("TRUNCATE item")
        return cur.rowcount, cur.statusmessage, cur.query

    assert left(executemany) == left(psycopg2s_executemany)


def test_rows_are_transactions(conn):
    cur = conn.cursor()
    cur.executemany("INSERT INTO item VALUES (%s, pg_current_xact_id()::text)", [(n,) for n in range(30)])
    assert cur.rowcount == 30
    cur.execute("SELECT count(DISTINCT name) FROM item")
    assert cur.fetchone() == (30,)
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany(INSERT, [(n, "x") for n in (50, 51, 52, 5, 53)])
    assert caught.value.row_index == 3
    cur.execute("SELECT id FROM item WHERE id >= 50 ORDER BY id")
    assert cur.fetchall() == [(50,), (51,), (52,)]
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany("INSERT INTO late VALUES (%s)", [(n,) for n in (1, 2, 1, 3)])
    assert caught.value.row_index == 2
    assert conn.get_transaction_status() == IDLE
    with pytest.raises(ZeroDivisionError):
        cur.executemany(INSERT, ((n, "x") if n < 105 else 1 / 0 for n in range(100, 109)))
    assert cur.rowcount == 5
    with pytest.raises(psycopg2.ProgrammingError, match="can't adapt") as caught:
        cur.executemany(INSERT, [(200, "x"), (201, "y"), (202, object())])
    assert caught.value.row_index == 2
    assert conn.execute("SELECT count(*) FROM item WHERE id >= 100").fetchone() == (7,)


def test_a_generator_that_uses_the_connection(conn):
    cur, other = conn.cursor(), conn.cursor()
    counts = []

    def rows():
        for n in range(12):
            if n in (0, 1, 5, 6):
                other.execute("SELECT count(*) FROM item")
                counts.append(other.fetchone()[0])
            if n == 8:
                with conn.transaction():
                    other.execute("INSERT INTO late VALUES (1)")
            yield (n, "x")

    cur.executemany(INSERT, rows())
    assert counts == [0, 1, 5, 6] and cur.rowcount == 12

    def failing():
        yield (100, "x")
        yield (101, "x")
        yield (100, "x")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            other.execute("SELECT 1")
        yield (102, "x")

    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany(INSERT, failing())
    assert caught.value.row_index == 2 and conn.get_transaction_status() == IDLE
    assert conn.execute("SELECT id FROM item WHERE id > 99 ORDER BY id").fetchall() == [(100,), (101,)]


@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("count", [5, 3000])
def test_a_generator_that_uses_a_cursor_of_psycopg2s(conn, count, returning):
    """Of which greenpg doesn't know. Rows may not have been executed yet, but nothing is in its way."""
    cur, other = conn.cursor(), psycopg2.extras.DictCursor(conn)
    found = []

    def rows():
        for n in range(count):
            if n % 700 in (0, 2, 3):
                other.execute("SELECT %s AS n", (n,))
                found.append(other.fetchone()["n"])
            yield (n, "x")

    cur.executemany(INSERT, rows(), returning=returning)
    assert found == [n for n in range(count) if n % 700 in (0, 2, 3)]
    assert cur.rowcount == count and conn.execute("SELECT count(*) FROM item").fetchone() == (count,)

    class Asking:
        def __conform__(self, protocol):
            return self

        def getquoted(self):
            other.execute("SELECT 7")
            return str(other.fetchone()[0]).encode()

    askers = ((Asking(),) for _ in range(4))
    cur.executemany("UPDATE item SET name = %s WHERE id < 3", askers, returning=returning)
    assert conn.execute("SELECT name FROM item WHERE id < 3").fetchall() == [("7",)] * 3


def test_a_generator_that_closes_the_connection(conn):
    def rows():
        yield (1, "x")
        yield (2, "x")
        conn.close()
        yield (3, "x")

    with pytest.raises(psycopg2.InterfaceError):
        conn.cursor().executemany(INSERT, rows())


def test_round_trips(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        conn = greenpg.connect(extensions.make_dsn(server.tcp_dsn, port=counter.port))
        conn.autocommit = True
        cur = conn.cursor()
        assert counter.of(lambda: cur.executemany("SELECT %s", [(n,) for n in range(100)])) < 20
        conn.autocommit = False
        cur.execute("SELECT 1")
        assert counter.of(lambda: cur.executemany("SELECT %s", [(n,) for n in range(100)], returning=True)) < 20
        assert [cur.fetchone() for _ in cur.results()] == [(n,) for n in range(100)]
        conn.close()


# -- returning


@pytest.mark.parametrize("is_autocommit", [False, True])
@pytest.mark.parametrize("kind", [list, iter])
def test_returning(conn, is_autocommit, kind):
    conn.autocommit = is_autocommit
    cur = conn.cursor()
    cur.executemany(INSERT + " RETURNING id, name", kind([(n, f"é{n};") for n in range(50)]), returning=True)
    assert cur.rowcount == 50 and cur.description[1].name == "name"
    assert [cur.fetchone() for _ in cur.results()] == [(n, f"é{n};") for n in range(50)]
    cur.executemany("SELECT generate_series(1, %s)", [(1,), (0,), (3,)], returning=True)
    assert cur.rowcount == 4
    found = []
    while True:
        found.append((cur.rowcount, cur.fetchall()))
        if not cur.nextset():
            break
    assert [rows for _, rows in found] == [[(1,)], [], [(1,), (2,), (3,)]]
    assert [count for count, _ in found] == [4, 0, 3]
    cur.executemany("SELECT %s", [], returning=True)
    assert cur.rowcount in (0, -1)
    with pytest.raises(psycopg2.ProgrammingError):
        cur.fetchone()
    cur.executemany("UPDATE item SET name = 'x' WHERE id < %s", [(1,), (3,)], returning=True)
    assert [cur.rowcount for _ in cur.results()] == [1, 3]
    cur.execute("SELECT 7")
    assert [cur.fetchone() for _ in cur.results()] == [(7,)]
    conn.rollback()


def test_returning_of_dicts(conn):
    cur = conn.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
    rows = [(1, "a"), (2, "b")]
    greenpg.Cursor.executemany(cur, INSERT + " RETURNING *", rows, returning=True)
    assert [cur.fetchall() for _ in cur.results()] == [[{"id": 1, "name": "a"}], [{"id": 2, "name": "b"}]]


@pytest.mark.parametrize("is_autocommit", [False, True])
def test_errors_of_returning(conn, is_autocommit):
    conn.autocommit = is_autocommit
    cur = conn.cursor()
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany(INSERT + " RETURNING id", [(1, "x"), (2, "x"), (1, "x"), (3, "x")], returning=True)
    assert caught.value.row_index == 2
    assert conn.get_transaction_status() == (IDLE if is_autocommit else INERROR)
    conn.rollback()
    assert conn.execute("SELECT id FROM item").fetchall() == ([(1,), (2,)] if is_autocommit else [])
    for query in ("COPY item TO STDOUT", "SELECT 1; SELECT 2", "COMMIT", ""):
        with pytest.raises(psycopg2.ProgrammingError):
            cur.executemany(query, [(), ()], returning=True)
    with pytest.raises(psycopg2.ProgrammingError), conn.cursor("named", withhold=True) as named:
        named.executemany("SELECT %s", [(1,)], returning=True)
    conn.rollback()
    assert usable(conn)


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        ((3, "c"), (3, "INSERT 0 1", b"INSERT INTO item VALUES (3, 'c')")),
        ((2, "c"), (-1, "", b"INSERT INTO item VALUES (2, 'c')")),
    ],
)
def test_nothing_kept_no_next_set(conn, last, shown):
    cur = conn.cursor()
    try:
        cur.executemany(INSERT, [(1, "a"), (2, "b"), last])
    except psycopg2.errors.UniqueViolation:
        pass
    assert (cur.rowcount, cur.statusmessage, cur.query) == shown
    with pytest.raises(psycopg2.NotSupportedError):
        cur.nextset()
    assert [found is cur for found in cur.results()] == [True]
    assert (cur.rowcount, cur.statusmessage, cur.query) == shown
    cur.close()
    assert (cur.rowcount, cur.statusmessage, cur.query) == shown


def test_callproc_that_is_refused(conn):
    cur = conn.cursor()
    for fetches, rowcount in ((False, 3), (True, -1)):
        cur.executemany("SELECT 1", [None] * 3)
        if fetches:
            with pytest.raises(psycopg2.ProgrammingError, match="no results"):
                list(cur)
        with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
            cur.callproc("upper", (object(),))
        assert cur.rowcount == rowcount
    assert cur.callproc("upper", ("x",)) == ("x",)
    assert (cur.rowcount, cur.fetchone()) == (1, ("X",))


def test_in_a_pipeline(conn):
    cur = conn.cursor()
    with conn.pipeline():
        conn.execute("INSERT INTO item VALUES (1, 'x')")
        cur.executemany(INSERT + " RETURNING id", [(2, "x"), (3, "x")], returning=True)
        conn.execute("INSERT INTO item VALUES (4, 'x')")
        cur.executemany(INSERT, [(n, "x") for n in range(5, 9)])
        assert cur.rowcount == 4
        conn.execute("INSERT INTO item VALUES (9, 'x')")
    assert conn.execute("SELECT array_agg(id ORDER BY id) FROM item").fetchone() == (list(range(1, 10)),)


def test_many(conn):
    cur = conn.cursor()
    cur.executemany(INSERT, ((n, "x" * 200) for n in range(3000)))
    assert cur.rowcount == 3000
    assert conn.execute("SELECT count(*) FROM item").fetchone() == (3000,)


# -- kills and deadlines


@pytest.mark.only_hub("gevent", "eventlet")
@pytest.mark.parametrize("is_autocommit", [False, True])
@pytest.mark.parametrize("returning", [False, True])
def test_killed(conn, admin, is_autocommit, returning):
    conn.autocommit = is_autocommit
    cur = conn.cursor()
    rows = [(1, 0), (2, 0), (3, 60), (4, 0)]
    query = "INSERT INTO item SELECT %s, pg_sleep(%s)::text RETURNING id"
    task = Task(lambda: cur.executemany(query, rows, returning=returning))
    wait_until(lambda: "60" in str(statements_running(admin)) and is_waiting(conn))
    error = Killed()
    task.throw(error)
    task.join()
    assert task.error is error and not conn.closed
    assert statements_running(admin) == []
    assert conn.get_transaction_status() == (IDLE if is_autocommit else INERROR)
    conn.rollback()
    assert conn.execute("SELECT id FROM item ORDER BY id").fetchall() == ([(1,), (2,)] if is_autocommit else [])


@pytest.mark.parametrize("returning", [False, True])
def test_deadline(conn, returning):
    cur = conn.cursor()
    with pytest.raises(DeadlineExceeded), conn.deadline(0.1):
        cur.executemany("SELECT pg_sleep(%s)", [(0,), (0,), (60,)], returning=returning)
    assert conn.get_transaction_status() == IDLE and usable(conn)


@pytest.mark.parametrize("seed", range(12))
def test_random(conn, seed):
    rng = random.Random(seed)
    rows = [(rng.randrange(30), rng.choice(["a", "b;c", None])) for _ in range(rng.randrange(12))]
    assert outcome(conn, executemany, INSERT, rows) == outcome(conn, psycopg2s_executemany, INSERT, rows)
