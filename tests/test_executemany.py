"""executemany() in pages: few round trips, psycopg2's results and errors, the failing row, interruptions."""

import dataclasses
import io
import random
import sys
import time

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from kit import Killed, Task, is_waiting, psycopg2s_executemany, run_all, wait_until
from psycopg2 import _psycopg, extensions, sql

import greenpg
from greenpg.connection.bulk import executemany
from greenpg.errors import ConnectionInUse, DeadlineExceeded
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
IDLE, ACTIVE, INTRANS, INERROR = (
    extensions.TRANSACTION_STATUS_IDLE,
    extensions.TRANSACTION_STATUS_ACTIVE,
    extensions.TRANSACTION_STATUS_INTRANS,
    extensions.TRANSACTION_STATUS_INERROR,
)
INSERT = "INSERT INTO item (id, name) VALUES (%s, %s)"
pytestmark = pytest.mark.usefixtures("item")


@pytest.fixture
def cur(conn):
    return conn.cursor()


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(executemany, "PAGE_ROWS", 7)


def numbered(count, start=0):
    return [(n, f"name {n}; it's 50 % é") for n in range(start, start + count)]


def content(cur):
    cur.execute("SELECT id, name FROM item ORDER BY id")
    return cur.fetchall()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 14, 15, 16, 50])
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "generator"])
def test_as_psycopg2(conn, cur, small_pages, count, kind):
    cur.executemany(INSERT, kind(numbered(count)))
    found = cur.rowcount, cur.statusmessage, cur.query, cur.description
    assert content(cur) == numbered(count)
    conn.rollback()
    other = conn.cursor()
    psycopg2s_executemany(other, INSERT, numbered(count))
    assert found == (other.rowcount, other.statusmessage, other.query, other.description)
    conn.rollback()
    assert content(cur) == []


