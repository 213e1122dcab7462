"""Prepared statements: the same results as without, who is prepared and who isn't, and what takes a plan away."""

import datetime
import random
import uuid
from decimal import Decimal

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, is_waiting, needs_riding, statements_running, usable, wait_until
from psycopg2 import extensions, sql

import greenpg
from greenpg.connection.prepared.argument_types import types_of
from greenpg.connection.prepared.template import template_of
from greenpg.errors import ConnectionInUse

pytestmark = needs_riding
IDLE, ACTIVE, INTRANS, INERROR = range(4)


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TEMP TABLE item (id int UNIQUE, name text, price numeric, at timestamptz, data jsonb)")
    conn.execute("INSERT INTO item SELECT n, 'name ' || n, n / 2.0, now(), '[1]' FROM generate_series(1, 9) AS n")
    conn.commit()
    return conn


def prepared(conn):
    """What the server has prepared, and whether greenpg thinks so."""
    names = {row[0] for row in conn.execute("SELECT name FROM pg_prepared_statements", prepare=False).fetchall()}
    assert {each.name.decode() for each in conn._prepared.known.values()} <= names
    return len(names)


ARGUMENTS = [
    1, -1, 2**31 - 1, -(2**31), -(2**31) - 1, 2**31, 2**63 - 1, -(2**63), 2**63,
    True, 1.5, -0.0, 1e300, float("nan"), float("inf"), None, "x",
    "é;'\\", "", Decimal("1.50"), Decimal("5"), Decimal("-7"), Decimal("NaN"), Decimal("1E+3"), b"a\0\xff", [], [1, 2],
    [2**40, 1], ["a", None], ["a", "b"], datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 1, 10), (1, 2),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), datetime.time(1, 2, 3), datetime.timedelta(days=1.5),
    uuid.UUID(int=5), extensions.AsIs("1 + 1"), psycopg2.extras.Json({"a": 1}), [1.5], [[1]],
]  # fmt: skip


def outcome(conn, query, arguments, prepare):
    cur = conn.cursor()
    try:
        cur.execute(query, arguments, prepare=prepare)
        rows = [[bytes(v) if isinstance(v, memoryview) else v for v in row] for row in cur.fetchall()]
        # A list's column without a name is called "array" where it stands in the text.
        columns = [("?column?" if name == "array" else name, *more) for name, *more in cur.description]
        return repr(rows), cur.rowcount, cur.statusmessage, columns, conn.get_transaction_status()
    except psycopg2.Error as error:
        status = conn.get_transaction_status()
        conn.rollback()
        return type(error).__name__, error.pgcode, status


@pytest.mark.parametrize("is_autocommit", [False, True])
def test_the_same_with_any_argument(conn, is_autocommit):
    """Alone in a SELECT list, beside a column, in arithmetic: with the type that the text would have."""
    psycopg2.extras.register_uuid(conn_or_curs=conn)
    conn.autocommit = is_autocommit
    queries = [
        "SELECT %s",
        "SELECT pg_typeof(%s)",
        "SELECT %s / 2",
        "SELECT id FROM item WHERE id = %s",
        "SELECT %(a)s, %(a)s || '%%'",
        "SELECT id FROM item WHERE id = ANY(%s)",
        "SELECT id FROM item WHERE name = ANY(%s) ORDER BY %s",
        "SELECT coalesce(NULL, %s), data FROM item WHERE at > now() - interval '1 day' * 2 LIMIT 3",
        "INSERT INTO item (price) VALUES (%s) RETURNING price, id",
    ]
    for query in queries:
        for argument in ARGUMENTS:
            arguments = {"a": argument} if "(a)" in query else (argument,) * query.count("%s")
            expected = outcome(conn, query, arguments, None)
            for _ in range(2):
                assert outcome(conn, query, arguments, True) == expected, f"{query} with {argument!r}"
    assert 30 < prepared(conn) <= conn.prepared_max


