"""Uses every public name of greenpg. Type checkers must find nothing in it, and it must run: tests/test_types.py."""
# ruff: noqa: PT017

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
from psycopg2 import extensions
from psycopg2.extensions import Notify, Xid
from psycopg2.extras import DictCursor, RealDictCursor
from psycopg2.sql import SQL, Identifier

import greenpg
from greenpg import Connection, ConnectionPool, Cursor, LeasedCursor, RowDict, ServerCursor, Transaction, errors

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:
    T = TypeVar("T")

    def assert_type(value: T, _: object) -> T:
        return value


Row = tuple[Any, ...]


class Audited(Connection):
    """An application's own connection."""

    def who(self) -> str:
        with self.cursor() as cur:
            cur.execute("SELECT current_user")
            row = cur.fetchone()
        assert row is not None
        return str(row[0])


class Plain(extensions.connection):
    """The same, written for psycopg2."""


class SlowStatements(greenpg.Tracer):
    """Keeps what took long."""

    events = ("query", "evicted")

    def __init__(self) -> None:
        self.kept: list[tuple[str, float]] = []

    def start(self, event: greenpg.TraceEvent) -> None:
        event.data = event.started_at

    def end(self, event: greenpg.TraceEvent) -> None:
        assert_type(event.error, "BaseException | None")
        self.kept.append((event.reason or event.name, event.seconds or 0.0))


class QuietLog(greenpg.SqlLog):
    """Overrides what may be overridden."""

    def before(self, cursor: Cursor, statement: object, parameters: object) -> None:
        pass

    def after(self, cursor: Cursor, statement: Any, parameters: Any, seconds: float) -> None:
        self.logger.debug("%s", self.shown(cursor, statement, parameters))

    def failed(self, cursor: Cursor, statement: Any, parameters: Any, seconds: float, error: BaseException) -> None:
        pass

    def notice(self, text: str) -> None:
        super().notice(text)


def connecting(dsn: str) -> None:
    conn = greenpg.connect(dsn, total_connect_timeout=30.0, application_name="types")
    assert_type(conn, Connection)
    assert_type(conn.dsn, str)
    assert_type(conn.status, int)
    assert_type(conn.connection, Connection)
    conn.close()
    audited = greenpg.connect(dsn, connection_factory=Audited, cursor_factory=DictCursor)
    assert_type(audited, Audited)
    audited.who().upper()
    with audited:
        pass
    audited.close()
    assert_type(greenpg.connect(dsn, Plain), Plain).close()
    asynchronous = greenpg.connect(dsn, async_=True)
    greenpg.wait(asynchronous, timeout=10.0)
    asynchronous.close()


def settings(conn: Connection) -> None:
    conn.autocommit = False
    assert_type(conn.isolation_level, "int | None")
    conn.isolation_level = "SERIALIZABLE"
    assert_type(conn.readonly, "bool | None")
    conn.readonly = "default"
    assert_type(conn.deferrable, "bool | None")
    conn.deferrable = None
    conn.set_session(isolation_level="default", readonly=False, deferrable="default", autocommit=False)
    conn.set_isolation_level(extensions.ISOLATION_LEVEL_READ_COMMITTED)
    conn.set_client_encoding("UTF8")
    conn.cursor_factory = None
    assert_type(conn.notices, list[str])
    assert_type(conn.statement_deadline, "float | None")
    conn.statement_deadline = 30.0
    conn.interruption_grace, conn.ending_timeout = 1.0, 30.0
    conn.reset()