def test_few_messages_for_many_rows(conn, cur, monkeypatch):
    pages = []
    send = executemany.PageChannel.send
    monkeypatch.setattr(executemany.PageChannel, "send", lambda self, page: (pages.append(page), send(self, page))[1])
    cur.executemany(INSERT, numbered(1000))
    assert len(pages) == 1  # and the first and the last row
    assert cur.rowcount == 1000
    pages.clear()
    cur.executemany(INSERT, numbered(2500, 1000))
    assert len(pages) == 3
    pages.clear()
    cur.executemany(INSERT, [(n, "x" * 300_000) for n in range(5000, 5010)])
    assert [len(page) // 300_000 for page in pages] == [4, 4]
    conn.commit()
    cur.execute("SELECT count(*) FROM item")
    assert cur.fetchone() == (3510,)


def test_rowcount_is_the_sum(conn, cur, small_pages):
    cur.executemany(INSERT, numbered(30))
    cur.executemany("UPDATE item SET name = 'x' WHERE id < %s", [(n,) for n in range(20)])
    assert cur.rowcount == sum(range(20))
    cur.executemany("DELETE FROM item WHERE id = %(id)s", ({"id": n} for n in range(25, 40)))
    assert cur.rowcount == 5
    cur.execute("SELECT 1")
    assert cur.rowcount == 1
    assert cur.statusmessage == "SELECT 1"


@pytest.mark.parametrize(
    "query", ["SELECT %s::int", "SET application_name = %s", "INSERT INTO item VALUES (%s) RETURNING id"]
)
def test_statements_of_other_kinds(conn, cur, small_pages, query):
    rows = [(n,) for n in range(20)]
    cur.executemany(query, rows)
    found = cur.rowcount, cur.statusmessage, cur.description
    with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
        cur.fetchall()
    conn.rollback()
    other = conn.cursor()
    psycopg2s_executemany(other, query, rows)
    assert found == (other.rowcount, other.statusmessage, other.description)


@pytest.mark.parametrize(
    "query",
    [
        INSERT + ";",
        INSERT + " -- a comment",
        INSERT + " /* ; */",
        INSERT.encode(),
        sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(sql.Identifier("item")),
        "INSERT INTO item VALUES (%s, %s || ';')",
        "DELETE FROM item WHERE id = -1; " + INSERT,
    ],
    ids=["semicolon", "comment", "comment with semicolon", "bytes", "sql", "literal", "two commands"],
)
def test_texts_of_all_sorts(cur, small_pages, query):
    cur.executemany(query, numbered(20))
    assert cur.rowcount == 20
    assert [row[0] for row in content(cur)] == list(range(20))


def test_autocommit_commits_row_by_row(conn, cur):
    conn.autocommit = True
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany(INSERT, [*numbered(10), (3, "again"), (11, "never")])
    assert caught.value.row_index == 10
    assert content(cur) == numbered(10)
    cur.executemany(INSERT, numbered(5, 100))
    assert cur.rowcount == 5


def test_an_explicit_transaction_in_autocommit_gets_pages(conn, cur, small_pages):
    conn.autocommit = True
    cur.execute("BEGIN")
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany(INSERT, [*numbered(20), (3, "again"), (21, "never")])
    assert caught.value.row_index == 20
    cur.execute("ROLLBACK")
    assert content(cur) == []


BAD = {
    "unique": ((5, "again"), psycopg2.errors.UniqueViolation),
    "type": (("ü", "x"), psycopg2.errors.InvalidTextRepresentation),
    "syntax": ((extensions.AsIs("éé, nonsense ((("), "x"), psycopg2.errors.SyntaxError),
    "column": ((extensions.AsIs("nonsense"), "x"), psycopg2.errors.UndefinedColumn),
}


@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 13, 29])
@pytest.mark.parametrize("kind", list(BAD))
def test_errors(conn, small_pages, kind, place):
    bad, error_class = BAD[kind]
    query = "INSERT INTO item (id, name)\n  VALUES (%s,\n    %s)"
    rows = [(n + 10, f"é\n\r\nname {n}") for n in range(30)]
    rows[place] = bad

    def fail(run):
        cur = conn.cursor()
        cur.execute("INSERT INTO item VALUES (5)")
        with pytest.raises(error_class) as caught:
            run(cur, query, rows)
        assert conn.get_transaction_status() == INERROR
        assert cur.rowcount == -1
        shown = cur.query, cur.statusmessage, cur.rownumber, cur.description
        conn.rollback()
        assert content(cur) == []
        return caught.value, shown

    own, shown_by_psycopg2 = fail(psycopg2s_executemany)
    ours, shown = fail(lambda cur, query, rows: cur.executemany(query, rows))
    assert shown == shown_by_psycopg2
    assert ours.row_index == place
    assert str(ours) == str(own)
    assert (ours.pgcode, ours.pgerror) == (own.pgcode, own.pgerror)
    for field in ("message_primary", "statement_position", "constraint_name", "table_name", "severity", "sqlstate"):
        assert getattr(ours.diag, field) == getattr(own.diag, field)
    if sys.version_info >= (3, 11):
        assert ours.__notes__ == [f"executemany(): row {place}, counted from 0"]


@pytest.mark.parametrize("place", [0, 1, 20, 29])
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "generator"])
def test_arguments_that_cant_be_adapted(conn, cur, small_pages, kind, place):
    rows = numbered(30)
    rows[place] = (place, object())
    with pytest.raises(psycopg2.ProgrammingError, match="can't adapt") as caught:
        cur.executemany(INSERT, kind(rows))
    assert caught.value.row_index == place
    assert conn.get_transaction_status() == (INTRANS if place else IDLE)
    assert cur.query is None
    conn.rollback()
    rows[place] = (place,)
    with pytest.raises(IndexError) as caught:
        cur.executemany(INSERT, kind(rows))
    assert caught.value.row_index == place
    assert conn.get_transaction_status() == (INTRANS if place else IDLE)


def test_a_generator_may_fail_and_may_use_the_connection(conn, cur, small_pages):
    def rows(other):
        for n in range(30):
            other.execute("SELECT %s + 1", (n,))
            yield (n, str(other.fetchone()[0]))
            if n == 25:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        cur.executemany(INSERT, rows(conn.cursor()))
    assert not hasattr(caught.value, "row_index")
    assert cur.rowcount == 26
    assert conn.get_transaction_status() == INTRANS
    assert content(cur) == [(n, str(n + 1)) for n in range(26)]


