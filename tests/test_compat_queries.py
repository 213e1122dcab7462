"""The snippets of queries' README and manual with one import changed, and what the original got wrong."""

import asyncio
import datetime
import gc
import pprint
import subprocess
import sys
import uuid

import psycopg2
import psycopg2.extras
import pytest
import tornado.simple_httpclient  # noqa: F401 - lest it be imported, slowly, in a test
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions
from tornado import gen, httpclient, httpserver, netutil, web

import greenpg
from greenpg.compat import queries
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def uri(dsn):
    parts = extensions.parse_dsn(dsn)
    return queries.uri(parts["host"], int(parts["port"]), parts["dbname"], parts["user"], parts.get("password"))


@pytest.fixture(autouse=True)
def no_pools():
    yield
    queries.pool.PoolManager.shutdown()


@pytest.fixture
def names(admin):
    cur = admin.cursor()
    cur.execute("DROP TABLE IF EXISTS names; CREATE TABLE names (id int PRIMARY KEY, name text)")
    cur.execute("INSERT INTO names VALUES (1, 'Jacob'), (2, 'Mason'), (3, 'Ethan')")
    yield cur
    cur.execute("DROP TABLE names")


@pytest.fixture
def session(uri):
    with queries.Session(uri) as session:
        yield session


# -- the README and the manual


def test_uri():
    assert (
        queries.uri("server-name", 5432, "dbname", "user", "pass") == "postgresql://user:pass@server-name:5432/dbname"
    )


def test_session_query(uri, names, capsys):
    with queries.Session(uri) as session:
        for row in session.query("SELECT * FROM names"):
            pprint.pprint(dict(row))
    assert capsys.readouterr().out == (
        "{'id': 1, 'name': 'Jacob'}\n{'id': 2, 'name': 'Mason'}\n{'id': 3, 'name': 'Ethan'}\n"
    )


def test_session_callproc(uri):
    with queries.Session(uri) as session:
        results = session.callproc("chr", [65])
    assert results.as_dict() == {"chr": "A"}


def test_the_simple_api(uri):
    assert isinstance(queries.query("SELECT now()", uri)[0]["now"], datetime.datetime)
    assert queries.callproc("chr", uri, [65]).as_dict() == {"chr": "A"}


def test_defaults_are_the_operating_systems_user(monkeypatch):
    monkeypatch.setattr("pwd.getpwuid", lambda uid: ["fred"])
    kwargs = queries.utils.uri_to_kwargs(queries.session.DEFAULT_URI)
    assert (kwargs["host"], kwargs["port"], kwargs["user"], kwargs["dbname"]) == ("localhost", 5432, "fred", "fred")


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize(("setting", "size"), [("7", 7), (None, 1)])
def test_the_environment_sets_the_pool_size(monkeypatch, setting, size):
    if setting is None:
        monkeypatch.delenv("QUERIES_MAX_POOL_SIZE", raising=False)
    else:
        monkeypatch.setenv("QUERIES_MAX_POOL_SIZE", setting)
    code = "from greenpg.compat import queries; print(queries.pool.DEFAULT_MAX_SIZE)"
    assert int(subprocess.check_output([sys.executable, "-c", code])) == size


def test_results(session, names):
    results = session.query("SELECT * FROM names ORDER BY id")
    assert [row["name"] for row in results] == ["Jacob", "Mason", "Ethan"]
    assert results[1]["name"] == "Mason"
    assert len(results) == results.count() == 3
    assert results.status == "SELECT 3"
    assert results.query == b"SELECT * FROM names ORDER BY id"
    assert repr(results) == "<queries.Results rows=3>"
    assert session.query("SELECT * FROM names LIMIT 1").as_dict() == {"id": 1, "name": "Jacob"}
    if session.query("UPDATE names SET name = 'baz' WHERE id = 3"):
        success = True
    assert success
    assert not session.query("UPDATE names SET name = 'baz' WHERE id = 4")


def test_the_sessions_facts(session, admin):
    assert session.query("SELECT pg_backend_pid() AS pid").as_dict() == {"pid": session.backend_pid}
    assert session.encoding == "UTF8"
    session.set_encoding("LATIN1")
    assert session.encoding.replace("_", "") == "LATIN1"
    for number in range(60):
        session.query(f"DO $$BEGIN RAISE NOTICE 'n{number}'; END$$")
    assert len(session.notices) == 50
    assert session.connection.autocommit
    assert isinstance(session.cursor, queries.RealDictCursor)
    assert len(session.pid) == 32
    assert session.query("SELECT %s AS id", [uuid.UUID(int=1)])[0]["id"] == uuid.UUID(int=1)