def cursors(conn: Connection) -> None:
    with conn.cursor() as cur:
        assert_type(cur, Cursor)
        assert_type(cur.execute("SELECT %s, %s", (1, "one")), None)
        assert_type(cur.fetchone(), "Row | None")
        cur.execute(SQL("SELECT {} FROM generate_series(1, 3) AS {}").format(*[Identifier("n")] * 2))
        assert_type(cur.fetchmany(1), list[Row])
        assert_type(cur.fetchall(), list[Row])
        assert_type(cur.rowcount, int)
        assert_type(cur.statusmessage, "str | None")
        assert_type(cur.query, "bytes | None")
        cur.execute("SELECT %(n)s AS n", {"n": 1})
        row = assert_type(cur.fetchone_dict(), "RowDict | None")
        assert row is not None and row["n"] == row.n == 1
        cur.execute("SELECT 1 AS n")
        assert_type(cur.fetchall_dict(), list[RowDict])
        cur.execute("SELECT 1")
        for values in cur:
            assert_type(values, Row)
        cur.connection.commit()
        cur.execute("CREATE TEMP TABLE t (a int, b text)")
        cur.executemany("INSERT INTO t VALUES (%s, %s)", ((n, str(n)) for n in range(3)))
        cur.callproc("pg_backend_pid")
        copying(cur)
    assert_type(conn.execute("SELECT 1"), Cursor).close()
    dicts = assert_type(conn.cursor(cursor_factory=RealDictCursor), RealDictCursor)
    dicts.close()
    with conn.cursor(None, DictCursor) as lists:
        assert_type(lists, DictCursor)
    with conn.cursor("named") as server_cursor:
        assert_type(server_cursor, ServerCursor)
        server_cursor.execute("SELECT generate_series(1, 5)")
        assert_type(server_cursor.fetchone(), "Row | None")
        assert_type(server_cursor.fetchmany(1), list[Row])
        server_cursor.scroll(1, mode="relative")
        assert_type(next(server_cursor), Row)
        assert_type(server_cursor.fetchall(), list[Row])
    conn.rollback()


def copying(cur: Cursor) -> None:
    with cur.copy("COPY t FROM STDIN") as copy:
        copy.write_row([4, "four"])
        copy.write("5\tfive\n")
    with cur.copy("COPY (SELECT a FROM t WHERE a > %s) TO STDOUT", (3,)) as copy:
        copy.set_types([extensions.INTEGER])
        assert_type(copy.read_row(), "Row | None")
        assert_type(copy.rows(), Iterator[Row])
        list(copy.rows())
    with cur.copy("COPY t TO STDOUT") as copy:
        assert_type(copy.read(), bytes)
        for block in copy:
            assert_type(block, bytes)
    cur.copy_from(io.StringIO("6\tsix\n"), "t", columns=["a", "b"])
    cur.copy_to(io.StringIO(), "t", sep="|")
    cur.copy_expert("COPY t TO STDOUT", io.BytesIO())


def transactions(conn: Connection) -> None:
    with conn.transaction(isolation_level="SERIALIZABLE", readonly=True, deferrable=False) as outer:
        assert_type(outer, Transaction[Connection])
        assert_type(outer.connection, Connection)
        assert_type(outer.savepoint_name, "str | None")
        with conn.transaction("inner", force_rollback=True):
            conn.execute("SELECT 1")
        with conn.transaction() as inner:
            raise greenpg.Rollback(inner)
    with conn.deadline(10.0):
        conn.execute("SELECT 1")
    conn.commit()
    conn.cancel()
    conn.cancel_safe(timeout=10.0)


def pipelines(conn: Connection, pool: ConnectionPool) -> None:
    if not greenpg.Pipeline.is_supported():
        return
    with conn.pipeline() as pipeline:
        assert_type(pipeline, greenpg.Pipeline[Connection])
        assert_type(pipeline.connection, Connection)
        cur = pipeline.execute("SELECT %s", (1,))
        assert_type(cur, Cursor)
        pipeline.sync()
        assert_type(cur.fetchone(), "Row | None")
    conn.rollback()
    with pool.pipeline(timeout=10.0) as pipeline:
        pipeline.execute("SELECT 1")
    assert_type(conn.prepare_threshold, "int | None")
    conn.prepare_threshold = 5
    assert_type(conn.prepared_max, int)
    assert_type(conn.execute("SELECT %s", (1,), prepare=True), Cursor)
    cur.execute("SELECT %s", (1,), prepare=False)
    conn.prepare_threshold = None
    cur.executemany("SELECT %s", [(1,), (2,)], returning=True)
    for each in cur.results():
        assert_type(each, Cursor)
    conn.rollback()
    assert_type(pool.prepare_threshold, "int | None")
    assert issubclass(errors.PipelineAborted, psycopg2.OperationalError)


