"""The snippets of PgManager's manual with one import changed. There's nothing else to compare it with."""

import datetime
import logging
import time
from collections import OrderedDict

import psycopg2
import psycopg2.errors
import pytest
from kit import Task, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.compat import pgmanager
from greenpg.hubs import hub


@pytest.fixture
def pgm():
    pgm = pgmanager.PgManager()
    yield pgm
    for name in list(pgm._named):
        pgm.destroy_conn(name)


@pytest.fixture
def parameters(dsn):
    return extensions.parse_dsn(dsn)


def test_basic_usage(parameters):
    pgm = pgmanager.get_instance()
    assert pgm is pgmanager.get_instance()
    pgm.create_conn(isolation_level="autocommit", **parameters)
    try:
        with pgm.cursor() as curs:
            curs.execute("SELECT now() AS now")
            row = curs.fetchone_dict()
            assert isinstance(row, OrderedDict)
            assert isinstance(row.now, datetime.datetime)
            assert curs.connection.autocommit
    finally:
        pgm.destroy_conn()


def test_get_put_and_close(pgm, parameters):
    pgm.create_conn(name="other", **parameters)
    conn = pgm.get_conn("other")
    curs = conn.cursor()
    curs.execute("CREATE TABLE pgm_table (id int)")
    conn.commit()
    curs.execute("DROP TABLE pgm_table")
    pgm.put_conn(conn, "other")  # what isn't committed is rolled back
    with pgm.cursor("other") as curs:
        curs.execute("SELECT * FROM pgm_table")
        assert curs.fetchall_dict() == []
        curs.execute("DROP TABLE pgm_table")
        curs.connection.commit()
    pgm.close_conn("other")
    wait_until(lambda: conn.closed)
    with pgm.cursor("other") as curs:  # what is known of it stays
        curs.execute("SELECT 1 AS one")
        assert curs.fetchone() == (1,)


def test_the_listening_loop(pgm, parameters, admin):
    pgm.create_conn(**parameters)
    pgm.create_conn_listen("chat", "CHAT", copy_dsn="default")  # unquoted: it hears chat
    assert pgm.wait_for_notify("chat", timeout=0.05) is None
    for number in range(3):
        admin.cursor().execute(f"NOTIFY CHAT, 'm{number}'")
    heard = [pgm.wait_for_notify("chat", timeout=5.0) for _ in range(3)]
    assert [(note.channel, note.payload) for note in heard] == [("chat", "m0"), ("chat", "m1"), ("chat", "m2")]


def test_timeouts(pgm, parameters):
    pgm.create_conn(connect_timeout=5, init_statement="SET statement_timeout TO 200;", **parameters)
    with pgm.cursor() as curs:
        with pytest.raises(psycopg2.errors.QueryCanceled):
            curs.execute("SELECT pg_sleep(10)")
    with pgm.cursor() as curs:
        curs.execute("SHOW statement_timeout")
        assert curs.fetchone() == ("200ms",)


# -- beyond the snippets


def test_an_unreachable_server_is_an_error_only_when_it_is_needed(pgm):
    started = time.monotonic()
    pgm.create_conn("nowhere", host="127.0.0.1", port=1, dbname="x", user="x")
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        pgm.get_conn("nowhere")
    assert time.monotonic() - started < 20


def test_names(pgm, parameters):
    pgm.create_conn(**parameters)
    pgm.create_conn_listen("ear", "x", **parameters)
    assert pgm.knows_conn()
    assert not pgm.knows_conn("other")
    for call in (
        lambda: pgm.get_conn("other"),
        lambda: pgm.close_conn("other"),
        lambda: pgm.create_conn(),
        lambda: pgm.create_conn_listen("new", "x", copy_dsn="other"),
        lambda: pgm.wait_for_notify("default"),
        lambda: pgm.get_conn("ear"),
        lambda: pgm.put_conn(None),
    ):
        with pytest.raises(pgmanager.PgManagerError):
            call()
    assert issubclass(pgmanager.PgManagerError, psycopg2.Error)