def test_types():
    assert types_of([1, "x", 2**40, [1], None, 1.5]) == ("int4", "unknown", "int8", "int4[]", "unknown", "numeric")
    for never in (object(), (1,), extensions.AsIs("1"), sql.SQL("x"), [(1,)], type("Sub", (int,), {})(1)):
        assert types_of([never]) is None


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT %s, %s", b"SELECT $1, $2"),
        ("SELECT %(b)s, %(a)s, %(b)s", b"SELECT $1, $2, $1"),
        ("SELECT 'it''s %%', %s;", b"SELECT 'it''s %', $1"),
        ("-- note\nSELECT %s", b"-- note\nSELECT $1"),
        ("WITH x AS (SELECT 1 ORDER BY 1) SELECT %s FROM x ORDER BY 1 LIMIT %s", None),
        (
            "SELECT id FROM item WHERE id > %s ORDER BY id LIMIT %s",
            b"SELECT id FROM item WHERE id > $1 ORDER BY id LIMIT $2",
        ),
        ("SELECT '%s'", None),
        ('SELECT "%s"', None),
        ("SELECT $$ %s $$", None),
        ("SELECT $1, %s", None),
        ("SELECT 1 /* %s */", None),
        ("SELECT %s; SELECT %s", None),
        ("SELECT id FROM item ORDER BY %s", None),
        ("SELECT count(*) FROM item GROUP BY id, %s", None),
        ("SELECT %s, %(a)s", None),
        ("SELECT %d", None),
        ("SET work_mem TO %s", None),
        ("CREATE TABLE x AS SELECT %s", None),
        ("COPY item TO STDOUT", None),
    ],
)
def test_templates(query, text):
    template = template_of(query, "utf-8", True)
    if query.startswith("WITH"):
        assert template is not None  # the first is not in the ORDER BY, which a parenthesis ends
        return
    assert (template and template.text(("int4",) * 9)) == text


def test_threshold(conn):
    conn.prepare_threshold = 2
    cur = conn.cursor()
    for n in range(5):
        cur.execute("SELECT name FROM item WHERE id = %s", (n + 1,))
        assert cur.fetchone() == (f"name {n + 1}",)
        assert prepared(conn) == (1 if n >= 2 else 0)
    cur.execute("SELECT name FROM item WHERE id = %s", ("3",))  # another type
    assert cur.fetchone() == ("name 3",)
    assert b"EXECUTE" not in cur.query
    cur.execute("SELECT name FROM item WHERE id = %s", (3,))
    assert cur.query.startswith(b"EXECUTE greenpg_") and cur.statusmessage == "SELECT 1"
    cur.execute("SELECT name FROM item WHERE id = %s", (3,), prepare=False)
    assert cur.query == b"SELECT name FROM item WHERE id = 3"
    conn.prepare_threshold = None
    cur.execute("SELECT name FROM item WHERE id = %s", (3,))
    assert cur.query == b"SELECT name FROM item WHERE id = 3"
    for wrong in (-1, "x"):
        with pytest.raises(ValueError, match="prepare_threshold"):
            conn.prepare_threshold = wrong


def test_least_recently_used(conn):
    conn.prepared_max = 3
    for n in (1, 2, 3, 1, 4, 5, 1):
        assert conn.execute(f"SELECT {n} + %s", (1,), prepare=True).fetchone() == (n + 1,)
    kept = [key[0] for key in conn._prepared.known]
    assert kept == ["SELECT 4 + %s", "SELECT 5 + %s", "SELECT 1 + %s"]
    assert prepared(conn) <= 4  # the last one goes with the next PREPARE


@pytest.mark.parametrize("factory", [psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor])
def test_cursor_classes(conn, factory):
    conn.prepare_threshold = 0
    cur = conn.cursor(cursor_factory=factory)
    cur.execute("SELECT id, name FROM item WHERE id = %s", (1,))
    assert cur.query.startswith(b"EXECUTE")
    row = cur.fetchone()
    assert (row["name"] if isinstance(row, dict) else row.name) == "name 1"


# -- transactions


def test_a_refused_statement_is_as_without(conn):
    """Inside of a transaction, too: the error is the ordinary one, what was done before isn't lost by PREPARE."""
    group = "SELECT date_trunc(%s, at) FROM item GROUP BY date_trunc(%s, at)"  # as parameters they aren't the same
    for _ in range(2):
        conn.execute("UPDATE item SET name = 'changed'")
        assert len(conn.execute(group, ("day", "day"), prepare=True).fetchall()) == 1
        assert conn.get_transaction_status() == INTRANS
        with pytest.raises(psycopg2.errors.UndefinedColumn) as caught:
            conn.execute("SELECT nonsense, %s", (1,), prepare=True)
        assert caught.value.diag.statement_position == "8"
        assert conn.get_transaction_status() == INERROR
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            conn.execute("SELECT %s", (1,), prepare=True)
        conn.rollback()
    with pytest.raises(psycopg2.errors.UndefinedColumn):
        conn.execute("SELECT nonsense, %s", (1,), prepare=True)
    assert conn.get_transaction_status() == INERROR
    conn.rollback()
    assert usable(conn)


