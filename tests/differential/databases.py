"""The databases in which the two sides run: of names of the same length, so that positions in messages agree."""

from __future__ import annotations

import contextlib

import psycopg2
from psycopg2 import extensions


@contextlib.contextmanager
def two_databases(dsn, token):
    """Two new, empty databases on the server; their DSNs. They're dropped at the end."""
    names = [f"differ_{token}_{side}" for side in "ab"]
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    with conn.cursor() as cur:
        for name in names:
            cur.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            cur.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield [extensions.make_dsn(dsn, dbname=name) for name in names]
    finally:
        with conn.cursor() as cur:
            for name in names:
                cur.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        conn.close()
