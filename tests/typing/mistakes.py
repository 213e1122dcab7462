"""One mistake in each line with the mark: type checkers must find each of them, and nothing else. Never run."""
# ruff: noqa: B018

from __future__ import annotations

import greenpg
from greenpg import Connection, ConnectionPool, Cursor


def connections(conn: Connection) -> None:
    greenpg.connect("dbname=app", total_connect_timeout="30")  # mistake
    greenpg.connect("dbname=app").comit()  # mistake
    conn.cursor().exceute("SELECT 1")  # mistake
    conn.cursor(nmae="rows")  # mistake
    conn.rollback(1, 2)  # mistake
    conn.commit("now")  # mistake
    conn.transaction(isolation_levle="SERIALIZABLE")  # mistake
    conn.transaction(isolation_level="SERIALISABLE")  # mistake
    conn.transaction(readonly="yes")  # mistake
    conn.deadline("5 s")  # mistake
    conn.wait_notify(tiemout=5)  # mistake
    conn.cancel_safe(timeout="soon")  # mistake
    conn.set_session(redonly=True)  # mistake
    conn.autocommit = "on"  # mistake
    conn.statement_deadline = "5 s"  # mistake
    conn.execute(1)  # mistake
    conn.lobject(oid="1")  # mistake
    conn.stauts  # mistake
    greenpg.wait(conn, timeout="long")  # mistake


def cursors(cur: Cursor) -> None:
    cur.execute("SELECT %s", 1)  # mistake
    cur.execute(["SELECT 1"])  # mistake
    cur.executemany("SELECT %s", 1)  # mistake
    cur.fetchone()[0]  # mistake
    cur.fetchone_dict().name  # mistake
    cur.fetchall().id  # mistake
    cur.fetchmany("10")  # mistake
    cur.rowcuont  # mistake
    cur.connection.comit()  # mistake
    with cur.copy("COPY t FROM STDIN") as copy:
        copy.write_rows([1, 2])  # mistake
        copy.write(1)  # mistake
    cur.copy_from("t.csv", 5)  # mistake


def pools(pool: ConnectionPool, dsn: str) -> None:
    ConnectionPool(dsn, max_size="ten")  # mistake
    ConnectionPool(dsn, reset="sesssion")  # mistake
    ConnectionPool(dsn, maxsize=10)  # mistake
    ConnectionPool(dsn, configure=lambda: None)  # mistake
    ConnectionPool(dsn, connection_class=Cursor)  # mistake
    greenpg.NullConnectionPool(dsn, timeout="30")  # mistake
    greenpg.get_pool("app", dsn, max_size="ten")  # mistake
    greenpg.get_pool("app", dsn, maxsize=10)  # mistake
    with pool.connection() as conn:
        conn.exceute("SELECT 1")  # mistake
    with pool.cursor() as cur:
        cur.exceute("SELECT 1")  # mistake
    with pool.transaction(isolation_levle="SERIALIZABLE"):  # mistake
        pass
    with pool.transaction(readonly="yes") as conn:  # mistake
        conn.comit()  # mistake
    pool.run(transfer, attemps=3)  # mistake
    pool.run(lambda conn: conn.comit())  # mistake
    pool.run(transfer).bit_count()  # mistake
    pool.execute("SELECT %s", 1)  # mistake
    pool.fetchone("SELECT 1")[0]  # mistake
    pool.fetchall("SELECT 1").id  # mistake
    pool.fetchval(1)  # mistake
    pool.stream("SELECT 1", chunksize=10)  # mistake
    pool.getconn(timeuot=1.0)  # mistake
    pool.getconn().comit()  # mistake
    pool.putconn("conn")  # mistake
    pool.resize("1")  # mistake
    pool.listen("orders", timeout="1")  # mistake
    pool.notify("orders", b"payload")  # mistake
    pool.get_stats().requests  # mistake
    pool.timeout = "10"  # mistake
    pool.min_siez  # mistake
    greenpg.LeasedConnection("dbname=app")  # mistake
    greenpg.LeasedConnection(pool).sticky(1)  # mistake
    greenpg.LeasedConnection(pool).execute(1)  # mistake


def transfer(conn: Connection) -> int:
    return 1


def others(dsn: str) -> None:
    greenpg.ptach()  # mistake
    greenpg.patch(hub=1)  # mistake
    greenpg.errors.UniqueViolations  # mistake
    greenpg.embedded.sever()  # mistake
    greenpg.SqlLog(slower_then=1.0)  # mistake
    greenpg.SharedConnection(dsn)(tiemout=1.0)  # mistake
    with greenpg.SharedConnection(dsn)() as conn:
        conn.exceute("SELECT 1")  # mistake
    with greenpg.Listener(dsn, max_pending="many") as listener:  # mistake
        listener.subscribe(1)  # mistake
        listener.subscribe("orders").get().payload  # mistake
    raise greenpg.Rollback("now")  # mistake
