"""psycopg2's "More advanced topics", on green connections: factories, adaptation, casting. Nothing of it is changed."""

import datetime
import decimal
import io
import ipaddress
import logging
import uuid

import psycopg2
import pytest
from kit import run_all
from psycopg2 import extensions, extras, sql

import greenpg


@pytest.fixture
def cur(conn):
    with conn.cursor() as cur:
        yield cur


@pytest.fixture
def adapters():
    """Puts back what register_adapter() has changed for the whole process."""
    before = dict(extensions.adapters)
    yield
    extensions.adapters.clear()
    extensions.adapters.update(before)


def fetch(cur, query, args=None):
    cur.execute(query, args)
    return cur.fetchone()[0]


# -- connection and cursor factories


class Point:
    """The documentation's example; examples/point_adapter.py has all of it."""

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __eq__(self, other):
        return (self.x, self.y) == (other.x, other.y)

    __hash__ = None


def test_a_cursor_subclass_of_ones_own(conn):
    """The documentation's LoggingCursor: the executed statement, as it was sent."""
    log = []

    class LoggingCursor(extensions.cursor):
        def execute(self, query, args=None):
            log.append(self.mogrify(query, args))
            try:
                super().execute(query, args)
            except Exception as error:
                log.append(type(error).__name__)
                raise

    cur = conn.cursor(cursor_factory=LoggingCursor)
    cur.execute("SELECT %s", ("x",))
    with pytest.raises(psycopg2.errors.UndefinedTable):
        cur.execute("SELECT * FROM there_is_none")
    assert log == [b"SELECT 'x'", b"SELECT * FROM there_is_none", "UndefinedTable"]
    assert isinstance(cur, LoggingCursor)
    assert isinstance(cur, greenpg.Cursor)


def test_a_connection_subclass_of_ones_own(dsn):
    class Counting(extensions.connection):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.commits = 0

        def commit(self):
            self.commits += 1
            super().commit()

    conn = psycopg2.connect(dsn, connection_factory=Counting)
    conn.cursor().execute("SELECT 1")
    conn.commit()
    assert conn.commits == 1
    assert isinstance(conn, greenpg.Connection)
    conn.close()


def test_dict_cursor(conn):
    with conn.cursor(cursor_factory=extras.DictCursor) as cur:
        cur.execute("SELECT 1 AS a, 2 AS b")
        row = cur.fetchone()
        assert (row["a"], row[1], dict(row)) == (1, 2, {"a": 1, "b": 2})


def test_real_dict_cursor(dsn):
    conn = psycopg2.connect(dsn, connection_factory=extras.RealDictConnection)
    with conn.cursor() as cur:
        cur.execute("SELECT 1 AS a, 2 AS b")
        assert cur.fetchall() == [{"a": 1, "b": 2}]
    conn.close()


def test_named_tuple_cursor(conn):
    with conn.cursor(cursor_factory=extras.NamedTupleCursor) as cur:
        cur.execute("SELECT 1 AS a, 2 AS b")
        row = cur.fetchone()
        assert (row.a, row.b) == (1, 2)
        cur.execute("SELECT n FROM generate_series(1, 3) n")
        assert [row.n for row in cur] == [1, 2, 3]


@pytest.mark.parametrize("factory", [extras.DictCursor, extras.RealDictCursor, extras.NamedTupleCursor])
def test_named_cursors_of_a_factory(conn, factory):
    with conn.cursor("named", cursor_factory=factory) as cur:
        cur.itersize = 2
        cur.execute("SELECT n FROM generate_series(1, 5) n")
        assert [row.n if factory is extras.NamedTupleCursor else row["n"] for row in cur] == [1, 2, 3, 4, 5]


def test_logging_connection(dsn, caplog):
    caplog.set_level(logging.DEBUG)
    conn = psycopg2.connect(dsn, connection_factory=extras.LoggingConnection)
    conn.initialize(logging.getLogger("statements"))
    cur = conn.cursor()
    assert isinstance(cur, extras.LoggingCursor)
    cur.execute("SELECT %s", ("logged",))
    assert "SELECT 'logged'" in caplog.text
    conn.close()


def test_logging_connection_into_a_file(dsn):
    conn = psycopg2.connect(dsn, connection_factory=extras.LoggingConnection)
    log = io.StringIO()
    conn.initialize(log)
    conn.cursor().execute("SELECT 'logged'")
    assert "SELECT 'logged'" in log.getvalue()
    conn.close()