# -- Tornado


def loop_run(make_coroutine):
    """What asyncio.run does, on loops that every hub can do."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(make_coroutine(), 20))
    finally:
        loop.close()


@pytest.fixture
def get(uri, names):
    """Serves the README's application and fetches a page of it."""

    class MainHandler(web.RequestHandler):
        def initialize(self):
            self.session = queries.TornadoSession(uri)

        @gen.coroutine
        def get(self):
            results = yield self.session.query("SELECT * FROM names")
            self.finish({"data": results.items()})
            results.free()

    class ThreeHandler(MainHandler):
        @gen.coroutine
        def get(self):
            first, second, third = yield [
                self.session.query("SELECT * FROM names WHERE id < 4"),
                self.session.query("SELECT 1 AS one"),
                self.session.query("INSERT INTO names VALUES (%s, %s)", [4, "Ida"]),
            ]
            self.finish({"first": first.items(), "second": second.items()})
            for results in (first, second, third):
                results.free()

    class WidgetHandler(MainHandler):
        @gen.coroutine
        def delete(self):
            results = yield self.session.query("DELETE FROM names WHERE id = %(id)s", {"id": 99})
            self.set_status(204 if results else 404)
            self.finish()
            results.free()

        @gen.coroutine
        def put(self):
            try:
                results = yield self.session.query("INSERT INTO names VALUES (%s, %s)", [1, "Jacob"])
                results.free()
            except (queries.DataError, queries.IntegrityError) as error:
                self.set_status(409)
                self.finish({"error": {"error": error.pgerror.split("\n")[0][8:]}})

        @gen.coroutine
        def post(self):
            results = yield self.session.query("UPDATE names SET name = 'x' WHERE id = 1")
            results.free()
            self.set_status(204 if results else 404)
            self.finish()

    class ReportHandler(web.RequestHandler):
        def get(self):
            self.finish(queries.pool.PoolManager.report())

    application = [(r"/", MainHandler), (r"/three", ThreeHandler), (r"/widget", WidgetHandler), (r"/r", ReportHandler)]

    def fetch(path, **options):
        async def serve():
            (socket,) = netutil.bind_sockets(0, "127.0.0.1")
            server = httpserver.HTTPServer(web.Application(application))
            server.add_socket(socket)
            url = f"http://127.0.0.1:{socket.getsockname()[1]}{path}"
            response = await httpclient.AsyncHTTPClient().fetch(url, raise_error=False, **options)
            server.stop()
            await server.close_all_connections()
            return response.code, response.body.decode()

        return loop_run(serve)

    return fetch


def test_tornado_handler(get):
    code, body = get("/")
    assert code == 200
    assert '{"id": 3, "name": "Ethan"}' in body


def test_tornado_three_queries_at_once(get, names):
    assert get("/three") == (
        200,
        '{"first": [{"id": 1, "name": "Jacob"}, {"id": 2, "name": "Mason"}, {"id": 3, "name": "Ethan"}], '
        '"second": [{"one": 1}]}',
    )
    names.execute("SELECT name FROM names WHERE id = 4")
    assert names.fetchone() == ("Ida",)


def test_tornado_widgets(get):
    assert get("/widget", method="DELETE")[0] == 404
    assert get("/widget", method="POST", body="")[0] == 204
    code, body = get("/widget", method="PUT", body="")
    assert code == 409
    assert "duplicate key value violates unique constraint" in body


def test_tornado_report(get):
    get("/")
    code, body = get("/r")
    assert code == 200
    for key in ("timestamp", "process", "pools", "busy", "executions", "idle", "ttl", "max_size"):
        assert f'"{key}"' in body


def test_awaited_queries_run_at_once_and_leave_nothing_behind(uri):
    async def work():
        session = queries.TornadoSession(uri, pool_max_size=5)
        for _ in range(3):
            found = await asyncio.gather(*[session.query("SELECT %s AS n, pg_sleep(0.01)", [n]) for n in range(5)])
            assert [results[0]["n"] for results in found] == list(range(5))
        with await session.callproc("chr", [65]) as results:
            assert results.as_dict() == {"chr": "A"}
        with pytest.raises(queries.InterfaceError, match="freed"):
            results.items()
        assert results.count() == 1
        assert session._pool.report()["connections"]["busy"] == 0
        assert session._pool.report()["executions"] == 16
        session.close()

    loop_run(work)