def test_rolled_back(conn):
    """PREPARE isn't a part of the transaction."""
    conn.execute("SELECT %s", (1,), prepare=True)
    conn.rollback()
    with conn.transaction():
        conn.execute("SELECT %s + 1", (1,), prepare=True)
        with conn.transaction():
            conn.execute("SELECT %s + 2", (1,), prepare=True)
            raise greenpg.Rollback()
    assert prepared(conn) == 3
    for query in ("SELECT %s", "SELECT %s + 1", "SELECT %s + 2"):
        cur = conn.execute(query, (1,), prepare=True)
        assert cur.query.startswith(b"EXECUTE")


@pytest.mark.parametrize("is_autocommit", [False, True])
def test_schema_changes(conn, is_autocommit):
    conn.autocommit = is_autocommit
    query = "SELECT * FROM item WHERE id = %s"
    assert len(conn.execute(query, (1,), prepare=True).fetchone()) == 5
    conn.execute("ALTER TABLE item ADD more int")
    conn.commit()
    assert len(conn.execute(query, (1,), prepare=True).fetchone()) == 6  # 0A000, executed anew: nothing was lost
    assert conn.get_transaction_status() == (IDLE if is_autocommit else INTRANS)
    conn.commit()
    assert len(conn.execute(query, (1,), prepare=True).fetchone()) == 6
    conn.execute("ALTER TABLE item DROP more")
    conn.commit()
    if is_autocommit:
        return
    conn.execute("UPDATE item SET name = 'x'")
    with pytest.raises(psycopg2.errors.FeatureNotSupported):
        conn.execute(query, (1,), prepare=True)
    conn.rollback()
    assert len(conn.execute(query, (1,), prepare=True).fetchone()) == 5  # the transaction, repeated


@pytest.mark.parametrize("dropping", ["DEALLOCATE ALL", "DISCARD PLANS; DEALLOCATE ALL"])
def test_deallocated(conn, dropping):
    for _ in range(2):
        assert conn.execute("SELECT %s", (5,), prepare=True).fetchone() == (5,)
        conn.execute(dropping)
        conn.commit()
        assert conn.execute("SELECT %s", (6,), prepare=True).fetchone() == (6,)
        conn.commit()
    conn.execute("SELECT %s", (7,), prepare=True)
    conn.reset()
    assert conn.execute("SELECT %s", (8,), prepare=True).fetchone() == (8,)


def test_one_by_one(conn):
    """Random statements, prepared and not: the same results, status and rows."""
    rng = random.Random(4)
    queries = [
        ("SELECT name, price FROM item WHERE id > %s ORDER BY id LIMIT %s", lambda: (rng.randrange(9), 3)),
        ("UPDATE item SET name = %s WHERE id = %s RETURNING id, name", lambda: (f"é{rng.random()}", rng.randrange(9))),
        ("INSERT INTO item (id, price) VALUES (%s, %s)", lambda: (rng.randrange(40), rng.choice([1, 1.5, None]))),
        ("DELETE FROM item WHERE id = %(id)s AND %(id)s > 5", lambda: {"id": rng.randrange(40)}),
        ("SELECT count(*), sum(price) FROM item", lambda: None),
    ]
    for is_autocommit in (False, True):
        conn.autocommit = is_autocommit
        for _ in range(80):
            query, make = rng.choice(queries)
            arguments = make()
            found = []
            for prepare in (None, True):
                if is_autocommit:
                    conn.execute("BEGIN")
                conn.execute("SAVEPOINT before")
                cur = conn.cursor()
                try:
                    cur.execute(query, arguments, prepare=prepare)
                    rows = cur.fetchall() if cur.description else None
                    found.append((rows, cur.rowcount, cur.statusmessage, conn.get_transaction_status()))
                except psycopg2.IntegrityError as error:
                    found.append((error.pgcode, conn.get_transaction_status()))
                if prepare is None:
                    conn.execute("ROLLBACK TO before")
                conn.execute("ROLLBACK TO before" if found[-1][-1] == INERROR else "RELEASE before")
                if is_autocommit:
                    conn.execute("COMMIT")
            assert found[0] == found[1]
        conn.rollback()