def test_connections_grow_on_demand(pgm, parameters):
    pgm.create_conn(**parameters)
    conns = [pgm.get_conn() for _ in range(5)]
    assert len({conn.info.backend_pid for conn in conns}) == 5
    for conn in conns:
        pgm.put_conn(conn, "the name is not checked")
    with pytest.raises(pgmanager.PgManagerError, match="put back already"):
        pgm.put_conn(conns[0])


def test_a_connection_outlives_the_task_that_got_it(pgm, parameters):
    pgm.create_conn(**parameters)
    (conn,) = run_all([pgm.get_conn])
    hub().sleep(0.05)
    curs = conn.cursor()
    curs.execute("SELECT 1")
    assert curs.fetchone() == (1,)
    pgm.put_conn(conn)


def test_rows(pgm, parameters):
    pgm.create_conn(**parameters)
    with pgm.cursor() as curs:
        assert isinstance(curs, greenpg.Cursor)
        curs.execute("SELECT 1 AS t_id, 'it''s' AS t_name, NULL AS t_none")
        row = curs.fetchone()
        assert curs.row_dict(row).t_id == 1
        assert curs.row_dict(row, lstrip="t_") == {"id": 1, "name": "it's", "none": None}
        assert curs.adapt(row) == ["1", "'it''s'", "NULL"]
        curs.scroll(0, "absolute")
        assert curs.fetchone_dict(lstrip="t_").name == "it's"
        assert curs.fetchone_dict() is None
        curs.scroll(0, "absolute")
        assert curs.fetchall_dict(lstrip="t_")[0].id == 1
        curs.scroll(0, "absolute")
        assert curs.fetchone_adapted() == ["1", "'it''s'", "NULL"]
        assert curs.fetchone_adapted() is None
        assert curs.fetchall_adapted() == []


def test_the_loggers(pgm, parameters, caplog):
    caplog.set_level(logging.DEBUG, "pgmanager_sql")
    caplog.set_level(logging.DEBUG, "pgmanager_notices")
    pgm.create_conn(**parameters)
    with pgm.cursor() as curs:
        curs.execute("DO $$BEGIN RAISE NOTICE 'first'; END$$")
        curs.execute("SELECT %s", ("hidden",))
        with pytest.raises(psycopg2.DataError):
            curs.execute("SELECT 1/0")
        assert [record.getMessage() for record in caplog.records] == [
            "[default] DO $$BEGIN RAISE NOTICE 'first'; END$$",
            "[default] SELECT %s",
            "[default] SELECT 1/0",
            "[default] DivisionByZero: division by zero",
        ]
    conn = pgm.get_conn()
    conn.cursor().execute("DO $$BEGIN RAISE NOTICE 'second'; END$$")
    pgm.log_notices(conn)
    pgm.log_notices(conn)
    pgm.put_conn(conn)
    notices = [record.getMessage() for record in caplog.records if record.name == "pgmanager_notices"]
    assert notices == ["NOTICE:  first", "NOTICE:  second"]


def test_every_waiting_task_hears_every_notification(pgm, parameters, admin):
    pgm.create_conn_listen("chat", "chat", **parameters)
    ready = []

    def hear():
        assert pgm.wait_for_notify("chat", timeout=0.01) is None  # it listens from here on
        ready.append(True)
        return [pgm.wait_for_notify("chat", timeout=10).payload for _ in range(5)]

    tasks = [Task(hear) for _ in range(4)]
    wait_until(lambda: len(ready) == 4)
    for number in range(5):
        admin.cursor().execute(f"NOTIFY chat, '{number}'")
        hub().sleep(0.01)
    assert [task.result() for task in tasks] == [["0", "1", "2", "3", "4"]] * 4


def test_it_listens_again_after_a_lost_connection(pgm, parameters, admin):
    pgm.create_conn_listen("chat", "chat", **parameters)
    assert pgm.wait_for_notify("chat", timeout=0.01) is None
    pid = pgm._named["chat"].listener.backend_pid
    admin.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    wait_until(lambda: pgm._named["chat"].listener.backend_pid not in (None, pid))
    hub().sleep(0.1)
    admin.cursor().execute("NOTIFY chat, 'again'")
    assert pgm.wait_for_notify("chat", timeout=10).payload == "again"
