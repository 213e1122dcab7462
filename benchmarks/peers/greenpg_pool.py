"""greenpg's pool, in its default configuration but for `options`."""

import greenpg

from .base import LONG_SECONDS, SELECT, GeventPool


class Pool(GeventPool):
    def __init__(self, dsn, size, **options):
        greenpg.patch()
        self.size = size
        self._pool = greenpg.ConnectionPool(dsn, min_size=size, max_size=size, timeout=LONG_SECONDS, **options)
        self._pool.wait()

    def acquire_release(self):
        with self._pool.connection():
            pass

    def one_statement(self):
        return self._pool.fetchone(SELECT)

    def one_transaction(self):
        with self._pool.cursor() as cur:
            cur.execute(SELECT)
            return cur.fetchone()

    def borrowed_transaction(self):
        with self._pool.connection() as conn, conn.cursor() as cur:
            cur.execute(SELECT)
            return cur.fetchone()

    def five_statements(self):
        with self._pool.cursor() as cur:
            for _ in range(5):
                cur.execute(SELECT)
                row = cur.fetchone()
        return row

    def close(self):
        self._pool.close()
