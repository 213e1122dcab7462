"""COPY in green mode: psycopg2's three methods, and psycopg 3's `with cur.copy()`."""

import datetime
import decimal
import io
import pickle
import re
import tempfile
import time
import uuid

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from kit import Killed, Task, is_waiting, run_all, usable, wait_until
from psycopg2 import _psycopg, extensions

import greenpg
from greenpg.connection import interrupting
from greenpg.errors import ConnectionInUse, CopyInProgress, DeadlineExceeded
from greenpg.hubs import hub
from greenpg.libpq.copy_reader import CopyReader

green_only = pytest.mark.only_hub("gevent", "eventlet")
IDLE, ACTIVE, INTRANS, INERROR = (
    extensions.TRANSACTION_STATUS_IDLE,
    extensions.TRANSACTION_STATUS_ACTIVE,
    extensions.TRANSACTION_STATUS_INTRANS,
    extensions.TRANSACTION_STATUS_INERROR,
)
pytestmark = pytest.mark.usefixtures("item")
# In the select list, generate_series doesn't make its rows beforehand.
ENDLESS = "COPY (SELECT generate_series(1, 100000000), repeat('x', 100)) TO STDOUT"


@pytest.fixture
def cur(conn):
    return conn.cursor()


def rows(conn):
    with conn.cursor() as cur:
        cur.execute("SELECT * FROM item ORDER BY id")
        return cur.fetchall()


class Reader:
    """The least that copy_from asks for."""

    def __init__(self, chunks, error=None):
        self.chunks = list(chunks)
        self.error = error
        self.sizes = []

    def read(self, size):
        self.sizes.append(size)
        if self.chunks:
            return self.chunks.pop(0)
        if self.error is not None:
            raise self.error
        return b""


class Writer:
    """The least that copy_to asks for."""

    def __init__(self, error=None, after=0):
        self.written = []
        self.error = error
        self.after = after

    def write(self, data):
        if self.error is not None and len(self.written) >= self.after:
            raise self.error
        self.written.append(data)


# -- copy_from, copy_to, copy_expert


@pytest.mark.parametrize(
    "make_file", [io.StringIO, lambda text: io.BytesIO(text.encode()), lambda text: Reader([text])]
)
def test_copy_from(conn, cur, make_file):
    cur.copy_from(make_file("1\tone\n2\t\\N\n3\tdrei €\n"), "item")
    assert (cur.rowcount, cur.statusmessage) == (3, "COPY 3")
    assert cur.query.startswith(b'COPY "item" FROM stdin')
    assert (conn.status, conn.get_transaction_status()) == (extensions.STATUS_BEGIN, INTRANS)
    assert rows(conn) == [(1, "one"), (2, None), (3, "drei €")]
    conn.rollback()
    assert rows(conn) == [], "it was part of the transaction"


def test_copy_from_options_and_size(conn, cur):
    file = Reader([b"one|1\n", b"-|2\n"])
    cur.copy_from(file, "item", sep="|", null="-", size=17, columns=("name", "id"))
    assert file.sizes == [17, 17, 17]
    assert rows(conn) == [(1, "one"), (2, None)]


def test_copy_to(conn, cur):
    cur.execute("INSERT INTO item VALUES (1, 'one'), (2, NULL), (3, 'drei €')")
    expected = "1\tone\n2\t\\N\n3\tdrei €\n"
    text, binary, duck = io.StringIO(), io.BytesIO(), Writer()
    for file in (text, binary, duck):
        cur.copy_to(file, "item")
        assert (cur.rowcount, cur.statusmessage) == (3, "COPY 3")
    assert text.getvalue() == expected
    assert binary.getvalue() == expected.encode()
    assert duck.written == [line.encode() for line in expected.splitlines(keepends=True)], "one row a write()"
    cur.copy_to(duck, "item", sep=";", null="-", columns=["name"])
    assert duck.written[3:] == [b"one\n", b"-\n", "drei €\n".encode()]


def test_copy_to_a_temporary_file(cur):
    with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile("w+", encoding="utf-8") as text:
        for target in (file, text):
            cur.copy_expert("COPY (SELECT n, 'é' FROM generate_series(1, 1000) AS n) TO STDOUT", target)
            target.seek(0)
            assert len(target.read().splitlines()) == 1000


def test_copy_expert_in_autocommit(conn, cur):
    conn.autocommit = True
    cur.copy_expert("COPY item FROM STDIN (FORMAT csv)", io.StringIO('1,"a ""b"""\n'))
    assert conn.get_transaction_status() == IDLE
    assert rows(conn) == [(1, 'a "b"')]


def test_copy_expert_with_another_statement(cur):
    cur.copy_expert("SELECT 7", io.StringIO())
    assert cur.fetchone() == (7,)


def test_binary_format_and_rows_larger_than_any_buffer(conn, cur):
    cur.execute("INSERT INTO item VALUES (1, repeat('x', 3000000)), (2, repeat('y', 131072)), (3, 'z')")
    for file in (io.BytesIO(), Writer()):
        cur.copy_expert("COPY item TO STDOUT (FORMAT binary)", file)
        data = file.getvalue() if isinstance(file, io.BytesIO) else b"".join(file.written)
        cur.execute("TRUNCATE item")
        cur.copy_expert("COPY item FROM STDIN (FORMAT binary)", io.BytesIO(data), size=len(data))
        assert [(id_, len(name)) for id_, name in rows(conn)] == [(1, 3000000), (2, 131072), (3, 1)]


