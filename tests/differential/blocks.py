"""greenpg's own blocks, as they would have to be written with plain psycopg2."""

from __future__ import annotations

import contextlib

import psycopg2
from psycopg2 import extensions

_IDLE, _INERROR = extensions.TRANSACTION_STATUS_IDLE, extensions.TRANSACTION_STATUS_INERROR


class PlainBlocks:
    """The blocks of one program."""

    def __init__(self, dsn):
        self._dsn = dsn
        self._open = []
        self._lent = None

    def close(self):
        if self._lent is not None:
            self._lent.close()

    @contextlib.contextmanager
    def transaction(self, conn):
        """`with conn.transaction():` of greenpg."""
        if conn.closed:
            raise psycopg2.InterfaceError("connection already closed")
        was_autocommit = False
        savepoint = None
        if self._open or conn.get_transaction_status() != _IDLE:
            savepoint = f'"greenpg_{len(self._open) + 1}"'
            _execute(conn, f"SAVEPOINT {savepoint}")
        else:
            if conn.status == extensions.STATUS_BEGIN:  # a COMMIT by hand
                conn.rollback()
            was_autocommit = conn.autocommit
            if was_autocommit:
                conn.autocommit = False
        self._open.append(savepoint)
        try:
            yield
        except BaseException:
            self._open.pop()
            with contextlib.suppress(Exception):
                _end(conn, savepoint, is_good=False)
            raise
        else:
            self._open.pop()
            _end(conn, savepoint, is_good=True)
        finally:
            if was_autocommit and not conn.closed and conn.status == extensions.STATUS_READY:
                settings = [_setting(value) for value in (conn.isolation_level, conn.readonly, conn.deferrable)]
                conn.set_session("default", "default", "default")
                conn.set_session(*settings, autocommit=True)

    @contextlib.contextmanager
    def lent(self):
        """`with pool.connection() as conn:` of a pool that has one connection."""
        conn = self._lent
        if conn is None or conn.closed:
            conn = self._lent = psycopg2.connect(self._dsn)
        try:
            yield conn
        except BaseException:
            with contextlib.suppress(Exception):
                _end(conn, None, is_good=False)
            raise
        else:
            _end(conn, None, is_good=True)
        finally:
            if not conn.closed:
                if conn.get_transaction_status() != _IDLE and conn.status == extensions.STATUS_READY:
                    _execute(conn, "ROLLBACK")  # of a BEGIN by hand
                if conn.status != extensions.STATUS_READY:
                    conn.rollback()
                conn.set_session("default", "default", "default", autocommit=False)
                conn.cursor_factory = None
                conn.notices = []
                conn.notifies = []


class GreenBlocks:
    """The same, by greenpg."""

    def __init__(self, dsn):
        self._dsn = dsn
        self._pool = None

    def close(self):
        if self._pool is not None:
            self._pool.close()

    def transaction(self, conn):
        return conn.transaction()

    def lent(self):
        if self._pool is None:
            import greenpg

            self._pool = greenpg.ConnectionPool(self._dsn, min_size=0, max_size=1)
        return self._pool.connection()


def _end(conn, savepoint, *, is_good):
    if savepoint is None and conn.get_transaction_status() == _IDLE and conn.status == extensions.STATUS_READY:
        return
    is_failed = conn.get_transaction_status() == _INERROR
    commits = is_good and not is_failed
    if savepoint is not None:
        _execute(conn, f"RELEASE {savepoint}" if commits else f"ROLLBACK TO {savepoint}; RELEASE {savepoint}")
    elif commits:
        conn.commit()
    else:
        conn.rollback()
    if is_good and is_failed:
        raise psycopg2.errors.InFailedSqlTransaction("the block was to be committed")


def _setting(value):
    return "default" if value is None else value


def _execute(conn, statement):
    with conn.cursor(cursor_factory=extensions.cursor) as cur:
        cur.execute(statement)