# -- round trips, pools, poolers


def test_round_trips(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        dsn = extensions.make_dsn(server.tcp_dsn, port=counter.port)
        with greenpg.ConnectionPool(dsn, min_size=1, prepare_threshold=1) as pool:
            found = [counter.of(lambda: pool.fetchval("SELECT %s + 1", (1,))) for _ in range(4)]
            assert found[-1] == 1 and max(found[1:]) == 2 and sum(found[1:]) == 4

            def transaction():
                with pool.cursor() as cur:
                    cur.execute("SELECT %s + 1", (1,))
                    assert cur.query.startswith(b"EXECUTE")

            assert counter.of(transaction) == 2
            assert pool.fetchval("SELECT pg_current_xact_id_if_assigned()") is None


def test_pool(make_pool):
    pool = make_pool(min_size=1, prepare_threshold=2, reset="session")
    for n in range(6):
        with pool.cursor() as cur:
            for _ in range(4):
                cur.execute("SELECT %s", (n,))
                assert cur.fetchone() == (n,)
            assert cur.query.startswith(b"EXECUTE")
    assert pool.fetchall("SELECT name FROM pg_prepared_statements") == []  # the reset drops them
    with pool.connection() as conn:
        conn.prepare_threshold = None
    with pool.connection() as conn:
        assert conn.prepare_threshold == 2
    with pytest.raises(ValueError, match="prepare_threshold"):
        make_pool(prepare_threshold=-1)


def test_behind_a_pooler(conn, monkeypatch):
    """Which is noticed by its process numbers."""
    monkeypatch.setattr(type(conn), "get_backend_pid", lambda self: 1)
    for _ in range(3):
        assert conn.execute("SELECT %s", (1,), prepare=True).fetchone() == (1,)
    assert conn._prepared.is_off and conn.execute("SELECT %s", (1,), prepare=True).query == b"SELECT 1"


def test_events(make_pool):
    events = []
    pool = make_pool(min_size=1, prepare_threshold=1, on_event=events.append)
    for _ in range(3):
        pool.fetchval("SELECT %s", (1,))
    names = [event.name for event in events if event.name in ("prepare", "query")]
    assert names == ["query", "prepare", "query", "query"]
    assert next(event for event in events if event.name == "prepare").statement == "SELECT %s"


def test_adapters_of_the_program(conn):
    class Odd(extensions.Int):
        pass

    extensions.register_adapter(int, lambda value: extensions.AsIs(f"'{value}x'"))
    try:
        for _ in range(2):
            assert conn.execute("SELECT %s", (1,), prepare=True).fetchone() == ("1x",)
    finally:
        extensions.register_adapter(int, extensions.Int)


def test_misuse(conn):
    for arguments in ((), (1, 2), "xy"):
        with pytest.raises((IndexError, TypeError)):
            conn.execute("SELECT %s + 1", arguments, prepare=True)
    with pytest.raises(KeyError):
        conn.execute("SELECT %(a)s", {"b": 1}, prepare=True)
    with pytest.raises(psycopg2.ProgrammingError):
        conn.execute("", prepare=True)
    with conn.pipeline():
        assert conn.execute("SELECT %s", (1,), prepare=True).fetchone() == (1,)
    conn.close()
    with pytest.raises(psycopg2.InterfaceError):
        conn.cursor().execute("SELECT 1", prepare=True)


@pytest.mark.only_hub("gevent", "eventlet")
def test_killed(conn, admin):
    conn.execute("SELECT pg_sleep(%s)", (0,), prepare=True)
    conn.commit()
    task = Task(lambda: conn.execute("SELECT pg_sleep(%s)", (60,), prepare=True))
    wait_until(lambda: statements_running(admin) and is_waiting(conn))
    with pytest.raises(ConnectionInUse):
        conn.execute("SELECT %s", (1,), prepare=True)
    error = Killed()
    task.throw(error)
    task.join()
    assert task.error is error and usable(conn)
    assert conn.execute("SELECT %s", (2,), prepare=True).fetchone() == (2,)