@pytest.mark.parametrize("encoding", ["LATIN1", "UTF8", "EUC_JP"])
def test_text_in_other_encodings(conn, encoding):
    conn.set_client_encoding(encoding)
    text = {"LATIN1": "grün", "UTF8": "grün €", "EUC_JP": "緑"}[encoding]
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE words (word text)")
    cur.copy_from(io.StringIO(text + "\n"), "words")
    file = io.StringIO()
    cur.copy_to(file, "words")
    assert file.getvalue() == text + "\n"
    with cur.copy("COPY words TO STDOUT") as copy:
        assert list(copy.rows()) == [(text,)]


def test_file_smaller_than_a_buffer_cuts_no_characters(cur):
    file = io.StringIO()
    cur.copy_expert("COPY (SELECT repeat('€', 200000)) TO STDOUT", file)
    assert file.getvalue() == "€" * 200000 + "\n"


def test_wrong_arguments_are_refused_as_by_psycopg2(conn, cur):
    for call in (
        lambda: cur.copy_from(object(), "item"),
        lambda: cur.copy_to(object(), "item"),
        lambda: cur.copy_expert("COPY item TO STDOUT", object()),
        lambda: cur.copy_from(io.StringIO(), 7),
        lambda: cur.copy_from(io.StringIO(), "item", size="x"),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(psycopg2.ProgrammingError, match="can't execute an empty query"):
        cur.copy_expert("", io.StringIO())
    cur.close()
    with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
        cur.copy_from(io.StringIO(), "item")
    conn.rollback()
    conn.tpc_begin("greenpg-copy")
    conn.cursor().execute("SELECT 1")
    conn.tpc_prepare()
    with pytest.raises(psycopg2.ProgrammingError, match="prepared two-phase transaction"):
        conn.cursor().copy_from(io.StringIO(), "item")
    conn.tpc_rollback()


def test_error_of_the_server(conn, cur):
    cur.execute("INSERT INTO item VALUES (2, 'two')")
    conn.commit()
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        cur.copy_from(io.StringIO("1\ta\n2\tb\n"), "item")
    error = caught.value
    assert error.pgcode == "23505"
    assert error.diag.constraint_name == "item_id_key"
    assert error.pgerror.startswith("ERROR:")
    assert error.cursor is cur
    assert cur.rowcount == -1
    assert conn.get_transaction_status() == INERROR
    conn.rollback()
    assert rows(conn) == [(2, "two")]


def test_missing_table(conn, cur):
    with pytest.raises(psycopg2.errors.UndefinedTable):
        cur.copy_to(io.StringIO(), "nowhere")
    assert usable(conn)


def test_file_that_raises_while_reading(conn, cur):
    original = ZeroDivisionError("of the file")
    with pytest.raises(psycopg2.errors.QueryCanceled, match=r"ZeroDivisionError of the file") as caught:
        cur.copy_from(Reader([b"1\tone\n"], original), "item")
    assert caught.value.__cause__ is original
    assert conn.get_transaction_status() == INERROR
    assert usable(conn)
    for wrong in (7, None):
        with pytest.raises(psycopg2.errors.QueryCanceled, match="instead of bytes"):
            cur.copy_from(Reader([wrong]), "item")
        conn.rollback()
    assert rows(conn) == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), Killed(), psycopg2.OperationalError("another connection's")])
@pytest.mark.parametrize("after", [0, 5000])
def test_file_that_raises_while_writing(conn, admin, cur, error, after):
    with pytest.raises(type(error)) as caught:
        cur.copy_expert(ENDLESS, Writer(error, after))
    assert caught.value is error
    assert conn.get_transaction_status() == INERROR
    assert usable(conn)


def test_file_killed_while_reading(conn, cur):
    original = Killed()
    with pytest.raises(Killed) as caught:
        cur.copy_from(Reader([b"1\tone\n"], original), "item")
    assert caught.value is original
    assert usable(conn)
    assert rows(conn) == []


@pytest.mark.parametrize("sql", ["COPY item FROM STDIN", "COPY item TO STDOUT", ENDLESS])
def test_copy_by_execute_raises_and_leaves_the_connection_usable(conn, cur, sql):
    with pytest.raises(psycopg2.ProgrammingError, match=r"can't execute COPY (FROM|TO): use the copy_"):
        cur.execute(sql)
    assert conn.get_transaction_status() in (INTRANS, INERROR)
    assert usable(conn)
    conn.commit()


@green_only
def test_file_may_use_tasks_and_another_connection(dsn, conn, cur):
    """read() may suspend as long as it likes; the connection itself refuses it."""
    other = greenpg.connect(dsn)

    class Slow:
        left = 3

        def read(self, size):
            if not self.left:
                return b""
            self.left -= 1
            with other.cursor() as inner:
                inner.execute("SELECT pg_sleep(0.01), %s", (self.left,))
                number = inner.fetchone()[1]
            with pytest.raises(ConnectionInUse):
                conn.cursor().execute("SELECT 1")
            return f"{number}\tslow\n"

    cur.copy_from(Slow(), "item")
    other.close()
    assert len(rows(conn)) == 3


# -- tasks


@green_only
def test_other_tasks_run_during_long_copies(guard, dsn):
    """Both directions, both kinds of file: 20 MB each, beside a task that counts its own turns."""

    def copy_out_and_in():
        conn = greenpg.connect(dsn)
        cur = conn.cursor()
        cur.execute("CREATE TEMP TABLE big (id int, name text)")
        file = io.BytesIO()
        cur.copy_expert("COPY (SELECT n, repeat('x', 100) FROM generate_series(1, 200000) AS n) TO STDOUT", file)
        file.seek(0)
        cur.copy_from(file, "big", size=1 << 20)
        assert cur.rowcount == 200000
        conn.close()

    turns = 0
    over = False

    def count():
        nonlocal turns
        while not over:
            turns += 1
            hub().sleep(0.001)

    counter = Task(count)
    run_all([copy_out_and_in] * 2)
    over = True
    counter.join()
    assert turns > 50


