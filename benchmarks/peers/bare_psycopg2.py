"""psycopg2 in a plain loop: one connection, no pool, no wait callback, a new cursor for each operation. What psycopg2
itself costs. The operations of all tasks run one after the other.
"""

import psycopg2

from .base import SELECT, BlockingPool, Clock


class Pool(BlockingPool):
    size = 1

    def __init__(self, dsn, size):
        self._in_transactions, self._in_autocommit = psycopg2.connect(dsn), psycopg2.connect(dsn)
        self._in_autocommit.autocommit = True

    def run_tasks(self, number, function):
        with Clock() as clock:
            for _ in range(number):
                function()
        return clock

    def one_statement(self):
        with self._in_autocommit.cursor() as cur:
            cur.execute(SELECT)
            return cur.fetchone()

    def one_transaction(self):
        return self._in_transaction(1)

    def five_statements(self):
        return self._in_transaction(5)

    def _in_transaction(self, statements):
        with self._in_transactions as conn, conn.cursor() as cur:
            for _ in range(statements):
                cur.execute(SELECT)
                row = cur.fetchone()
        return row

    def close(self):
        self._in_transactions.close()
        self._in_autocommit.close()