def two_phases(conn: Connection, xid: Xid) -> None:
    """Not run: the server must be set up for it."""
    conn.tpc_begin(xid)
    conn.tpc_prepare()
    conn.tpc_commit()
    assert_type(conn.tpc_recover(), list[Xid])
    conn.tpc_rollback(xid)


def large_objects(conn: Connection) -> None:
    with conn.transaction():
        lobject = conn.lobject(0, "wb")
        assert_type(lobject.write(b"large"), int)
        assert_type(lobject.oid, int)
        lobject.unlink()


def notifications(dsn: str, conn: Connection) -> None:
    conn.autocommit = True
    conn.execute("LISTEN types")
    conn.execute("NOTIFY types")
    assert_type(conn.wait_notify(timeout=10.0), "Notify | None")
    assert_type(conn.notifies, list[Notify])
    with greenpg.Listener(dsn, max_pending=100, timeout=10.0, heartbeat=10.0, name="types") as listener:
        with listener.subscribe("types", timeout=10.0, max_pending=10) as subscription:
            assert_type(subscription, greenpg.Subscription)
            listener.notify("types", "payload", timeout=10.0)
            came = assert_type(subscription.get(timeout=10.0), "Notify | greenpg.Gap | None")
            assert not isinstance(came, greenpg.Gap) or came.missed
            assert_type(subscription.channels, frozenset[str])
            assert_type(subscription.pending, int)
            assert_type(subscription.closed, bool)
            subscription.close()
        assert_type(listener.connected, bool)
        assert_type(listener.backend_pid, "int | None")
        assert_type(listener.closed, bool)
        listener.close(timeout=1.0)


def logging_sql(conn: Connection) -> None:
    log = QuietLog(statements=True, slower_than=1.0, parameters=False, notices=True, logger=logging.getLogger("types"))
    log(conn)
    conn.execute("SELECT 1")
    log.log_notices(conn)
    log.detach(conn)


def shared(dsn: str) -> None:
    connection = greenpg.SharedConnection(dsn, application_name="types")
    with connection(timeout=10.0, close=False) as conn:
        assert_type(conn, Connection)
        conn.execute("SELECT 1")
        conn.commit()
    assert_type(connection.dsn, str)
    assert connection.closed == 0 and connection.status is not None
    connection.close(timeout=10.0)


def failures(conn: Connection) -> None:
    try:
        conn.execute("SELECT 1/0")
    except errors.DataException as error:
        assert_type(error.pgcode, "str | None")
        assert not errors.safe_to_retry(error)
        assert errors.commit_outcome(error) not in (errors.COMMITTED, errors.ROLLED_BACK, errors.UNKNOWN)
    conn.rollback()
    assert issubclass(errors.CopyInProgress, errors.ConnectionInUse)
    assert errors.ConnectionInherited("execute").operation == errors.ConnectionReturned("execute").operation
    assert issubclass(errors.DeadlineExceeded, errors.OperatorIntervention)
    assert issubclass(errors.LibpqUnavailable, psycopg2.NotSupportedError)
    assert issubclass(errors.PatchError, RuntimeError)
    for error_class in (greenpg.PoolTimeout, greenpg.PoolClosed, greenpg.TooManyRequests, greenpg.WaitTimeout):
        assert issubclass(error_class, psycopg2.OperationalError)
    assert issubclass(greenpg.ListenerClosed, psycopg2.OperationalError)


def transfer(conn: Connection) -> int:
    conn.execute("SELECT 1")
    return 1


def lending(pool: ConnectionPool) -> None:
    with pool.connection(timeout=10.0) as conn:
        assert_type(conn, Connection)
    with pool.cursor() as cur:
        assert_type(cur, Cursor)
    with pool.cursor(RealDictCursor, timeout=10.0) as dicts:
        assert_type(dicts, RealDictCursor)
    with pool.transaction(timeout=10.0, isolation_level="SERIALIZABLE", force_rollback=True) as conn:
        assert_type(conn, Connection)
    assert_type(pool.run(transfer, attempts=2, timeout=10.0, readonly=True), "int | None")
    assert_type(pool.execute("SELECT %s", (1,), timeout=10.0), int)
    assert_type(pool.fetchone("SELECT 1"), "Row | None")
    assert_type(pool.fetchall("SELECT 1"), list[Row])
    assert_type(pool.fetchall("SELECT 1 AS n", cursor_factory=RealDictCursor), list[Any])
    assert_type(pool.fetchval("SELECT 1"), Any)
    with pool.stream("SELECT generate_series(1, 10)", chunk_size=5) as stream:
        for row in stream:
            assert_type(row, Row)
    conn = assert_type(pool.getconn(10.0, take_back=False), Connection)
    pool.check_connection(conn)
    pool.putconn(conn)