@green_only
def test_memory_stays_small(conn, cur):
    """A source without end does not outrun the server: what libpq holds back is bounded."""
    import resource

    def megabytes():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    line = b"1\t" + b"x" * 100 + b"\n"
    cur.execute("CREATE TEMP TABLE many (id int, name text)")
    before = megabytes()
    cur.copy_from(Reader([line * 1000] * 500), "many")
    with cur.copy("COPY many TO STDOUT") as copy:
        assert sum(map(len, copy)) == 500 * 1000 * len(line)
    assert megabytes() - before < 40


@green_only
def test_others_are_refused_during_a_copy(conn, cur):
    class Stuck:
        def read(self, size):
            hub().sleep(0.2)
            return b""

    task = Task(cur.copy_from, Stuck(), "item")
    wait_until(lambda: is_waiting(conn))
    for call in (
        conn.commit,
        conn.rollback,
        lambda: conn.cursor().execute("SELECT 1"),
        lambda: conn.cursor().copy_from(io.StringIO(), "item"),
        lambda: conn.cursor().copy("COPY item TO STDOUT").__enter__(),
    ):
        with pytest.raises(ConnectionInUse):
            call()
    task.result()
    assert usable(conn)


@green_only
@pytest.mark.parametrize(
    "sql",
    [
        ENDLESS,
        "COPY (SELECT pg_sleep(0.05), repeat('x', 10000), generate_series(1, 1000000)) TO STDOUT",
        "COPY (SELECT pg_sleep(60)) TO STDOUT",
    ],
)
@pytest.mark.parametrize("way", ["expert", "block"])
def test_kill_during_copy_to(conn, admin, cur, sql, way):
    file = Writer()

    def read():
        if way == "expert":
            cur.copy_expert(sql, file)
        else:
            with cur.copy(sql) as copy:
                for _ in copy:
                    pass

    task = Task(read)
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.1)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    assert usable(conn)


@green_only
@pytest.mark.parametrize("way", ["file", "block"])
def test_kill_during_copy_from(conn, cur, way):
    class Endless:
        number = 0

        def read(self, size):
            self.number += 1
            hub().sleep(0.001)
            return f"{self.number}\tname\n"

    def write():
        if way == "file":
            cur.copy_from(Endless(), "item")
        else:
            with cur.copy("COPY item FROM STDIN") as copy:
                source = Endless()
                while True:
                    copy.write(source.read(0))

    task = Task(write)
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.05)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    assert usable(conn)
    assert rows(conn) == []


@green_only
@pytest.mark.parametrize("way", ["file", "block"])
def test_kill_while_the_server_is_finishing(conn, cur, way):
    """The data is complete, and a trigger keeps the server busy: the statement is cancelled."""
    cur.execute("""
        CREATE FUNCTION pg_temp.slow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
        CREATE TRIGGER slow AFTER INSERT ON item EXECUTE FUNCTION pg_temp.slow();
    """)
    conn.commit()

    def write():
        if way == "file":
            cur.copy_from(io.StringIO("1\tone\n"), "item")
        else:
            with cur.copy("COPY item FROM STDIN") as copy:
                copy.write_row((1, "one"))

    task = Task(write)
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.1)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    assert usable(conn)
    assert rows(conn) == []


@green_only
def test_deadline(conn, cur):
    with pytest.raises(DeadlineExceeded), conn.deadline(0.1):
        cur.copy_expert(ENDLESS, Writer())
    assert usable(conn)
    with pytest.raises(DeadlineExceeded), conn.deadline(0.1):
        with cur.copy(ENDLESS) as copy:
            for _ in copy:
                pass
    assert usable(conn)


@green_only
@pytest.mark.parametrize("way", ["file", "block"])
def test_second_kill_while_ending_closes(conn, cur, monkeypatch, way):
    def never(conn, deadline):
        hub().sleep(30)

    monkeypatch.setattr(interrupting, "request_cancel", never)

    def read():
        if way == "file":
            cur.copy_expert(ENDLESS, Writer())
        else:
            with cur.copy(ENDLESS) as copy:
                for _ in copy:
                    pass

    task = Task(read)
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.05)
    task.throw(Killed())
    hub().sleep(0.05)
    second = Killed()
    task.throw(second)
    task.join()
    assert task.error is second
    assert conn.closed
    assert not is_waiting(conn)


@pytest.mark.parametrize("way", ["to", "block"])
def test_cancelled_before_the_rest_is_read(conn, cur, monkeypatch, way):
    """Until it is, a server that is as fast as we are sends more and more."""
    blocks, dropped = [], []
    read_block = CopyReader.read_block
    request_cancel = interrupting.request_cancel

    def counted(self):
        blocks.append(None)
        return read_block(self)

    def noted(conn, deadline):
        dropped.append(len(blocks))
        hub().sleep(0.05)  # the server fills what there is of buffers
        request_cancel(conn, deadline)

    monkeypatch.setattr(CopyReader, "read_block", counted)
    monkeypatch.setattr(interrupting, "request_cancel", noted)

    class Failing:
        def write(self, data):
            hub().sleep(0.05)
            blocks.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        if way == "to":
            cur.copy_expert(ENDLESS, Failing())
        else:
            with cur.copy(ENDLESS) as copy:
                for row in copy:
                    Failing().write(row)
    assert dropped[0] == 1
    assert usable(conn)


