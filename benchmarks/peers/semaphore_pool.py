"""What people write on psycogreen after gevent's example: a bounded semaphore and a list of connections.

In its strongest form: in autocommit nothing is asked of the connection when it comes back. It is not fair: a task that
releases and asks again overtakes those who wait, which spares it the switch to another task.
"""

import importlib

import psycopg2
from gevent.lock import BoundedSemaphore

from .base import SELECT, GeventPool


class Pool(GeventPool):
    def __init__(self, dsn, size, patched_by="psycogreen"):
        importlib.import_module(f"{patched_by}.gevent").patch_psycopg()
        self.size = size
        self._semaphore = BoundedSemaphore(size)
        self._in_transactions = [psycopg2.connect(dsn) for _ in range(size)]
        self._in_autocommit = [psycopg2.connect(dsn) for _ in range(size)]
        for conn in self._in_autocommit:
            conn.autocommit = True

    def acquire_release(self):
        with self._semaphore:
            conn = self._in_transactions.pop()
            self._in_transactions.append(conn)

    def one_statement(self):
        idle = self._in_autocommit
        with self._semaphore:
            conn = idle.pop()
            try:
                with conn.cursor() as cur:
                    cur.execute(SELECT)
                    return cur.fetchone()
            finally:
                idle.append(conn)

    def one_transaction(self):
        idle = self._in_transactions
        with self._semaphore:
            conn = idle.pop()
            try:
                with conn, conn.cursor() as cur:
                    cur.execute(SELECT)
                    return cur.fetchone()
            finally:
                idle.append(conn)

    borrowed_transaction = one_transaction

    def five_statements(self):
        idle = self._in_transactions
        with self._semaphore:
            conn = idle.pop()
            try:
                with conn, conn.cursor() as cur:
                    for _ in range(5):
                        cur.execute(SELECT)
                        row = cur.fetchone()
                return row
            finally:
                idle.append(conn)

    def close(self):
        for conn in self._in_transactions + self._in_autocommit:
            conn.close()