def test_more_queries_than_connections(uri):
    async def work(**options):
        session = queries.TornadoSession(uri, pool_max_size=2, **options)
        return await asyncio.gather(*[session.query("SELECT pg_sleep(0.7)") for _ in range(3)], return_exceptions=True)

    outcomes = loop_run(work)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["PoolFullError", "Results", "Results"]
    outcomes = loop_run(lambda: work(pool_timeout=10))
    assert [type(outcome).__name__ for outcome in outcomes] == ["Results"] * 3


def test_awaited_errors_free_the_connection(uri):
    async def work():
        session = queries.TornadoSession(uri, pool_max_size=1)
        for sql, parameters in (("SELECT 1/0", None), ("SELECT %s, %s", [1])):  # the second isn't even sent
            with pytest.raises((psycopg2.DataError, IndexError)):
                await session.query(sql, parameters)
        assert (await session.query("SELECT 1 AS one")).as_dict() == {"one": 1}
        with pytest.raises(queries.InterfaceError):
            session.backend_pid  # noqa: B018
        with pytest.warns(DeprecationWarning, match="functionality removed"):
            session.validate()

    loop_run(work)


# -- what the original got wrong


def test_a_full_pool_raises_at_once_and_waiting_is_opt_in(uri):
    with queries.Session(uri) as session:
        with pytest.raises(queries.pool.NoIdleConnectionsError) as info:
            queries.Session(uri)
        assert str(info.value) == f"Pool {session.pid} has no idle connections"
        assert isinstance(info.value, psycopg2.OperationalError)

    def work():
        with queries.Session(uri, pool_timeout=10) as session:
            session.query("SELECT pg_sleep(0.01)")

    run_all([work] * 5)


def test_a_dead_connection_is_replaced(uri, admin):
    with queries.Session(uri) as session:
        admin.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (session.backend_pid,))
        with pytest.raises(psycopg2.Error):
            session.query("SELECT 1")
    with queries.Session(uri) as session:
        assert session.query("SELECT 1 AS one").as_dict() == {"one": 1}


def test_nothing_of_a_session_is_left_to_the_next(uri, names):
    with queries.Session(uri, autocommit=False) as first:
        first.set_encoding("LATIN1")
        first.query("SET application_name = 'first'")
        first.query("DO $$BEGIN RAISE NOTICE 'x'; END$$")
        first.query("DELETE FROM names")
        pid = first.backend_pid
    with queries.Session(uri) as second:
        assert second.backend_pid == pid
        assert second.encoding == "UTF8"
        assert second.notices == []
        assert second.connection.autocommit
        assert len(second.query("SELECT * FROM names")) == 3
        assert second.query("SHOW application_name").as_dict() == {"application_name": ""}


def test_results_outlive_the_next_query_and_the_session(uri):
    with queries.Session(uri) as session:
        first = session.query("SELECT 1 AS n")
        second = session.query("SELECT 2 AS n")
    assert (first[0]["n"], second[0]["n"]) == (1, 2)
    assert queries.Session(uri).query("SELECT 3 AS n")[0]["n"] == 3


def test_rows_that_are_not_there(session, names):
    for sql, truth, length in (("CREATE TEMP TABLE t (i int)", True, 0), ("INSERT INTO t VALUES (1), (2)", True, 2)):
        results = session.query(sql)
        assert list(results) == results.items() == []
        assert (bool(results), len(results), results.as_dict()) == (truth, length, {})
    results = session.query("SELECT * FROM names WHERE id < 0")
    assert results.as_dict() == {}
    assert not results
    results = session.query("SELECT * FROM names")
    for index in (-1, 3):
        with pytest.raises(IndexError, match="No such row"):
            results[index]
    with pytest.raises(ValueError, match="More than one row"):
        results.as_dict()


def test_a_forgotten_session_gives_its_connection_back(uri):
    session = queries.Session(uri)
    pid = session.backend_pid
    del session
    gc.collect()
    with queries.Session(uri) as session:
        assert session.backend_pid == pid


def test_a_session_outlives_the_task_that_made_it(uri):
    session = run_all([lambda: queries.Session(uri)])[0]
    hub().sleep(0.05)
    with session:
        assert session.query("SELECT 1 AS one").as_dict() == {"one": 1}
        with pytest.raises(queries.pool.NoIdleConnectionsError):
            queries.Session(uri)


def test_idle_connections_are_closed_in_time(uri):
    with queries.Session(uri, pool_idle_ttl=0.2) as session:
        session.query("SELECT 1")
    wait_until(lambda: queries.pool.PoolManager.size(session.pid) == 0)