def looking_after(pool: ConnectionPool) -> None:
    pool.open(wait=True, timeout=10.0)
    pool.wait(10.0)
    pool.resize(1, 3)
    assert_type(pool.min_size + pool.max_size, int)
    pool.pause()
    pool.resume()
    pool.check()
    pool.drain()
    assert_type(pool.get_stats(), dict[str, int])
    assert_type(pool.pop_stats(), dict[str, int])
    assert_type(pool.get_histograms(), dict[str, dict[str, int]])
    with pool.listen("types", timeout=10.0, max_pending=10) as subscription:
        pool.notify("types", "payload", timeout=10.0)
        subscription.get(timeout=10.0)
    assert_type(pool.closed, bool)
    assert_type(pool.name, str)
    assert_type(pool.timeout, float)
    pool.timeout = 10.0
    pool.close(timeout=1.0)


def configure(conn: Connection) -> None:
    conn.autocommit = True


def call_for_help(pool: ConnectionPool) -> None:
    print(f"no connections for {pool.reconnect_timeout} s", pool.conninfo, pool.kwargs)


def pools(dsn: str) -> None:
    with ConnectionPool(dsn, kwargs={"application_name": "types"}, min_size=1, max_size=2, reset="session") as pool:
        lending(pool)
    made = ConnectionPool(
        lambda: dsn,
        open=False,
        configure=configure,
        check=ConnectionPool.check_connection,
        reset=configure,
        name="types",
        close_returns=True,
        timeout=10.0,
        max_waiting=10,
        max_lifetime=60.0,
        max_idle=60.0,
        reconnect_timeout=60.0,
        reconnect_failed=call_for_help,
        num_workers=1,
        fail_fast=True,
        refused_after=5.0,
        check_idle=10.0,
        statement_deadline=10.0,
        histograms=True,
        leak_after=10.0,
        pooler="none",
        direct_conninfo=dsn,
        on_event=[SlowStatements(), lambda event: None],
    )
    assert_type(made, ConnectionPool)
    seeing(made)
    looking_after(made)
    with ConnectionPool(dsn, connection_class=Audited, min_size=0, max_size=1) as audited:
        assert_type(audited, ConnectionPool[Audited])
        lending(audited)
        with audited.connection() as conn:
            conn.who()
        with audited.transaction() as conn:
            conn.who()
        assert_type(audited.run(Audited.who), "str | None")
    with greenpg.NullConnectionPool(dsn, max_size=2) as unkept:
        assert_type(unkept.fetchone("SELECT 1"), "Row | None")
    assert_type(greenpg.get_pool("types", dsn, min_size=0, max_size=1, reset="rollback"), ConnectionPool)
    greenpg.forget_pool("types")
    a_cluster(dsn)
    greenpg.close_pools(timeout=1.0)
    greenpg.shutdown(timeout=1.0)


def a_cluster(dsn: str) -> None:
    with greenpg.Cluster(dsn, min_size=1, max_lag=None, strategy="least-busy", name="types") as cluster:
        cluster.open(wait=True)
        assert_type(cluster.primary, ConnectionPool)
        with cluster.transaction() as conn:
            assert_type(conn, Connection)
        with cluster.transaction(readonly=True) as conn, conn.cursor() as cur:
            cur.execute("SELECT 1")
        with cluster.cursor(readonly=True) as cur:
            assert_type(cur, Cursor)
        assert_type(cluster.run(Connection.fileno, readonly=True), "int | None")
        assert_type(cluster.replica.run(Connection.fileno), "int | None")
        assert_type(cluster.execute("SELECT 1"), int)
        assert cluster.fetchone("SELECT 1") == (1,) == cluster.replica.fetchall("SELECT 1")[0]
        assert cluster.fetchval("SELECT 1", readonly=True) == 1 == len(cluster.nodes)
        assert_type(cluster.token, "str | None")
        cluster.token = None
        assert cluster.name == "types"
    assert cluster.closed
    cluster.close()


