"""A program that knows nothing of greenpg, and is green: gevent's runner patches, and greenpg with it.

GREENPG_AUTOPATCH=1 python -m gevent.monkey without_a_line.py "dbname=app"
"""

import sys
import time

import gevent
import psycopg2


def nap():
    with psycopg2.connect(sys.argv[1]) as conn, conn.cursor() as cur:
        cur.execute("SELECT pg_sleep(0.3)")
    conn.close()


began = time.monotonic()
gevent.joinall([gevent.spawn(nap) for _ in range(10)], raise_error=True)
print(f"slept ten times 0.3 s, in {'less' if time.monotonic() - began < 2.9 else 'more'} than 3 s")