def test_a_closed_session(uri):
    session = queries.Session(uri)
    pid = session.backend_pid
    session.close()
    for call in (session.close, lambda: session.query("SELECT 1"), lambda: session.backend_pid):
        with pytest.raises(queries.InterfaceError):
            call()
    assert session.connection is session.cursor is None
    with queries.Session(uri) as session:
        assert session.backend_pid != pid


def test_report_clean_and_shutdown(uri):
    manager = queries.pool.PoolManager.instance()
    with queries.Session(uri, pool_max_size=3, pool_idle_ttl=0) as session:
        session.query("SELECT 1")
        with pytest.raises(queries.DataError):
            session.query("SELECT 1/0")
        pool = manager.report()["pools"][session.pid]
        assert pool["connections"] == {"busy": 1, "closed": 0, "executing": 0, "idle": 0, "locked": 1}
        assert (pool["executions"], pool["exceptions"], pool["full"], pool["max_size"]) == (2, 1, False, 3)
        manager.clean(session.pid)
        assert session.pid in manager
        with pytest.raises(queries.pool.ActivePoolError):
            manager.remove(session.pid)
    assert manager.size(session.pid) == 1
    manager.clean(session.pid)
    assert session.pid not in manager
    with queries.Session(uri) as session:
        manager.shutdown()
        assert session.query("SELECT 1 AS one").as_dict() == {"one": 1}
    assert session.pid not in manager


def test_the_manager_creates_lends_and_resizes(uri):
    manager = queries.pool.PoolManager
    with queries.Session(uri) as session:
        pid = session.pid
    manager.remove(pid)
    manager.create(pid, idle_ttl=5, max_size=1)
    with pytest.raises(KeyError, match="already exists"):
        manager.create(pid)
    assert (manager.size(pid), manager.is_full(pid), manager.has_idle_connection(pid)) == (0, False, False)
    manager.set_max_size(pid, 2)
    with queries.Session(uri, pool_max_size=7) as session:
        assert manager.report()["pools"][pid]["max_size"] == 2
        assert manager.has_connection(pid, session.connection)
        conn = manager.get(pid, session)
        assert manager.has_connection(pid, conn)
        with pytest.raises(queries.pool.NoIdleConnectionsError):
            manager.get(pid)
        manager.free(pid, conn)
        with pytest.raises(queries.pool.ConnectionNotFoundError):
            manager.free(pid, conn)
        conn = manager.get(pid)
        manager.remove_connection(pid, conn)
        assert not manager.has_connection(pid, conn)
        manager.set_max_size(pid, 1)
        with pytest.raises(queries.pool.NoIdleConnectionsError):
            manager.get(pid)
    with pytest.raises(KeyError):
        manager.size("unknown")


def test_a_pool_that_nobody_can_connect_by_is_forgotten():
    with pytest.raises(queries.OperationalError, match="refused"):
        queries.Session("postgresql://127.0.0.1:1/x")
    assert queries.pool.PoolManager.report()["pools"] == {}


def test_uris(uri):
    kwargs = queries.utils.uri_to_kwargs("postgresql://j%40x:p%3Aw@h:5433/a%20b?port=1&target_session_attrs=any")
    assert kwargs == {
        "host": "h",
        "port": 1,
        "dbname": "a b",
        "user": "j@x",
        "password": "p:w",
        "target_session_attrs": "any",
    }
    quoted = queries.uri("/tmp/x", 5433, "a/b", "j@x", "p:w")
    kwargs = queries.utils.uri_to_kwargs(quoted)
    assert [kwargs[name] for name in ("host", "port", "dbname", "user", "password")] == [
        "/tmp/x",
        5433,
        "a/b",
        "j@x",
        "p:w",
    ]
    with pytest.raises(psycopg2.ProgrammingError, match="needs a connection URI"):
        queries.Session("localhost")
    with pytest.raises(psycopg2.ProgrammingError, match="nonsense"):
        queries.Session(uri + "?nonsense=1")


def test_named_cursors_scroll_and_hold(session):
    cur = session._get_cursor(session.connection, "named")
    assert (cur.scrollable, cur.withhold) == (True, True)


@green_only
def test_a_killed_session_gives_its_connection_back(uri):
    def work():
        with queries.Session(uri) as session:
            session.query("SELECT pg_sleep(10)")

    task = Task(work)
    wait_until(lambda: any(pool.executing for pool in queries.pool.PoolManager._pools.values()))
    task.throw(Killed())
    with pytest.raises(Killed):
        task.result()
    with queries.Session(uri) as session:
        assert isinstance(session.connection, greenpg.Connection)
        assert session.query("SELECT 1 AS one").as_dict() == {"one": 1}