def test_a_generator_that_fails_in_autocommit(conn, cur):
    conn.autocommit = True
    with pytest.raises(ZeroDivisionError):
        cur.executemany(INSERT, ((n, "x") if n < 7 else 1 / 0 for n in range(9)))
    assert cur.rowcount == 7
    cur.executemany(INSERT, [(n, "x") for n in range(7, 9)])
    with pytest.raises(IndexError) as caught:
        cur.executemany(INSERT, [(9, "x"), (10,)])
    assert caught.value.row_index == 1
    assert cur.rowcount == 1
    assert len(content(cur)) == 10


def test_the_sum_is_psycopg2s_own(conn, cur):
    """A statement that is refused leaves it."""
    cur.executemany(INSERT, numbered(3))
    with pytest.raises(IndexError):
        cur.execute("SELECT %s, %s", (1,))
    assert cur.rowcount == 3
    cur.close()
    assert cur.rowcount == 3


def test_arguments_that_are_none_drop_the_old_result(cur):
    cur.execute("SELECT 1")
    with pytest.raises(TypeError, match="not iterable"):
        cur.executemany("SELECT 1", None)
    assert cur.rowcount == -1
    assert cur.fetchall() == []


# -- generators and adapters that use the connection


def swallow(call):
    try:
        call()
    except psycopg2.Error:
        pass


def raise_(error):
    raise error


ACTS = {
    "commit": lambda conn, cur: conn.commit(),
    "rollback": lambda conn, cur: conn.rollback(),
    "count": lambda conn, cur: conn.seen.append(count_items(conn)),
    "same cursor": lambda conn, cur: cur.execute("UPDATE item SET name = name || '!'"),
    "other, commit": lambda conn, cur: (conn.cursor().execute("DELETE FROM item"), conn.commit()),
    "autocommit": lambda conn, cur: (conn.commit(), setattr(conn, "autocommit", True)),
    "autocommit for a while": lambda conn, cur: (
        conn.commit(),
        setattr(conn, "autocommit", not conn.autocommit),
        conn.seen.append(conn.autocommit),
    ),
    "autocommit in a transaction": lambda conn, cur: setattr(conn, "autocommit", True),
    "readonly": lambda conn, cur: (conn.commit(), setattr(conn, "readonly", True)),
    "with conn": lambda conn, cur: conn.__enter__() and conn.__exit__(None, None, None),
    "savepoint": lambda conn, cur: conn.cursor().execute("SAVEPOINT s"),
    "back to the savepoint": lambda conn, cur: conn.cursor().execute("SAVEPOINT s; ROLLBACK TO s"),
    "an error": lambda conn, cur: conn.cursor().execute("SELECT nonsense"),
    "an error, swallowed": lambda conn, cur: swallow(lambda: conn.cursor().execute("SELECT nonsense")),
    "an error, rolled back": lambda conn, cur: (
        swallow(lambda: conn.cursor().execute("SELECT nonsense")),
        conn.rollback(),
    ),
    "lock, commit by SQL": lambda conn, cur: conn.cursor().execute("COMMIT"),
    "executemany": lambda conn, cur: conn.cursor().executemany("UPDATE item SET name = %s", [("u",)] * 9),
    "executemany of the same cursor": lambda conn, cur: cur.executemany("UPDATE item SET name = %s", [("u",)] * 9),
    "duplicate": lambda conn, cur: conn.cursor().execute("INSERT INTO item VALUES (%s)", (cur.rownumber + 8,)),
    "named cursor": lambda conn, cur: conn.seen.append(first_of_named(conn)),
    "close the connection": lambda conn, cur: conn.close(),
    "raise": lambda conn, cur: raise_(ZeroDivisionError("in the rows")),
    "raise one of psycopg2's": lambda conn, cur: raise_(psycopg2.DataError("in the rows")),
}


def count_items(conn):
    with conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM item")
        return cur.fetchone()[0]


def first_of_named(conn):
    with conn.cursor("named") as cur:
        cur.execute("SELECT max(id) FROM item")
        return cur.fetchone()


class Acting:
    """A value whose adapter does something with the connection."""

    def __init__(self, value, act=None):
        self.value = value
        self.act = act

    def __conform__(self, protocol):
        return self if protocol is extensions.ISQLQuote else None

    def prepare(self, conn):
        pass

    def getquoted(self):
        if self.act is not None:
            self.act()
        return str(self.value).encode()


