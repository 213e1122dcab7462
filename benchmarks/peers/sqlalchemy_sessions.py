"""SQLAlchemy's ORM: a Session for each operation, on an engine of any driver."""

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from .base import LONG_SECONDS, SELECT, GeventPool

STATEMENT = text(SELECT)


class Pool(GeventPool):
    """`driver`: "greenpg", or "psycopg2" (by psycogreen) or "psycopg" with SQLAlchemy's own QueuePool."""

    def __init__(self, dsn, size, driver):
        from psycopg2.extensions import parse_dsn

        if driver == "greenpg":
            import greenpg

            greenpg.patch()
        elif driver == "psycopg2":
            from psycogreen.gevent import patch_psycopg

            patch_psycopg()
        self.size = size
        options = {"pool_size": size, "max_overflow": 0, "pool_timeout": LONG_SECONDS}
        self._engine = create_engine(make_url(f"postgresql+{driver}://"), connect_args=parse_dsn(dsn), **options)
        connections = [self._engine.connect() for _ in range(size)]
        for conn in connections:
            conn.close()

    def acquire_release(self):
        with self._engine.connect():
            pass

    def one_transaction(self):
        with Session(self._engine) as session:
            row = session.execute(STATEMENT).fetchone()
            session.commit()
        return row

    def five_statements(self):
        with Session(self._engine) as session:
            for _ in range(5):
                row = session.execute(STATEMENT).fetchone()
            session.commit()
        return row

    def close(self):
        self._engine.dispose()