@green_only
def test_ending_is_bounded(conn, cur, monkeypatch):
    monkeypatch.setattr(interrupting, "request_cancel", lambda conn, deadline: None)
    monkeypatch.setattr(interrupting, "END_TIMEOUT", 0.2)
    killed = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        cur.copy_expert(ENDLESS, Writer(killed))
    assert caught.value is killed
    assert conn.closed


@pytest.mark.parametrize("way", ["from", "to", "block"])
def test_lost_connection(conn, admin, cur, way):
    def end_backend():
        with admin.cursor() as other:
            other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))

    class Cut:
        calls = 0

        def read(self, size):
            self.calls += 1
            if self.calls == 3:
                end_backend()
            return b"1\tx\n" * 2000

        def write(self, data):
            self.calls += 1
            if self.calls == 3:
                end_backend()

    with pytest.raises(psycopg2.OperationalError):
        if way == "from":
            cur.execute("CREATE TEMP TABLE free (id int, name text)")
            cur.copy_from(Cut(), "free")
        elif way == "to":
            cur.copy_expert(ENDLESS, Cut())
        else:
            with cur.copy(ENDLESS) as copy:
                cut = Cut()
                for block in copy:
                    cut.write(block)
    assert conn.closed
    assert not is_waiting(conn)


def test_server_that_sends_notices_all_the_time(conn, cur):
    """It is stuck sending them unless we read while we write."""
    cur.execute("""
        CREATE FUNCTION pg_temp.loud() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE NOTICE '%', repeat('x', 1000); RETURN NEW; END $$;
        CREATE TRIGGER loud BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION pg_temp.loud();
    """)
    lines = b"".join(b"%d\t%s\n" % (n, b"y" * 1000) for n in range(3000))
    cur.copy_from(io.BytesIO(lines), "item")
    assert cur.rowcount == 3000
    assert len(conn.notices) == 50


# -- psycopg 3's


def test_block_writes(conn, cur):
    with cur.copy("COPY item FROM STDIN") as copy:
        copy.write("1\tone\n")
        copy.write(b"2\tt")
        copy.write(memoryview(b"wo\n"))
        copy.write_row((3, None))
        copy.write_row([4, "tab\t back\\slash \n\r\b\v\f \\N"])
    assert (cur.rowcount, cur.statusmessage) == (4, "COPY 4")
    assert (conn.status, conn.get_transaction_status()) == (extensions.STATUS_BEGIN, INTRANS)
    assert rows(conn) == [(1, "one"), (2, "two"), (3, None), (4, "tab\t back\\slash \n\r\b\v\f \\N")]
    cur.execute("SELECT 1")
    assert (cur.rowcount, cur.statusmessage) == (1, "SELECT 1")


def test_block_reads(conn, cur):
    data = [(1, "one"), (2, None), (3, "tab\t back\\slash \n\r\b\v\f \\N é")]
    psycopg2.extras.execute_values(cur, "INSERT INTO item VALUES %s", data)
    sql = "COPY item TO STDOUT"
    with cur.copy(sql) as copy:
        assert list(copy.rows()) == [(str(id_), name) for id_, name in data]
    assert cur.rowcount == 3
    with cur.copy(sql) as copy:
        copy.set_types([extensions.INTEGER, 25])
        assert [copy.read_row(), copy.read_row(), copy.read_row(), copy.read_row()] == [*data, None]
    with cur.copy(sql) as copy:
        text = b"".join(copy)
        assert copy.read() == b""
    file = io.BytesIO()
    cur.copy_to(file, "item")
    assert text == file.getvalue()
    assert usable(conn)


def test_params_are_merged(cur):
    with cur.copy("COPY (SELECT * FROM generate_series(1, %s)) TO STDOUT", (3,)) as copy:
        assert [row[0] for row in copy.rows()] == ["1", "2", "3"]
    with cur.copy("COPY (SELECT 10 %% 3) TO STDOUT", ()) as copy, pytest.raises(psycopg2.ProgrammingError):
        copy.write(b"")


VALUES = [
    (True, "bool"),
    (-7, "int"),
    (1.5, "float8"),
    (float("-inf"), "float8"),
    (decimal.Decimal("1.20"), "numeric"),
    ("text 'é' \\ \n", "text"),
    (datetime.date(2026, 1, 2), "date"),
    (datetime.time(3, 4, 5), "time"),
    (datetime.datetime(2026, 1, 2, 3, 4, 5, 6), "timestamp"),
    (datetime.timedelta(days=-3, seconds=7, microseconds=5), "interval"),
    ([1, None, 3], "int[]"),
    ([["a", 'q"\\'], ["NULL", ""]], "text[]"),
    ([], "int[]"),
    (psycopg2.extras.Json({"a": 'it\'s "b" \\ c'}), "jsonb"),
    (psycopg2.extras.NumericRange(1, 5), "int4range"),
    (psycopg2.extras.Inet("10.0.0.1"), "inet"),
]


@pytest.mark.parametrize(("value", "type_"), VALUES, ids=lambda value: str(value)[:20])
def test_write_row_values(cur, value, type_):
    """A value arrives as it would as a parameter of execute()."""
    cur.execute(f"CREATE TEMP TABLE one (v {type_})")
    with cur.copy("COPY one FROM STDIN") as copy:
        copy.write_row((value,))
    cur.execute(f"INSERT INTO one VALUES (%s::{type_})", (value,))
    cur.execute("SELECT v FROM one")
    (written,), (inserted,) = cur.fetchall()
    assert written == inserted