def outcome_of(conn, admin, way, act, places, bad_row):
    """All that can be seen of an executemany() whose generator, or adapter, does something at some of the rows."""
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS item; CREATE TABLE item (id int UNIQUE, name text)")
    conn.seen = []
    cur = conn.cursor()

    def value(n):
        return 3 if n == bad_row else n

    def generator():
        for n in range(30):
            if n in places:
                act(conn, cur)
            yield (value(n), f"name {n}")

    def adapters():
        return [(Acting(value(n), (lambda: act(conn, cur)) if n in places else None), f"name {n}") for n in range(30)]

    result = None
    try:
        cur.executemany(INSERT, generator() if way == "generator" else adapters())
    except Exception as error:
        result = type(error).__name__, str(error).strip(), getattr(error, "pgcode", None)
    if conn.closed and isinstance(result, tuple) and result[0] in ("OperationalError", "InterfaceError"):
        result = "refused"  # psycopg2's executemany() sends the rows on, to a null pointer
    state = conn.closed, conn.status, conn.get_transaction_status(), conn.autocommit, conn.seen
    rowcount = cur.rowcount if result is None else None
    with admin.cursor() as looking:
        looking.execute("SELECT * FROM item ORDER BY id")
        committed = looking.fetchall()
    inside = None
    if not conn.closed and conn.get_transaction_status() != INERROR:
        cur.execute("SELECT * FROM item ORDER BY id")
        inside = cur.fetchall()
    if not conn.closed:
        conn.rollback()
    return result, state, rowcount, committed, inside


@pytest.fixture
def public_item(admin):
    yield
    with admin.cursor() as cur:
        cur.execute("DROP TABLE item")


class Plain(extensions.connection):
    """psycopg2's own, with room for attributes."""


@pytest.mark.parametrize("way", ["generator", "adapter"])
@pytest.mark.parametrize("act", ACTS)
def test_user_code_that_uses_the_connection(dsn, admin, public_item, small_pages, way, act):
    """As psycopg2's own executemany(), which executes each row before it asks for the next one."""
    for places in ((0,), (1,), (2,), (8,), (9,), (12,), (29,), (3, 4), (5, 20), range(10, 13)):
        for bad_row in (None, 10):
            both = []
            for conn in (Plain(dsn), greenpg.connect(dsn)):
                try:
                    both.append(outcome_of(conn, admin, way, ACTS[act], places, bad_row))
                finally:
                    conn.close()
            assert both[1] == both[0], f"{act} at {places}, bad row {bad_row}"


@green_only
@pytest.mark.parametrize("way", ["generator", "adapter"])
def test_killed_in_the_users_code(conn, cur, small_pages, way):
    """Thrown in while the generator, or an adapter, waits for a statement of its own; and while the rows before are
    executed for it."""
    for before in ("0", "pg_sleep(60)"):

        def act():
            conn.cursor().execute("SELECT pg_sleep(60)")

        def rows():
            for n in range(30):
                if n == 10 and way == "generator":
                    act()
                yield (
                    extensions.AsIs(before if n == 9 else "0"),  # noqa: B023
                    Acting(n, act if n == 10 and way == "adapter" else None),
                )

        task = Task(cur.executemany, "SELECT %s, %s", rows() if way == "generator" else list(rows()))
        wait_until(lambda: conn._gate.owner is task.native)  # noqa: B023
        hub().sleep(0.1)
        error = TimeoutError("too slow")
        task.throw(error)
        task.join()
        assert task.error is error
        assert not conn.closed and not is_waiting(conn)
        assert conn.get_transaction_status() == INERROR
        conn.rollback()
        cur.executemany(INSERT, numbered(100))
        assert content(cur) == numbered(100)
        conn.rollback()


def test_copy_in_a_generator(conn, cur, small_pages):
    """psycopg2 refuses it in green mode."""

    def rows():
        for n in range(30):
            if n in (0, 1, 12):
                other = conn.cursor()
                other.copy_from(io.StringIO(f"{1000 + n}\t{count_items(conn)}\n"), "item")
                with other.copy("COPY item TO STDOUT") as copy:
                    assert len(list(copy.rows())) == count_items_by_psycopg2(n)
            yield (n, "x")

    def count_items_by_psycopg2(n):
        return n + {0: 1, 1: 2, 12: 3}[n]

    cur.executemany(INSERT, rows())
    assert [row for row in content(cur) if row[0] >= 1000] == [(1000, "0"), (1001, "2"), (1012, "14")]


