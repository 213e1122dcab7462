"""greenpg.integrations.flask and .wsgi: what a request borrows and how it ends; the storm is in test_servers.py."""

from __future__ import annotations

import contextvars

import pytest
from kit import Task

import greenpg
from greenpg.integrations.wsgi import Greenpg as Middleware

flask = pytest.importorskip("flask")
from greenpg.integrations.flask import Greenpg  # noqa: E402


@pytest.fixture
def table(admin):
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS flask_item")
        cur.execute("CREATE TABLE flask_item (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    yield lambda: sorted(id_ for (id_,) in admin.execute("SELECT id FROM flask_item").fetchall())
    with admin.cursor() as cur:
        cur.execute("DROP TABLE flask_item")


def insert(cur, number):
    cur.execute("INSERT INTO flask_item VALUES (%s)", (number,))


@pytest.fixture
def make_app(dsn):
    apps = []

    def make(**config):
        app = flask.Flask("tested")
        app.config.from_mapping({"GREENPG_DSN": dsn, "GREENPG_OPTIONS": {"max_size": 2, "timeout": 5}, **config})
        db = Greenpg()
        db.init_app(app)
        apps.append(app)
        return app, db, app.test_client()

    yield make
    for app in apps:
        for pool in app.extensions["greenpg"].pools.values():
            assert "0 lent" in repr(pool), "a request has kept a connection"
            pool.close()


def test_blocks(make_app, table):
    app, db, client = make_app()

    @app.get("/<int:number>/<how>")
    def view(number, how):
        with db.transaction() as conn, db.cursor() as cur:
            insert(cur, number)
            assert cur.connection is conn is db.connection
            with db.transaction():
                insert(db.connection.cursor(), number + 1)
                if how == "inner":
                    raise greenpg.Rollback
            if how == "raise":
                1 / 0  # noqa: B018
        assert "0 lent" in repr(db.pool)  # returned with the block
        return "done"

    assert client.get("/1/well").text == "done"
    assert client.get("/3/inner").text == "done"
    assert client.get("/5/raise").status_code == 500
    assert table() == [1, 2, 3]


def test_the_requests_connection(make_app, table):
    app, db, client = make_app()

    @app.get("/")
    def view():
        conn = db.connection
        assert db.connection is conn
        insert(conn.cursor(), 1)
        conn.commit()
        with db.cursor() as cur:  # commits
            assert cur.connection is conn
            insert(cur, 2)
        insert(conn.cursor(), 3)  # and forgets to commit
        return "done"

    assert client.get("/").text == "done"
    assert table() == [1, 2]


def test_a_transaction_for_each_request(make_app, table):
    app, db, client = make_app(GREENPG_PER_REQUEST="transaction")

    @app.get("/<int:number>/<how>")
    def view(number, how):
        with db.cursor() as cur:
            insert(cur, number)
        insert(db.connection.cursor(), number if how == "twice" else number + 1)
        if how == "raise":
            1 / 0  # noqa: B018
        if how == "abort":
            flask.abort(404)
        return ("refused", 409) if how == "refuse" else "done"

    assert client.get("/1/well").status_code == 200
    assert [client.get(f"/5/{how}").status_code for how in ("raise", "abort", "refuse")] == [500, 404, 409]
    assert client.get("/7/twice").status_code == 500  # it is the commit that fails, and the client is told
    assert table() == [1, 2]


class Killed(BaseException):
    pass


def test_a_kill_and_a_streamed_body(make_app, table):
    app, db, client = make_app(GREENPG_PER_REQUEST="transaction")

    @app.get("/kill")
    def kill():
        insert(db.connection.cursor(), 1)
        raise Killed

    @app.get("/stream")
    def stream():
        def body():
            for number in range(10, 13):
                with db.cursor() as cur:
                    insert(cur, number)
                yield b"x"

        return flask.Response(flask.stream_with_context(body()))

    with pytest.raises(Killed):
        client.get("/kill")
    assert client.get("/stream").text == "xxx"
    assert table() == [10, 11, 12]


def test_what_a_request_spawns_has_its_own_connection(make_app, table):
    app, db, client = make_app(GREENPG_PER_REQUEST="transaction")

    @app.get("/")
    def view():
        insert(db.connection.cursor(), 1)

        def work():
            with db.cursor() as cur:
                insert(cur, 2)
                assert cur.connection is not conn

        def misuse():
            return db.connection

        conn = db.connection
        Task(in_context(work)).result()
        with pytest.raises(RuntimeError, match="not for what it has spawned"):
            Task(in_context(misuse)).result()
        flask.abort(400)

    def in_context(function):
        context = contextvars.copy_context()
        return lambda: context.run(function)

    assert client.get("/").status_code == 400
    assert table() == [2]


def test_several_databases_and_the_doctor(make_app, dsn):
    app, db, client = make_app(GREENPG_DATABASES={"reports": {"conninfo": dsn, "max_size": 1}})

    @app.get("/")
    def view():
        with db.cursor() as one, db["reports"].cursor() as other:
            assert one.connection is not other.connection
            assert db["reports"].pool.max_size == 1
            return "done"

    assert client.get("/").text == "done"
    with app.app_context(), pytest.raises(LookupError, match="no database 'other'.*'reports', 'default'"):
        db["other"].cursor()
    with pytest.raises(RuntimeError, match="already"):
        Greenpg(app, dsn)
    with pytest.raises(ValueError, match="GREENPG_DSN"):
        Greenpg(flask.Flask("other"))
    with pytest.raises(ValueError, match="per_request"):
        Greenpg(per_request="nothing")
    done = app.test_cli_runner().invoke(args=["greenpg", "doctor"])
    assert done.exit_code == 0, done.output
    assert "pools: reports (1 to 1), default (2 to 2)" in done.output and "server version: " in done.output


# -- the middleware


def call(application, path="/"):
    """What a server does with an app: the status and the body."""
    started = []
    body = application({"PATH_INFO": path}, lambda status, headers, *exc_info: started.append(status))
    try:
        return started, b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_middleware(dsn, table, kind):
    def respond(environ, start_response):
        db, path = environ["greenpg"], environ["PATH_INFO"]
        insert(db.connection.cursor(), 1 if path != "/twice" else 5)
        if path == "/twice":
            insert(db.connection.cursor(), 5)
        if path == "/raise":
            1 / 0  # noqa: B018
        start_response("404 Not Found" if path == "/refuse" else "200 OK", [])

    def plain(environ, start_response):
        respond(environ, start_response)
        return [b"done"]

    def generator(environ, start_response):
        respond(environ, start_response)
        yield b"do"
        with environ["greenpg"].cursor() as cur:
            insert(cur, 2)
        yield b"ne"

    wrapped = Middleware(plain if kind == "list" else generator, dsn, max_size=1, timeout=5, per_request="transaction")
    with pytest.raises(ZeroDivisionError):
        call(wrapped, "/raise")
    assert call(wrapped, "/refuse") == (["404 Not Found"], b"done")
    assert table() == ([] if kind == "list" else [2])
    with pytest.raises(greenpg.errors.IntegrityConstraintViolation):  # and nothing was said to have succeeded
        call(wrapped, "/twice")
    with wrapped.pool.cursor() as cur:
        cur.execute("DELETE FROM flask_item")
    assert call(wrapped) == (["200 OK"], b"done")
    assert table() == ([1] if kind == "list" else [1, 2])
    with wrapped.pool.cursor() as cur:
        cur.execute("DELETE FROM flask_item")
    if kind == "generator":  # a client that goes away
        body = wrapped({"PATH_INFO": "/"}, lambda *args: None)
        assert next(iter(body)) == b"do"
        body.close()
        assert table() == [1]
    assert "0 lent" in repr(wrapped.pool)
    wrapped.pool.close()
    with pytest.raises(TypeError, match="max_size"):
        Middleware(plain, wrapped.pool, max_size=3)