# -- client encodings


#: PostgreSQL's client encodings that Python and psycopg2 know, by the name that the server gives them.
ENCODINGS = """
    BIG5 EUC_CN EUC_JIS_2004 EUC_JP EUC_KR GB18030 GBK ISO_8859_5 ISO_8859_6 ISO_8859_7 ISO_8859_8 JOHAB KOI8R
    KOI8U LATIN1 LATIN2 LATIN3 LATIN4 LATIN5 LATIN6 LATIN7 LATIN8 LATIN9 LATIN10 SHIFT_JIS_2004 SJIS UHC UTF8
    WIN866 WIN874 WIN1250 WIN1251 WIN1252 WIN1253 WIN1254 WIN1255 WIN1256 WIN1257 WIN1258
""".split()  # noqa: SIM905
# What may follow a character, so that one is taken for the other: the names of escapes, what is escaped, digits.
FOLLOWERS = ["", "n", "t", "N", "1", "\\", "\t", "\n", "\\N", "\\\\", "x"]


@pytest.fixture(scope="module")
def convertible(dsn):
    """Characters that the server can convert to an encoding and back, and that psycopg2 can read then: all with a
    backslash in them, and some others."""
    conn = greenpg.connect(dsn)
    conn.autocommit = True
    cur = conn.cursor()
    cur.execute(
        "CREATE FUNCTION pg_temp.converted(c text, encoding text) RETURNS bytea LANGUAGE plpgsql AS "
        "'BEGIN PERFORM convert_from(convert_to(c, encoding), encoding); RETURN convert_to(c, encoding); "
        "EXCEPTION WHEN OTHERS THEN RETURN NULL; END'"
    )

    def convertible(encoding):
        codec = extensions.encodings[encoding]
        found = ["¥"] if encoding in ("EUC_JP", "SHIFT_JIS_2004") else []
        for number in [*range(0x80, 0x3000), *range(0x3000, 0xD800, 3), *range(0xF900, 0xFFF0)]:
            code = chr(number).encode(codec, "ignore")
            if b"\\" in code[1:] or (code and len(found) < 100):
                found.append(chr(number))
        cur.execute(
            "SELECT c, pg_temp.converted(c, %s) FROM unnest(%s::text[]) WITH ORDINALITY AS u(c, n) ORDER BY n",
            (encoding, found),
        )
        readable = []
        for character, code in cur.fetchall():
            try:
                if code is not None:
                    bytes(code).decode(codec)
                    readable.append(character)
            except UnicodeDecodeError:
                pass
        return readable[:2000]

    yield convertible
    conn.close()


@pytest.mark.may_block  # scans Unicode
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_in_all_client_encodings(conn, convertible, encoding):
    """`rows()` gives what psycopg2 reads, `write_row()` stores what execute() does, alone and in arrays."""
    characters = convertible(encoding)
    values = [character + follower for character in characters for follower in FOLLOWERS]
    values += ["".join(values[start : start + 50]) for start in range(0, len(values), 50)] + FOLLOWERS
    if encoding == "JOHAB":  # the server takes such a one for three bytes, and doesn't escape the third
        values = [
            value for value in values if not re.search(r"(?s)\x8f.[\t\n]", value.encode("johab").decode("latin1"))
        ]
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE e (n int, s text, a text[])")
    rows = [(n, value, [value, None]) for n, value in enumerate(values)]
    psycopg2.extras.execute_values(cur, "INSERT INTO e VALUES %s", rows, page_size=5000)
    cur.execute("INSERT INTO e VALUES (-1, NULL, NULL)")
    conn.commit()
    conn.set_client_encoding(encoding)
    conn.commit()

    cur.execute("SELECT n::text, s FROM e ORDER BY e.n")
    expected = cur.fetchall()
    with cur.copy("COPY (SELECT n, s FROM e ORDER BY n) TO STDOUT") as copy:
        assert list(copy.rows()) == expected
    with cur.copy("COPY (SELECT * FROM e ORDER BY n) TO STDOUT") as copy:
        copy.set_types([extensions.INTEGER, lambda text, cursor: text, extensions.UNICODE])
        typed = list(copy.rows())
    cur.execute("SELECT n, s, a::text FROM e ORDER BY e.n")
    assert typed == cur.fetchall()

    # As psycopg2 sends it: where its codec isn't the server's conversion, something else may arrive than was read.
    sent = [(int(n), s, [s, None]) for n, s in expected]
    cur.execute("CREATE TEMP TABLE written (LIKE e); CREATE TEMP TABLE inserted (LIKE e)")
    if encoding == "JOHAB":  # libpq's quoting fails
        cur.execute("INSERT INTO inserted SELECT n, s, ARRAY[s, NULL] FROM e")
    else:
        psycopg2.extras.execute_values(cur, "INSERT INTO inserted VALUES %s", sent, page_size=5000)
    with cur.copy("COPY written FROM STDIN") as copy:
        for row in sent:
            copy.write_row(row)
    conn.commit()
    conn.set_client_encoding("UTF8")
    cur.execute("SELECT * FROM written ORDER BY n")
    written = cur.fetchall()
    cur.execute("SELECT * FROM inserted ORDER BY n")
    assert written == cur.fetchall()