@green_only
def test_other_tasks_between_two_pages(conn, cur, small_pages):
    """While a generator waits, another task may use the connection, as between two statements of psycopg2's."""
    found = []

    def rows():
        for n in range(30):
            if n == 20:
                Task(lambda: found.append(count_items(conn))).join()
            yield (n, "x")

    cur.executemany(INSERT, rows())
    assert 0 < found[0] <= 20
    assert len(content(cur)) == 30


def test_user_code_that_hides_the_error_of_a_row_before(conn, cur, small_pages):
    """executemany() raises it all the same."""

    def rows():
        for n in range(30):
            if n == 12:
                for _ in range(2):
                    with pytest.raises(psycopg2.errors.UniqueViolation):
                        conn.rollback()
            yield (3 if n == 11 else n, "x")

    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.executemany(INSERT, rows())
    assert caught.value.row_index == 11
    assert conn.get_transaction_status() == INERROR


def test_errors_that_refuse_attributes(conn, cur, small_pages):
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        reason: str

    for place in (0, 1, 20):
        error = Frozen("adapter")
        rows = [(Acting(n, (lambda: raise_(error)) if n == place else None), "x") for n in range(30)]  # noqa: B023
        with pytest.raises(Frozen) as caught:
            cur.executemany(INSERT, rows)
        assert caught.value is error
        conn.rollback()


def test_an_argument_that_changes_the_number_of_commands_is_reported(conn, cur):
    rows = [*numbered(5), (extensions.AsIs("5, 'x'); INSERT INTO item VALUES (6"), "y"), *numbered(3, 7)]
    with pytest.raises(psycopg2.ProgrammingError, match=r"rows 1 to 7 .* were 8 commands"):
        cur.executemany(INSERT, rows)
    conn.rollback()
    cur.execute("SELECT 1")


@pytest.mark.parametrize("query", ["COPY item TO STDOUT -- %s", "COPY item FROM STDIN -- %s"])
def test_copy_is_refused(conn, cur, query):
    with pytest.raises(psycopg2.ProgrammingError, match="can't execute COPY"):
        cur.executemany(query, [(1,), (2,), (3,)])
    conn.rollback()
    cur.execute("SELECT 1")


def test_copy_by_an_argument(conn, cur):
    with pytest.raises(psycopg2.NotSupportedError, match="COPY"):
        cur.executemany("%s", [(extensions.AsIs(text),) for text in ("SELECT 1", "COPY item TO STDOUT", "SELECT 2")])
    assert conn.closed


def test_empty_query(cur):
    with pytest.raises(psycopg2.ProgrammingError, match="empty query"):
        cur.executemany("", [(), (), ()])


def test_states_in_which_psycopg2_refuses(conn, dsn):
    with pytest.raises(psycopg2.ProgrammingError, match="named cursor"):
        conn.cursor("named").executemany(INSERT, numbered(3))
    with pytest.raises(TypeError, match="iterable"):
        conn.cursor().executemany(INSERT, 5)
    cur = conn.cursor()
    cur.close()
    with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
        cur.executemany(INSERT, numbered(3))
    with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
        cur.executemany(INSERT, (1 / 0 for _ in range(3)))  # which is not asked for a row
    with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
        cur.executemany(INSERT, None)
    cur = conn.cursor()
    conn.close()
    with pytest.raises(psycopg2.InterfaceError, match="closed"):
        cur.executemany(INSERT, numbered(3))


@pytest.mark.parametrize(
    "factory",
    [psycopg2.extras.DictCursor, psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor],
    ids=lambda factory: factory.__name__,
)
def test_cursor_factories(conn, factory):
    with conn.cursor(cursor_factory=factory) as cur:
        cur.executemany(INSERT, numbered(2000))
        assert cur.rowcount == 2000
        cur.execute("SELECT id FROM item WHERE id = 1999")
        row = cur.fetchone()
        assert (row.id if factory is psycopg2.extras.NamedTupleCursor else row["id"]) == 1999


