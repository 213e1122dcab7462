"""SQLAlchemy core with its QueuePool, psycopg2 made green by psycogreen: `text()` on connections of an engine.

An engine for each mode: so none has to set the isolation level of a connection at each checkout.
"""

import psycopg2
from psycogreen.gevent import patch_psycopg
from sqlalchemy import create_engine, text

from .base import LONG_SECONDS, SELECT, GeventPool

STATEMENT = text(SELECT)


class Pool(GeventPool):
    def __init__(self, dsn, size, pre_ping=False):
        patch_psycopg()
        self.size = size
        options = {
            "creator": lambda: psycopg2.connect(dsn),
            "pool_size": size,
            "max_overflow": 0,
            "pool_timeout": LONG_SECONDS,
            "pool_pre_ping": pre_ping,
        }
        self._in_transactions = create_engine("postgresql+psycopg2://", **options)
        self._in_autocommit = create_engine("postgresql+psycopg2://", isolation_level="AUTOCOMMIT", **options)
        for engine in (self._in_transactions, self._in_autocommit):
            connections = [engine.connect() for _ in range(size)]
            for conn in connections:
                conn.close()

    def acquire_release(self):
        with self._in_transactions.connect():
            pass

    def one_statement(self):
        with self._in_autocommit.connect() as conn:
            return conn.execute(STATEMENT).fetchone()

    def one_transaction(self):
        with self._in_transactions.begin() as conn:
            return conn.execute(STATEMENT).fetchone()

    def five_statements(self):
        with self._in_transactions.begin() as conn:
            for _ in range(5):
                row = conn.execute(STATEMENT).fetchone()
        return row

    def close(self):
        self._in_transactions.dispose()
        self._in_autocommit.dispose()