@pytest.mark.parametrize("encoding", ["EUC_JP", "SHIFT_JIS_2004"])
def test_other_values_where_the_backslash_is_a_yen_sign(conn, encoding):
    """For Python, in these encodings."""
    conn.set_client_encoding(encoding)
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE e (s text, b bytea, j json, a text[]); CREATE TEMP TABLE f (LIKE e)")

    class Text(str):  # goes through psycopg2's adapter
        pass

    for text in ("¥n", "tab\t and ¥¥ and '", "plain"):
        row = (Text(text), b"\x00\\\xff", psycopg2.extras.Json([1, "x\ty"]), [text, None, '"', Text(text)])
        with cur.copy("COPY e FROM STDIN") as copy:
            copy.write_row(row)
            copy.write_row((None, bytearray(b""), None, []))
        cur.execute("INSERT INTO f VALUES (%s, %s, %s, %s), (NULL, '', NULL, '{}')", row)
    cur.execute("SELECT s, encode(b, 'hex'), j::text, a FROM e ORDER BY 1, 2")
    written = cur.fetchall()
    cur.execute("SELECT s, encode(b, 'hex'), j::text, a FROM f ORDER BY 1, 2")
    assert written == cur.fetchall()


@pytest.mark.parametrize("encoding", ["SJIS", "BIG5", "GBK", "GB18030", "UHC"])
def test_files_in_encodings_with_backslashes_in_characters(conn, encoding):
    """copy_to() and copy_from() hand over what the server's text format is; str by the codec, cut anywhere."""
    conn.set_client_encoding(encoding)
    characters = {"SJIS": "表ソ能", "BIG5": "功許蓋", "GBK": "乗俓俆", "GB18030": "乗俓俆", "UHC": "똞똟가"}[encoding]
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE e (n int, s text); CREATE TEMP TABLE f (LIKE e)")
    rows = [(n, characters[n % 3] * (n % 50) + "nt\t\\"[n % 4]) for n in range(5000)]
    psycopg2.extras.execute_values(cur, "INSERT INTO e VALUES %s", rows, page_size=5000)
    for file in (io.StringIO(), io.BytesIO()):
        cur.copy_to(file, "e")
        file.seek(0)
        cur.execute("TRUNCATE f")
        cur.copy_from(file, "f", size=4096)
        cur.execute("SELECT * FROM f ORDER BY 1")
        assert cur.fetchall() == rows


def test_write_row_bytes_and_uuid(cur):
    cur.execute("CREATE TEMP TABLE two (b bytea, u uuid)")
    number = uuid.uuid4()
    with cur.copy("COPY two FROM STDIN") as copy:
        copy.write_row((b"\x00\xff\\", number))
        copy.write_row((memoryview(b"\x00\xff\\"), number))
    cur.execute("SELECT DISTINCT b, u::text FROM two")
    ((binary, text),) = cur.fetchall()
    assert (bytes(binary), text) == (b"\x00\xff\\", str(number))


def test_write_row_that_can_not_be_written(conn, cur):
    with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
        with cur.copy("COPY item FROM STDIN") as copy:
            copy.write_row((1, object()))
    assert usable(conn)
    with pytest.raises(psycopg2.ProgrammingError, match="is an expression"):
        with cur.copy("COPY item FROM STDIN") as copy:
            copy.write_row((1, extensions.AsIs("now()")))
    assert usable(conn)


def test_binary_in_a_block(conn, cur):
    with cur.copy("COPY (SELECT 1) TO STDOUT (FORMAT binary)") as copy:
        data = copy.read()
        assert data.startswith(b"PGCOPY")
    with pytest.raises(psycopg2.NotSupportedError, match="text format"):
        with cur.copy("COPY (SELECT 1) TO STDOUT (FORMAT binary)") as copy:
            list(copy.rows())
    assert usable(conn)
    with pytest.raises(psycopg2.errors.BadCopyFileFormat):
        with cur.copy("COPY item FROM STDIN (FORMAT binary)") as copy:
            copy.write_row((1, "x"))
    assert usable(conn)


def test_error_of_the_server_in_a_block(conn, cur):
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught:
        with cur.copy("COPY item FROM STDIN") as copy:
            copy.write_row((1, "one"))
            copy.write_row((1, "again"))
    error = caught.value
    assert error.pgcode == error.diag.sqlstate == "23505"
    assert error.diag.constraint_name == "item_id_key"
    assert error.diag.table_name == "item"
    assert error.diag.column_name is None
    assert error.pgerror.startswith("ERROR:  duplicate")
    assert str(error).startswith("duplicate key")
    assert error.cursor is cur
    assert cur.rowcount == -1
    assert conn.get_transaction_status() == INERROR
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is psycopg2.errors.UniqueViolation
    assert (copied.pgcode, str(copied)) == ("23505", str(error))
    assert usable(conn)
    with pytest.raises(psycopg2.errors.DivisionByZero):
        with cur.copy("COPY (SELECT 1 / (n - 5000) FROM generate_series(1, 10000) AS n) TO STDOUT") as copy:
            for _ in copy:
                pass
    assert usable(conn)


def test_exception_in_a_block(conn, cur):
    original = ZeroDivisionError()
    for sql in ("COPY item FROM STDIN", ENDLESS):
        with pytest.raises(ZeroDivisionError) as caught:
            with cur.copy(sql) as copy:
                if sql == ENDLESS:
                    copy.read()
                else:
                    copy.write_row((1, "one"))
                raise original
        assert caught.value is original
        assert conn.get_transaction_status() == INERROR
        assert usable(conn)
    assert rows(conn) == []


def test_leaving_before_all_was_read(conn, cur):
    with cur.copy(ENDLESS) as copy:
        assert copy.read_row()[0] == "1"
    assert conn.get_transaction_status() == INERROR
    assert usable(conn)
    with cur.copy("COPY (SELECT 1) TO STDOUT") as copy:
        pass
    assert usable(conn)