def test_notices_and_notifications(conn, cur):
    cur.execute("LISTEN news")
    conn.commit()
    del conn.notices[:]
    cur.execute(
        "CREATE FUNCTION pg_temp.shout(t text) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE '%', t; END$$"
    )
    cur.executemany("SELECT pg_temp.shout(%s)", [(f"n{n}",) for n in range(40)])
    assert [notice.split()[-1] for notice in conn.notices] == [f"n{n}" for n in range(40)]
    cur.executemany("SELECT pg_notify('news', %s)", [(f"{n}",) for n in range(2000)])
    conn.commit()
    assert len(conn.notifies) == 2000


def test_a_rule_that_adds_rows_to_a_result(conn, cur):
    cur.execute("CREATE TABLE public.ruled (id int)")
    try:
        cur.execute("CREATE RULE tell AS ON INSERT TO public.ruled DO ALSO SELECT 'told' AS a, NEW.id")
        cur.executemany("INSERT INTO public.ruled VALUES (%s)", [(n,) for n in range(30)])
        found = cur.rowcount
        psycopg2s_executemany(cur, "INSERT INTO public.ruled VALUES (%s)", [(n,) for n in range(30)])
        assert found == extensions.cursor.rowcount.__get__(cur)
    finally:
        conn.rollback()


def slow_rows(count=30):
    return [(0.2,)] * count


SLOW = "SELECT pg_sleep(%s)"


@green_only
@pytest.mark.parametrize("after", [0.05, 0.3, 0.5])
def test_killed(conn, cur, admin, after):
    task = Task(cur.executemany, SLOW, slow_rows())
    hub().sleep(after)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    assert not conn.closed and not is_waiting(conn) and conn._gate.call is None
    assert conn.get_transaction_status() == INERROR
    conn.rollback()
    cur.executemany(INSERT, numbered(100))
    assert cur.rowcount == 100
    conn.commit()
    assert content(cur) == numbered(100)
    with admin.cursor() as looking:
        looking.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND application_name = 'executemany'"
        )
        assert looking.fetchone() == (0,)


@green_only
@pytest.mark.parametrize("comes_back", [True, False])
def test_killed_while_sending(through_proxy, monkeypatch, comes_back):
    if not comes_back:
        monkeypatch.setattr("greenpg.connection.interrupting.END_TIMEOUT", 0.3)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    conn.interruption_grace = 10.0 if comes_back else 0.3
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE item (id int, name text)")

    def rows():
        for n in range(100):
            if n == 1:
                proxy.stall()
            yield n, "x" * (5_000_000 if n else 1)

    task = Task(cur.executemany, INSERT, rows())
    wait_until(lambda: conn._gate.owner is task.native)
    hub().sleep(0.3)
    killed = Killed()
    task.throw(killed)
    hub().sleep(0.05)
    if comes_back:
        proxy.resume()
    task.join()
    assert task.error is killed
    assert bool(conn.closed) is not comes_back
    if comes_back:
        conn.rollback()
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)
    conn.close()
    proxy.resume()


def test_deadline(conn, cur):
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded), conn.deadline(0.5):
        cur.executemany(SLOW, slow_rows())
    assert time.monotonic() - started < 3
    assert conn.get_transaction_status() == INERROR
    conn.rollback()
    cur.execute("SELECT 1")


@pytest.mark.usual_times
@green_only
def test_deadline_when_the_network_is_gone(through_proxy, monkeypatch):
    monkeypatch.setattr("greenpg.connection.interrupting.END_TIMEOUT", 0.3)
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    cur = conn.cursor()

    def rows():
        for n in range(100):
            if n == 50:
                proxy.stall()
            yield (n,)

    with pytest.raises(DeadlineExceeded), conn.deadline(0.5):
        cur.executemany("SELECT %s", rows())
    assert conn.closed
    proxy.resume()


@green_only
def test_other_tasks_are_refused(conn, cur):
    task = Task(cur.executemany, SLOW, slow_rows(4))
    hub().sleep(0.3)
    for call in (conn.commit, conn.rollback, lambda: cur.execute("SELECT 1"), lambda: cur.executemany(SLOW, [(1,)])):
        with pytest.raises(ConnectionInUse):
            call()
    task.result()
    conn.rollback()


