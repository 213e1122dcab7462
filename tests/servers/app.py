"""A WSGI app whose requests take a connection of a pool of 10 each, for the tests of all servers."""

import os

from psycopg2 import extensions

import greenpg

#: True only if psycopg2 was green before this module was imported.
PATCHED_BEFORE = extensions.get_wait_callback() is not None
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], max_size=10, timeout=60)


def application(environ, start_response):
    path, seconds = environ["PATH_INFO"], environ.get("QUERY_STRING") or "0.02"
    if path == "/hang":
        while True:  # a greenlet that never lets another one run
            pass
    if path == "/patched":
        body = f"{PATCHED_BEFORE} {greenpg.is_patched()}".encode()
    else:
        body = b"%d" % pool.fetchval("SELECT 42 FROM pg_sleep(%s)", (float(seconds),))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