def test_not_a_copy(conn, cur):
    with pytest.raises(psycopg2.ProgrammingError, match="not for other SQL"):
        cur.copy("SELECT 1").__enter__()
    assert usable(conn)
    with pytest.raises(psycopg2.errors.UndefinedTable):
        cur.copy("COPY nowhere TO STDOUT").__enter__()
    assert usable(conn)
    with pytest.raises(psycopg2.ProgrammingError, match="named cursor"):
        conn.cursor("named").copy("COPY item TO STDOUT").__enter__()


def test_block_keeps_everybody_else_out(conn, cur):
    with cur.copy("COPY item FROM STDIN") as copy:
        copy.write_row((1, "one"))
        for call in (conn.commit, lambda: cur.execute("SELECT 1"), lambda: cur.copy("COPY item TO STDOUT").__enter__()):
            with pytest.raises(CopyInProgress, match="a COPY is under way"):
                call()
        with pytest.raises(psycopg2.ProgrammingError, match="needs a COPY .* TO STDOUT"):
            copy.read()
        assert conn.get_transaction_status() == ACTIVE
    assert rows(conn) == [(1, "one")]
    with pytest.raises(psycopg2.InterfaceError, match="the COPY has ended"):
        copy.write(b"")


def test_close_within_a_block(conn, cur):
    with pytest.raises(psycopg2.InterfaceError, match="the COPY has ended"):
        with cur.copy("COPY item FROM STDIN") as copy:
            conn.close()
            copy.write(b"1\tx\n")
    assert conn.closed == 1
    with pytest.raises(psycopg2.InterfaceError):
        cur.execute("SELECT 1")


@green_only
def test_close_by_another_task_while_a_block_waits(conn, cur):
    def read():
        with cur.copy("COPY (SELECT pg_sleep(60), repeat('x', 20000) FROM generate_series(1, 2)) TO STDOUT") as copy:
            list(copy)

    task = Task(read)
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.05)
    started = time.monotonic()
    conn.close()
    task.join()
    assert isinstance(task.error, psycopg2.Error)
    assert time.monotonic() - started < 5


def test_through_a_pool(make_pool):
    pool = make_pool(min_size=1)
    with pool.cursor() as cur:
        cur.execute("CREATE TEMP TABLE pooled (id int)")
        with cur.copy("COPY pooled FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((number,))
        file = io.StringIO()
        cur.copy_to(file, "pooled")
        assert len(file.getvalue().split()) == 1000


@pytest.mark.only_hub("gevent")
def test_native_thread(dsn):
    def work():
        conn = greenpg.connect(dsn)
        cur = conn.cursor()
        file = io.BytesIO()
        cur.copy_expert("COPY (SELECT generate_series(1, 100000)) TO STDOUT", file)
        cur.execute("CREATE TEMP TABLE numbers (n int)")
        file.seek(0)
        cur.copy_from(file, "numbers")
        with cur.copy("COPY numbers TO STDOUT") as copy:
            count = sum(1 for _ in copy.rows())
        conn.close()
        return cur.rowcount, count

    assert hub().run_in_thread(work) == (100000, 100000)


def test_forgotten_block_and_the_pool(make_pool, admin):
    """A connection that comes back in the middle of a COPY is not lent again; the pool goes on."""
    pool = make_pool(min_size=1, max_size=1)
    conn = pool.getconn()
    conn.cursor().copy(ENDLESS).__enter__()
    pool.putconn(conn)
    with pool.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)
    assert conn.closed


@pytest.fixture
def no_wait_callback():
    callback = extensions.get_wait_callback()
    _psycopg.set_wait_callback(None)
    yield
    _psycopg.set_wait_callback(callback)


@pytest.mark.may_block
def test_without_a_wait_callback(dsn, no_wait_callback):
    """psycopg2's own methods then, blocking; `copy()` works as well."""
    conn = greenpg.connect(dsn)
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE item (id int, name text)")
    cur.copy_from(io.StringIO("1\tone\n"), "item")
    with cur.copy("COPY item FROM STDIN") as copy:
        for number in range(2, 100_000):
            copy.write_row((number, "name"))
    with cur.copy("COPY item TO STDOUT") as copy:
        assert sum(1 for _ in copy.rows()) == 99_999
    file = io.StringIO()
    cur.copy_to(file, "item")
    assert len(file.getvalue().splitlines()) == 99_999
    with pytest.raises(ZeroDivisionError):
        with cur.copy("COPY item FROM STDIN") as copy:
            raise ZeroDivisionError
    assert usable(conn)
    conn.close()


def test_connection_made_before_patching(dsn):
    """psycopg2 has made it blocking; COPY doesn't block all the same."""
    callback = extensions.get_wait_callback()
    _psycopg.set_wait_callback(None)
    conn = greenpg.connect(dsn)
    _psycopg.set_wait_callback(callback)
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE item (id int, name text)")
    cur.copy_from(Reader([b"1\tx\n" * 100_000]), "item")
    assert cur.rowcount == 100_000
    file = io.BytesIO()
    cur.copy_to(file, "item")
    assert len(file.getvalue()) == 400_000
    conn.close()


# -- a COPY that the server has refused


