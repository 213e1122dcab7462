"""Passwords don't show: in no repr, error, traceback or log record of any public object."""

import io
import logging
import traceback

import psycopg2
import pytest
from kit import Task

import greenpg
from greenpg.compat import pgmanagedconnection, queries
from greenpg.connection.connect.dsn import checked_dsn, masked_dsn
from greenpg.connection.connect.route import find_route

#: Each has the two words of the password in it, as people write it.
WORDS = ("hunter", "trombone")
DSNS = {
    "plain": "host=127.0.0.1 port=1 user=app password=huntertrombone dbname=app",
    "quoted": "host=127.0.0.1 port=1 user=app password='hunter trombone' dbname=app",
    "URI": "postgresql://app:huntertrombone@127.0.0.1:1/app",
    "percent-encoded": "postgresql://app:hunter%40trombone@127.0.0.1:1/app",
    "an @ in a URI": "postgresql://app:hunter@trombone@127.0.0.1:1/app",
    "a / in a URI": "postgresql://app:hunter/trombone@127.0.0.1:1/app",
    "a / behind digits": "postgresql://app:1/huntertrombone@127.0.0.1:1/app",
    "a ? in a URI": "postgresql://app:hunter?trombone@127.0.0.1:1/app",
    "a ? and =": "postgresql://app:hunter?trombone=1@127.0.0.1:1/app",
    "a # in a URI": "postgresql://app:hunter#trombone@127.0.0.1:1/app",
    "a % in a URI": "postgresql://app:hunter%trombone@127.0.0.1:1/app",
    "a : in a URI": "postgresql://app:hunter:trombone@127.0.0.1:1/app",
    "a [ in a URI": "postgresql://app:x@[huntertrombone@127.0.0.1:1/app",
    "in the query": "postgresql://127.0.0.1:1/app?user=app&password=huntertrombone",
    "a misspelt query": "postgresql://127.0.0.1:1/app?user=app&passwort=huntertrombone",
    "a space": "host=127.0.0.1 port=1 password=hunter trombone dbname=app",
    "a space and =": "host=127.0.0.1 port=1 password=x hunter=trombone dbname=app",
    "an open quote": "host=127.0.0.1 port=1 password='huntertrombone dbname=app",
    "sslpassword": "host=127.0.0.1 port=1 user=app sslpassword=huntertrombone dbname=app",
    "no keyword": "huntertrombone",
}


def check(*texts):
    for text in texts:
        for word in WORDS:
            assert word not in text, text


def everything_of(error):
    """What somebody can see of an exception, its causes and contexts included."""
    file = io.StringIO()
    traceback.print_exception(type(error), error, error.__traceback__, file=file)
    # The lines of this file in it are the test's own.
    yield file.getvalue()
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), getattr(error, "pgerror", None) or "")
        error = error.__cause__ or error.__context__


def tries(function, *args, **kwargs):
    """What it gives, None if it raises one of the usual errors, in which no secret may show."""
    try:
        return function(*args, **kwargs)
    except (psycopg2.Error, ValueError, TypeError, LookupError) as error:
        check(*everything_of(error))
        return None