@green_only
def test_closed_by_another_task(conn, cur):
    task = Task(cur.executemany, SLOW, slow_rows())
    hub().sleep(0.3)
    conn.close()
    task.join()
    assert isinstance(task.error, psycopg2.OperationalError)
    assert conn.closed


def test_the_server_ends_the_connection(conn, cur, admin):
    pid = conn.info.backend_pid
    task = Task(cur.executemany, SLOW, slow_rows())
    hub().sleep(0.5)
    with admin.cursor() as killer:
        killer.execute("SELECT pg_terminate_backend(%s)", (pid,))
    task.join()
    assert isinstance(task.error, psycopg2.OperationalError)
    assert task.error.pgcode == "57P01"
    assert task.error.row_index > 0
    wait_until(lambda: conn.closed)


def test_the_network_is_cut(through_proxy):
    proxy, dsn = through_proxy
    conn = greenpg.connect(dsn)
    task = Task(conn.cursor().executemany, SLOW, slow_rows())
    hub().sleep(0.5)
    proxy.cut()
    task.join()
    assert isinstance(task.error, psycopg2.OperationalError)
    assert conn.closed
    conn.close()


def test_cancelled_by_another_task(conn, cur):
    task = Task(cur.executemany, SLOW, slow_rows())
    hub().sleep(0.5)
    conn.cancel()
    task.join()
    assert isinstance(task.error, psycopg2.errors.QueryCanceled)
    assert task.error.row_index in (1, 2, 3)
    conn.rollback()
    cur.execute("SELECT 1")


def test_tasks_at_the_same_time(dsn):
    def run():
        conn = greenpg.connect(dsn)
        with conn.cursor() as cur:
            cur.execute("CREATE TEMP TABLE item (id int, name text)")
            cur.executemany(INSERT, numbered(3000))
            assert content(cur) == numbered(3000)
        conn.close()

    run_all([run] * 4)


def test_in_a_pool(make_pool):
    pool = make_pool(min_size=1)
    with pool.cursor() as cur:
        cur.execute("CREATE TEMP TABLE item (id int, name text)")
        cur.executemany(INSERT, numbered(3000))
    with pool.cursor() as cur:
        assert content(cur) == numbered(3000)


def test_without_a_wait_callback(dsn):
    callback = extensions.get_wait_callback()
    conn = greenpg.connect(dsn)
    _psycopg.set_wait_callback(None)
    try:
        cur = conn.cursor()
        cur.execute("CREATE TEMP TABLE item (id int UNIQUE, name text)")
        cur.executemany(INSERT, numbered(3000))
        assert cur.rowcount == 3000
        with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
            cur.executemany(INSERT, [*numbered(10, 5000), (7, "again"), (1, "")])
        assert caught.value.row_index == 10
        conn.close()
    finally:
        _psycopg.set_wait_callback(callback)


@green_only
def test_kills_at_any_moment(conn, cur, monkeypatch):
    monkeypatch.setattr(executemany, "PAGE_ROWS", 100)
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    killed = 0
    for kind in (list, iter) * 15:
        cur.execute("INSERT INTO item VALUES (-1)")
        task = Task(cur.executemany, INSERT, kind(numbered(1500)))
        hub().sleep(dice.uniform(0, 0.03))
        task.throw(Killed())
        task.join()
        assert task.error is None or isinstance(task.error, Killed)
        assert not conn.closed and not is_waiting(conn) and conn._gate.call is None and conn._gate.interruption is None
        assert conn.get_transaction_status() in (INTRANS, INERROR)
        if task.error is None:
            assert len(content(cur)) == 1501
        killed += task.error is not None
        conn.rollback()
        assert content(cur) == []
        conn.rollback()
    assert killed


def test_a_closed_cursor_still_shows_the_last_rows_statement(dsn):
    conn = greenpg.connect(dsn)
    conn.autocommit = True
    with conn.cursor() as cur:
        cur.executemany("SELECT %s", [(1,), (2,), (3,)])
    for _ in range(2):
        assert (cur.query, cur.statusmessage, cur.rowcount) == (b"SELECT 3", "SELECT 1", 3)
        with pytest.raises(psycopg2.InterfaceError):
            cur.execute("SELECT 4")
    conn.close()