class Endless:
    """Numbers, the tenth of which isn't one."""

    LIMIT = 30_000_000

    def __init__(self):
        self.served = 0

    def read(self, size=8192):
        if self.served > self.LIMIT:
            return ""
        text = "2\n" * (size // 2) if self.served else "1\n" * 9 + "oops\n"
        self.served += len(text)
        return text


@pytest.mark.parametrize(
    "call",
    [
        lambda cur, file: cur.copy_from(file, "item", columns=["id"]),
        lambda cur, file: cur.copy_expert("COPY item (id) FROM STDIN", file),
    ],
    ids=["copy_from", "copy_expert"],
)
def test_reading_ends_when_the_server_has_refused(conn, cur, call):
    file = Endless()
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation, match="oops"):
        call(cur, file)
    assert file.served < file.LIMIT / 2
    assert usable(conn)


@pytest.mark.parametrize("method", ["write", "write_row"])
def test_writing_raises_what_the_server_has_refused_with(conn, cur, method):
    written = 0
    with (
        pytest.raises(psycopg2.errors.InvalidTextRepresentation, match="oops"),
        cur.copy("COPY item (id) FROM STDIN") as copy,
    ):
        while written < 20_000_000:
            if method == "write":
                copy.write("oops\n" * 1000)
            else:
                copy.write_row(["oops" * 1000])
            written += 5000
    assert written < 20_000_000
    with pytest.raises(psycopg2.InterfaceError, match="has ended"):
        copy.write("1\n")
    assert usable(conn)


def let_each_row_tell(cur):
    cur.execute(
        """
        CREATE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE NOTICE 'row % ES\u0001 %', NEW.id, repeat('E', 500); RETURN NEW; END $$;
        CREATE TRIGGER tells BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION pg_temp.tell()
        """
    )


class Feed:
    """Three thousand numbers at once, one that isn't, and from then on a hundred every few milliseconds."""

    LIMIT = 2000

    def __init__(self):
        self.waits = -1

    def read(self, size):
        self.waits += 1
        if self.waits == 0:
            return "1\n" * 3000 + "oops\n"
        hub().sleep(0.005)
        return "" if self.waits > self.LIMIT else "2\n" * 100


@pytest.mark.parametrize("over", ["socket", "tcp"])
def test_reading_ends_when_the_server_has_refused_after_many_notices(request, over):
    """The data come slowly, a lot of notices fast: libpq reads these, and the error must not be lost among them."""
    server = request.getfixturevalue("server")
    conn = greenpg.connect(server.dsn if over == "socket" else server.tcp_dsn)
    cur = conn.cursor()
    cur.execute("CREATE TEMP TABLE item (id int, name text)")
    let_each_row_tell(cur)
    conn.commit()
    feed = Feed()
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation, match="oops"):
        cur.copy_from(feed, "item", columns=["id"])
    assert feed.waits < feed.LIMIT / 2
    assert usable(conn)
    conn.close()


def test_notices_are_no_refusal(conn, cur):
    let_each_row_tell(cur)
    cur.copy_from(io.StringIO("".join(f"{n}\tname\n" for n in range(20_000))), "item")
    assert cur.rowcount == 20_000
    assert "row 19999" in conn.notices[-1]


def test_an_own_sqlstate_has_its_class_by_every_way(dsn, conn, cur):
    """Of an error whose SQLSTATE has no name, whatever method it comes by."""
    cur.execute(
        """
        CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'own' USING ERRCODE = '23Z99'; END $$;
        CREATE TRIGGER refuses BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse();
        CREATE TABLE pg_temp.late (id int);
        CREATE CONSTRAINT TRIGGER refuses AFTER INSERT ON late INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse();
        CREATE FUNCTION pg_temp.raises() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'own' USING ERRCODE = '23Z99'; END $$
        """
    )
    conn.commit()

    def copies(cursor):
        with cursor.copy("COPY item FROM STDIN") as copy:
            copy.write("1\tname\n")

    def named(cursor):
        named_cursor = conn.cursor("named")
        named_cursor.execute("SELECT pg_temp.raises()")
        named_cursor.fetchall()

    def late(cursor):
        cursor.execute("INSERT INTO late VALUES (1)")
        conn.commit()

    def in_a_block(cursor):
        with conn.transaction():
            cursor.execute("INSERT INTO late VALUES (1)")

    ways = {
        "execute": lambda cursor: cursor.execute("INSERT INTO item VALUES (1)"),
        "executemany": lambda cursor: cursor.executemany("INSERT INTO item VALUES (%s)", [[1], [2], [3]]),
        "execute_values": lambda cursor: psycopg2.extras.execute_values(
            cursor, "INSERT INTO item VALUES %s", [[1, "a"]]
        ),
        "copy_from": lambda cursor: cursor.copy_from(io.StringIO("1\tname\n"), "item"),
        "copy_expert": lambda cursor: cursor.copy_expert("COPY item FROM STDIN", io.StringIO("1\tname\n")),
        "copy_to": lambda cursor: cursor.copy_expert("COPY (SELECT pg_temp.raises()) TO STDOUT", io.StringIO()),
        "copy": copies,
        "callproc": lambda cursor: cursor.callproc("pg_temp.raises"),
        "named cursor": named,
        "commit": late,
        "transaction": in_a_block,
    }
    for way, call in ways.items():
        with pytest.raises(greenpg.errors.IntegrityConstraintViolation, match="own") as caught:
            call(conn.cursor())
        assert caught.value.pgcode == "23Z99", way
        conn.rollback()

    with_async = greenpg.connect(dsn, async_=True)
    greenpg.wait(with_async)
    running = with_async.cursor()
    running.execute("DO $$ BEGIN RAISE EXCEPTION 'own' USING ERRCODE = '23Z99'; END $$")
    with pytest.raises(greenpg.errors.IntegrityConstraintViolation, match="own"):
        greenpg.wait(with_async)
    with_async.close()