def test_min_time_logging_connection(dsn, caplog):
    caplog.set_level(logging.DEBUG)
    conn = psycopg2.connect(dsn, connection_factory=extras.MinTimeLoggingConnection)
    conn.initialize(logging.getLogger("slow"), mintime=150)
    cur = conn.cursor()
    assert isinstance(cur, extras.MinTimeLoggingCursor)
    cur.execute("SELECT 'quick'")
    cur.execute("SELECT pg_sleep(0.2)")
    assert "quick" not in caplog.text
    assert "pg_sleep" in caplog.text
    conn.close()


def test_factories_in_a_pool(make_pool, dsn):
    class Tagged(extensions.connection):
        tag = "mine"

    pool = make_pool(dsn, connection_class=Tagged, kwargs={"cursor_factory": extras.NamedTupleCursor}, min_size=1)
    with pool.connection() as conn:
        assert conn.tag == "mine"
    with pool.cursor() as cur:
        cur.execute("SELECT 1 AS a")
        assert cur.fetchone().a == 1


# -- adaptation: Python to SQL


def test_register_adapter_and_asis(cur, adapters):
    """The documentation's Point."""

    def adapt_point(point):
        x = extensions.adapt(point.x).getquoted().decode()
        y = extensions.adapt(point.y).getquoted().decode()
        return extensions.AsIs(f"'({x}, {y})'")

    extensions.register_adapter(Point, adapt_point)
    cur.execute("CREATE TEMP TABLE atable (apoint point)")
    cur.execute("INSERT INTO atable (apoint) VALUES (%s)", (Point(1.23, 4.56),))
    assert cur.query == b"INSERT INTO atable (apoint) VALUES ('(1.23, 4.56)')"
    assert fetch(cur, "SELECT apoint FROM atable") == "(1.23,4.56)"


def test_conform(cur):
    """An object that adapts itself: `__conform__` and `getquoted`."""

    class Celsius:
        def __init__(self, degrees):
            self.degrees = degrees

        def __conform__(self, protocol):
            if protocol is extensions.ISQLQuote:
                return self

        def getquoted(self):
            return str(self.degrees).encode()

    assert fetch(cur, "SELECT %s + 1", (Celsius(20),)) == 21


def test_prepare_is_given_the_connection(cur, conn, adapters):
    seen = []

    class Text(str):
        pass

    class Adapter:
        def __init__(self, text):
            self.text = text

        def prepare(self, conn):
            seen.append(conn)

        def getquoted(self):
            quoted = extensions.QuotedString(self.text)
            quoted.prepare(seen[-1])
            return quoted.getquoted()

    extensions.register_adapter(Text, Adapter)
    assert fetch(cur, "SELECT %s", (Text("it's"),)) == "it's"
    assert seen == [conn]


def test_what_cant_be_adapted(cur):
    with pytest.raises(psycopg2.ProgrammingError, match="can't adapt type 'Point'"):
        cur.execute("SELECT %s", (Point(1, 2),))
    assert fetch(cur, "SELECT 1") == 1


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (None, "text"),
        (True, "bool"),
        (2**40, "bigint"),
        (1.5, "float8"),
        (decimal.Decimal("1.10"), "numeric"),
        ("it's \\ ü \u2603", "text"),
        (datetime.date(2026, 1, 2), "date"),
        (datetime.time(1, 2, 3), "time"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6), "timestamp"),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), "timestamptz"),
        (datetime.timedelta(days=1, seconds=2), "interval"),
        ([1, 2, None], "int[]"),
        ([["a", "b"], ["c", "d"]], "text[]"),
        ([], "int[]"),
    ],
)
def test_round_trips(cur, value, type_name):
    assert fetch(cur, f"SELECT %s::{type_name}", (value,)) == value


def test_bytes(cur):
    value = bytes(range(256))
    assert bytes(fetch(cur, "SELECT %s::bytea", (value,))) == value
    assert bytes(fetch(cur, "SELECT %s::bytea", (psycopg2.Binary(value),))) == value


def test_tuples(cur):
    assert fetch(cur, "SELECT 2 IN %s", ((1, 2, 3),)) is True


def test_sql_composition(cur, conn):
    query = sql.SQL("SELECT {column} FROM (VALUES (%s)) AS t ({column})").format(column=sql.Identifier('we"ird'))
    assert query.as_string(conn) == 'SELECT "we""ird" FROM (VALUES (%s)) AS t ("we""ird")'
    assert fetch(cur, query, (7,)) == 7


def test_execute_values_and_batch(cur):
    cur.execute("CREATE TEMP TABLE v (a int, b text)")
    extras.execute_values(cur, "INSERT INTO v VALUES %s", [(n, str(n)) for n in range(250)], page_size=100)
    extras.execute_batch(cur, "INSERT INTO v VALUES (%s, %s)", [(n, str(n)) for n in range(250, 300)], page_size=20)
    assert fetch(cur, "SELECT count(*) FROM v WHERE a::text = b") == 300


