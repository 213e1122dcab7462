"""psycopg_pool and psycopg 3 in a program that gevent has monkey-patched; imported after that, as it asks."""

from psycopg_pool import ConnectionPool

from .base import LONG_SECONDS, SELECT, GeventPool


class Pool(GeventPool):
    def __init__(self, dsn, size):
        self.size = size
        options = {"min_size": size, "max_size": size, "timeout": LONG_SECONDS, "open": True}
        self._in_transactions = ConnectionPool(dsn, **options)
        self._in_autocommit = ConnectionPool(dsn, kwargs={"autocommit": True}, **options)
        self._in_transactions.wait()
        self._in_autocommit.wait()

    def acquire_release(self):
        with self._in_transactions.connection():
            pass

    def one_statement(self):
        with self._in_autocommit.connection() as conn:
            return conn.execute(SELECT).fetchone()

    def one_transaction(self):
        with self._in_transactions.connection() as conn:
            return conn.execute(SELECT).fetchone()

    def five_statements(self):
        with self._in_transactions.connection() as conn, conn.cursor() as cur:
            for _ in range(5):
                cur.execute(SELECT)
                row = cur.fetchone()
        return row

    def close(self):
        self._in_transactions.close()
        self._in_autocommit.close()
