"""The configuration of examples/: gunicorn's worker patches, before this is imported.

options: --config ../../examples/gunicorn_conf.py --workers 4
finds: nothing
"""

import os

import greenpg

pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=10)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(pool.fetchval("SELECT 42")).encode()]