# -- casting: SQL to Python


def cast_point(value, cur):
    if value is None:
        return None
    try:
        x, y = value.strip("()").split(",")
        return Point(float(x), float(y))
    except ValueError:
        raise psycopg2.InterfaceError(f"bad point representation: {value!r}") from None


def point_type(cur):
    cur.execute("SELECT NULL::point")
    return extensions.new_type((cur.description[0].type_code,), "POINT", cast_point)


def test_new_type_on_a_cursor(conn, cur):
    extensions.register_type(point_type(cur), cur)
    assert fetch(cur, "SELECT '(1.5,2)'::point") == Point(1.5, 2)
    assert fetch(cur, "SELECT NULL::point") is None
    assert fetch(conn.cursor(), "SELECT '(1.5,2)'::point") == "(1.5,2)", "another cursor's are its own"


def test_new_type_on_a_connection(conn, cur, dsn):
    extensions.register_type(point_type(cur), conn)
    assert fetch(conn.cursor(), "SELECT '(1.5,2)'::point") == Point(1.5, 2)
    other = psycopg2.connect(dsn)
    assert fetch(other.cursor(), "SELECT '(1.5,2)'::point") == "(1.5,2)"
    other.close()


def test_new_type_for_the_whole_process(cur, dsn):
    new_type = point_type(cur)
    extensions.register_type(new_type)
    try:
        other = psycopg2.connect(dsn)
        assert fetch(other.cursor(), "SELECT '(1.5,2)'::point") == Point(1.5, 2)
        other.close()
    finally:
        for oid in new_type.values:
            del extensions.string_types[oid]


def test_new_array_type(conn, cur):
    cur.execute("SELECT NULL::point[]")
    array_type = extensions.new_array_type((cur.description[0].type_code,), "POINT[]", point_type(cur))
    extensions.register_type(array_type, conn)
    cur = conn.cursor()
    assert fetch(cur, """SELECT '{"(1,2)","(3,4)",NULL}'::point[]""") == [Point(1, 2), Point(3, 4), None]


def test_a_cast_that_raises(conn, cur):
    oid = point_type(cur).values
    extensions.register_type(extensions.new_type(oid, "BAD", lambda value, cur: 1 / 0), conn)
    cur = conn.cursor()
    cur.execute("SELECT '(1,2)'::point")
    with pytest.raises(ZeroDivisionError):
        cur.fetchone()
    assert fetch(cur, "SELECT 1") == 1


def test_types_by_a_pools_configure(make_pool, dsn):
    """Registered on each of the pool's connections as it is made."""

    def configure(conn):
        with conn.cursor() as cur:
            extensions.register_type(point_type(cur), conn)
        conn.commit()

    pool = make_pool(dsn, min_size=3, configure=configure)

    def read(n):
        with pool.cursor() as cur:
            return fetch(cur, "SELECT point(%s, 0) FROM pg_sleep(0.01)", (n,))

    assert run_all([lambda n=n: read(n) for n in range(12)]) == [Point(n, 0) for n in range(12)]


def test_floats_instead_of_decimals(conn):
    """The recipe of psycopg2's FAQ."""
    dec2float = extensions.new_type(
        extensions.DECIMAL.values, "DEC2FLOAT", lambda value, cur: float(value) if value is not None else None
    )
    extensions.register_type(dec2float, conn)
    value = fetch(conn.cursor(), "SELECT 1.5::numeric")
    assert isinstance(value, float)
    assert value == 1.5


# -- psycopg2.extras' types


def test_json(cur, adapters):
    value = {"a": [1, None, "ü"], "b": {"c": 1.5}}
    assert fetch(cur, "SELECT %s::json", (extras.Json(value),)) == value
    assert fetch(cur, "SELECT %s::jsonb", (extras.Json(value),)) == value
    assert fetch(cur, "SELECT ARRAY[%s::jsonb]", (extras.Json(value),)) == [value]
    extensions.register_adapter(dict, extras.Json)
    assert fetch(cur, "SELECT %s::jsonb -> 'b'", (value,)) == {"c": 1.5}


def test_json_with_other_functions(conn):
    extras.register_default_jsonb(conn, loads=lambda text: ("loaded", len(text)))
    assert fetch(conn.cursor(), "SELECT '{}'::jsonb") == ("loaded", 2)

    class Upper(extras.Json):
        def dumps(self, obj):
            return super().dumps(obj).upper()

    assert fetch(conn.cursor(), "SELECT %s::json ->> 0", (Upper(["a"]),)) == "A"


