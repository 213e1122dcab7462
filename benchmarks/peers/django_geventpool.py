"""django-db-geventpool's pool for psycopg2, without the rest of Django: its connections are in autocommit, and leave
it for a transaction, as Django's `atomic()` does. It sends a `SELECT 1` of its own at each acquire, to see whether the
connection is alive.
"""

import psycopg2
from django_db_geventpool.backends.postgresql_psycopg2.base import PostgresConnectionPool
from psycogreen.gevent import patch_psycopg

from .base import SELECT, GeventPool


def connect(**parameters):
    conn = psycopg2.connect(**parameters)
    conn.autocommit = True
    return conn


class Pool(GeventPool):
    def __init__(self, dsn, size):
        patch_psycopg()
        self.size = size
        self._pool = PostgresConnectionPool(connect=connect, dsn=dsn, MAX_CONNS=size)
        # One by one: at once it would open more than its limit.
        connections = [self._pool.get() for _ in range(size)]
        for conn in connections:
            self._pool.put(conn)

    def acquire_release(self):
        self._pool.put(self._pool.get())

    def one_statement(self):
        conn = self._pool.get()
        try:
            with conn.cursor() as cur:
                cur.execute(SELECT)
                return cur.fetchone()
        finally:
            self._pool.put(conn)

    def one_transaction(self):
        return self._in_transaction(1)

    def five_statements(self):
        return self._in_transaction(5)

    def _in_transaction(self, statements):
        conn = self._pool.get()
        try:
            conn.autocommit = False
            with conn, conn.cursor() as cur:
                for _ in range(statements):
                    cur.execute(SELECT)
                    row = cur.fetchone()
            conn.autocommit = True
            return row
        finally:
            self._pool.put(conn)

    def close(self):
        self._pool.close()
