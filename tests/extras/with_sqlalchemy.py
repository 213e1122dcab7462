"""`pip install 'greenpg[sqlalchemy]'`: an engine by its URL."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402

import gevent  # noqa: E402
from psycopg2.extensions import parse_dsn  # noqa: E402
from sqlalchemy import create_engine, text  # noqa: E402

import greenpg  # noqa: E402

greenpg.patch()
engine = create_engine(
    "postgresql+greenpg://", connect_args=parse_dsn(os.environ["GREENPG_DSN"]), pool_size=2, max_overflow=0
)


def add_one(number):
    with engine.begin() as conn:
        return conn.execute(text("SELECT :number + 1"), {"number": number}).scalar()


tasks = [gevent.spawn(add_one, number) for number in range(10)]
assert [task.get() for task in tasks] == list(range(1, 11))
try:
    with gevent.Timeout(0.05), engine.begin() as conn:
        conn.execute(text("SELECT pg_sleep(5)"))
except gevent.Timeout:
    pass
assert engine.pool.checkedin() == engine.pool.stats()["connections_num"], "a timeout has cost a connection"
engine.dispose()
