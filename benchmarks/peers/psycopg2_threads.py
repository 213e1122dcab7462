"""psycopg2 as it is, blocking, in native threads that share a queue.LifoQueue of connections: the floor."""

import queue
import threading

import psycopg2

from .base import SELECT, BlockingPool, Clock


class Pool(BlockingPool):
    def __init__(self, dsn, size):
        self.size = size
        self._in_transactions, self._in_autocommit = queue.LifoQueue(), queue.LifoQueue()
        for _ in range(size):
            self._in_transactions.put(psycopg2.connect(dsn))
            conn = psycopg2.connect(dsn)
            conn.autocommit = True
            self._in_autocommit.put(conn)

    def run_tasks(self, number, function):
        barrier = threading.Barrier(number + 1)
        errors = []

        def task():
            barrier.wait()
            try:
                function()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=task, daemon=True) for _ in range(number)]
        for thread in threads:
            thread.start()
        with Clock() as clock:
            barrier.wait()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return clock

    def acquire_release(self):
        conn = self._in_transactions.get()
        self._in_transactions.put(conn)

    def one_statement(self):
        conn = self._in_autocommit.get()
        try:
            with conn.cursor() as cur:
                cur.execute(SELECT)
                return cur.fetchone()
        finally:
            self._in_autocommit.put(conn)

    def one_transaction(self):
        return self._in_transaction(1)

    def five_statements(self):
        return self._in_transaction(5)

    def _in_transaction(self, statements):
        conn = self._in_transactions.get()
        try:
            with conn, conn.cursor() as cur:
                for _ in range(statements):
                    cur.execute(SELECT)
                    row = cur.fetchone()
            return row
        finally:
            self._in_transactions.put(conn)

    def close(self):
        for connections in (self._in_transactions, self._in_autocommit):
            while not connections.empty():
                connections.get().close()