@pytest.mark.parametrize(
    "value",
    [
        extras.NumericRange(1, 10),
        extras.NumericRange(None, 10, "()"),
        extras.NumericRange(decimal.Decimal("1.5"), None),
        extras.NumericRange(empty=True),
        extras.DateRange(datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)),
        extras.DateTimeRange(datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2), "[]"),
    ],
)
def test_ranges(cur, value):
    type_name = {extras.DateRange: "daterange", extras.DateTimeRange: "tsrange"}.get(type(value), "numrange")
    if value == extras.NumericRange(1, 10):
        type_name = "int4range"
    assert fetch(cur, f"SELECT %s::{type_name}", (value,)) == value


def test_a_range_type_of_ones_own(conn, cur, adapters):
    cur.execute("CREATE TYPE pg_temp.textrange AS RANGE (subtype = text)")
    cur.execute("SELECT oid, typarray FROM pg_type WHERE typname = 'textrange'")

    class TextRange(extras.Range):
        pass

    caster = extras.register_range("pg_temp.textrange", TextRange, conn)
    cur = conn.cursor()
    value = TextRange("a", "k")
    assert fetch(cur, "SELECT %s::pg_temp.textrange", (value,)) == value
    assert caster.range is TextRange


def test_inet(conn, adapters):
    with pytest.warns(DeprecationWarning, match="inet adapter is deprecated"):
        extras.register_inet(conn_or_curs=conn)
    value = fetch(conn.cursor(), "SELECT %s", (extras.Inet("10.0.0.1/8"),))
    assert isinstance(value, extras.Inet)
    assert value.addr == "10.0.0.1/8"


def test_ip_addresses(conn, adapters):
    extras.register_ipaddress(conn)
    cur = conn.cursor()
    for text in ("10.0.0.1/8", "::1/128"):
        value = ipaddress.ip_interface(text)
        assert fetch(cur, "SELECT %s::inet", (value,)) == value
    value = ipaddress.ip_network("10.0.0.0/8")
    assert fetch(cur, "SELECT %s::cidr", (value,)) == value


def test_uuid(conn, adapters):
    extras.register_uuid(conn_or_curs=conn)
    value = uuid.uuid4()
    cur = conn.cursor()
    assert fetch(cur, "SELECT %s", (value,)) == value
    assert fetch(cur, "SELECT %s", ([value, None],)) == [value, None]


def test_composite_types(conn, cur):
    cur.execute("CREATE TYPE pg_temp.card AS (value int, suit text)")
    extras.register_composite("pg_temp.card", conn)
    cur = conn.cursor()
    card = fetch(cur, "SELECT (8, 'hearts')::pg_temp.card")
    assert (card.value, card.suit) == (8, "hearts")
    assert fetch(cur, "SELECT ARRAY[(8, 'it''s \"q\"')::pg_temp.card]")[0].suit == 'it\'s "q"'


def test_enums(cur):
    cur.execute("CREATE TYPE pg_temp.mood AS ENUM ('sad', 'happy')")
    assert fetch(cur, "SELECT 'happy'::pg_temp.mood") == "happy"


def test_hstore(conn, cur, adapters):
    cur.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'")
    if not cur.fetchone()[0]:
        pytest.skip("this server has no hstore (the embedded one of the wheel hasn't): --dsn one with contrib")
    cur.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    extras.register_hstore(conn)
    value = {"a": "1", "b": None, 'q"': "it's"}
    cur = conn.cursor()
    assert fetch(cur, "SELECT %s", (value,)) == value
    conn.rollback()


def test_hstore_without_hstore(conn, cur, adapters):
    """What psycopg2 does for hstore, on any server: an enum's label stands for hstore's text, a function for its
    constructor."""
    cur.execute("""CREATE TYPE pg_temp.like_hstore AS ENUM ('"a"=>"1", "b"=>NULL, "q\\""=>"it''s"')""")
    cur.execute("SELECT 'pg_temp.like_hstore'::regtype::oid")
    extras.register_hstore(conn, oid=cur.fetchone()[0])
    cur = conn.cursor()
    cur.execute("SELECT enum_first(NULL::pg_temp.like_hstore)")
    value = {"a": "1", "b": None, 'q"': "it's"}
    assert cur.fetchone()[0] == value
    cur.execute("CREATE SCHEMA for_hstore")
    cur.execute(
        "CREATE FUNCTION for_hstore.hstore(text[], text[]) RETURNS jsonb LANGUAGE sql AS 'SELECT jsonb_object($1, $2)'"
    )
    cur.execute("SET LOCAL search_path = for_hstore, public")
    assert fetch(cur, "SELECT %s", (value,)) == value
    conn.rollback()