def seeing(pool: ConnectionPool) -> None:
    tracer = SlowStatements()
    pool.add_tracer(tracer)
    pool.remove_tracer(tracer)
    pool.keep_histograms()
    assert_type([loan.seconds for loan in pool.get_loans(stacks=True)], "list[float]")
    assert_type(greenpg.doctor(pools=[pool], seconds=0).is_well, bool)
    with (
        TemporaryDirectory() as directory,
        greenpg.serve_top(f"{directory}/top.sock", pool, statements=False) as served,
    ):
        assert_type(served.path, Path)


def leased(pool: ConnectionPool) -> None:
    conn = greenpg.LeasedConnection(pool, timeout=5)
    assert_type(conn.cursor(), LeasedCursor)
    cur = assert_type(conn.execute("SELECT %s", (1,), prepare=False), LeasedCursor)
    cur.execute("SELECT 1")
    cur.fetchone()
    cur.arraysize, cur.itersize, cur.tzinfo_factory, cur.row_factory = 10, 100, None, None
    assert cur.mogrify("SELECT %s", (1,)) == b"SELECT 1" and cur.scrollable is None
    cur.setinputsizes(())
    cur.setoutputsize(1)
    assert_type([cur.rowcount, cur.rownumber, cur.lastrowid], "list[int]")
    assert cur.description is not None and cur.description[0].name == "?column?"
    assert_type(conn.is_leased, bool)
    assert_type([conn.get_transaction_status(), conn.info.transaction_status], "list[int]")
    assert_type([conn.isexecuting(), conn.is_stuck], "list[bool]")
    assert_type(conn.encoding, str)
    conn.commit()
    conn.autocommit = True
    cur.executemany("SELECT %s", [(1,)], returning=True)
    assert cur.nextset() is None
    with conn, conn.cursor("named", withhold=True) as named:
        named.execute("SELECT 1")
    with conn.transaction(readonly=True) as transaction:
        assert_type(transaction.connection, Connection)
    with conn.pipeline() as p:
        assert_type(p, "greenpg.Pipeline[Connection]")
    with conn.sticky() as real:
        assert_type(real, Connection)
    conn.stick()
    conn.unstick()
    assert_type(conn.closed, int)
    assert_type(conn.get_backend_pid(), int)
    assert_type(conn.get_dsn_parameters(), "dict[str, str]")
    assert_type(conn.get_parameter_status("TimeZone"), "str | None")
    assert_type(conn.protocol_version + conn.server_version + conn.async_ + conn.poll(), int)
    assert conn.pool is pool
    errors = (conn.Error, conn.DatabaseError, conn.DataError, conn.OperationalError, conn.IntegrityError)
    with contextlib.suppress(
        *errors, conn.ProgrammingError, conn.InterfaceError, conn.InternalError, conn.NotSupportedError, conn.Warning
    ):
        conn.fileno()
    conn.close()


def main(dsn: str) -> None:
    conn = greenpg.connect(dsn)
    settings(conn)
    cursors(conn)
    transactions(conn)
    with greenpg.ConnectionPool(dsn, min_size=1) as piped:
        pipelines(conn, piped)
        leased(piped)
    large_objects(conn)
    logging_sql(conn)
    failures(conn)
    notifications(dsn, conn)
    conn.close()
    connecting(dsn)
    shared(dsn)
    pools(dsn)


def run_alone(hub: str | None, kwargs: Mapping[str, Any]) -> None:
    """Not run: tests have patched already, and have a server."""
    greenpg.patch(hub, connect=True)
    assert_type(greenpg.is_patched(), bool)
    with greenpg.embedded.server(**kwargs) as dsn:
        main(assert_type(dsn, str))
    with greenpg.embedded.Server(port=0) as server:
        main(server.dsn)
    greenpg.unpatch()