@pytest.mark.only_hub("gevent")  # they take long: most can't connect
@pytest.mark.parametrize("dsn", DSNS.values(), ids=DSNS)
@pytest.mark.parametrize("as_kwargs", [False, True], ids=["", "with keywords"])
def test_no_secret_shows(dsn, as_kwargs, caplog):
    caplog.set_level(logging.DEBUG)
    more = {"application_name": "secret"} if as_kwargs else {}
    tries(greenpg.connect, dsn, **more)
    if is_parsed(dsn):  # what can't be parsed is psycopg2's own error
        tries(psycopg2.connect, dsn, **more)
    check(masked_dsn(dsn))
    tries(checked_dsn, dsn, **more)

    for make in (greenpg.ConnectionPool, greenpg.NullConnectionPool):
        sizes = {"min_size": 0, "max_size": 1}
        pool = tries(make, dsn, kwargs=more, **sizes, timeout=0.1, reconnect_timeout=0.1)
        if pool is not None:
            check(repr(pool), str(pool), pool.name)
            tries(pool.fetchval, "SELECT 1")
            tries(pool.wait, 0.1)
            check(repr(pool.get_stats()))
            pool.close()
    pool = tries(greenpg.ConnectionPool, lambda: dsn, min_size=0, max_size=1, timeout=0.1)
    tries(pool.fetchval, "SELECT 1")
    pool.close()

    # What is no connection string is a name to get_pool(), and shown.
    is_name = "=" not in dsn and "://" not in dsn
    pool = None if is_name else tries(greenpg.get_pool, dsn, kwargs=more, min_size=0, max_size=1, timeout=0.1)
    if not is_name:
        tries(greenpg.get_pool, dsn, max_size=7)
    tries(greenpg.get_pool, "unknown")
    tries(greenpg.get_pool, "secret-name", dsn, min_size=0, max_size=1)
    tries(greenpg.get_pool, "secret-name", dsn + " ", min_size=0, max_size=2)
    if pool is not None:
        check(repr(pool))
    greenpg.close_pools()

    shared = tries(greenpg.SharedConnection, dsn, **more)
    if shared is not None:
        check(repr(shared), str(shared), shared.dsn)
        tries(shared().__enter__)
    for conninfo in (dsn, lambda: dsn):
        listener = tries(greenpg.Listener, conninfo, kwargs=more, timeout=0.1)
        if listener is not None:
            check(repr(listener), str(listener))
            tries(listener.subscribe, "channel")
            tries(listener.notify, "channel", "text")
            listener.close()

    tries(pgmanagedconnection.ManagedConnection, dsn)
    if "://" in dsn:
        tries(queries.Session, dsn)
    check(caplog.text, *(str(record.__dict__) for record in caplog.records))


def is_parsed(dsn):
    try:
        return bool(psycopg2.extensions.parse_dsn(dsn))
    except psycopg2.ProgrammingError:
        return False


def test_the_repr_of_connections_and_their_errors(dsn):
    secrets = {"password": "huntertrombone", "sslpassword": "huntertrombone"}
    conn = greenpg.connect(dsn, **secrets)
    check(repr(conn), str(conn), conn.dsn)
    assert "password=xxx" in conn.dsn
    task = Task(conn.execute, "SELECT pg_sleep(0.3)")
    while conn._gate.owner is conn._gate.free and not task.error:
        greenpg.hubs.hub().sleep(0.005)
    tries(conn.execute, "SELECT 1")
    task.result()
    tries(conn.execute, "SELECT nonsense")
    conn.close()
    check(repr(conn))
    tries(conn.execute, "SELECT 1")


@pytest.mark.parametrize("name", ["an @ in a URI", "a / in a URI"])
def test_what_libpq_reads_otherwise_is_an_error_that_says_what_to_do(name):
    for make in (greenpg.connect, greenpg.SharedConnection, greenpg.Listener, greenpg.ConnectionPool):
        with pytest.raises(psycopg2.ProgrammingError, match="percent-encoded.*%40"):
            make(DSNS[name])
    with pytest.raises(psycopg2.OperationalError, match="percent-encoded.*%40"):
        psycopg2.connect(DSNS[name])


def test_a_name_that_is_wrong_among_the_keywords_is_shown():
    with pytest.raises(psycopg2.ProgrammingError, match='invalid connection option "hots"'):
        greenpg.connect("host=127.0.0.1", hots="db")
    with pytest.raises(psycopg2.ProgrammingError, match='missing "=" after a keyword'):
        greenpg.connect("host=127.0.0.1 password=two words")


def test_hosts_that_can_be_such_are_clear():
    for host in ("/var/run/a@b", "@abstract", "db1,db2", "::1", "", "db.example"):
        assert find_route(f"host={host}").dsn == f"host={host}"
    assert masked_dsn("postgresql://app:x%40y@db:5432/app") == "user=app password=*** dbname=app host=db port=5432"
