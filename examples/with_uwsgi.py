"""A WSGI app under uWSGI, whose requests take as many seconds at the server as their query string says.

Needs `pip install greenpg pyuwsgi`, and a PostgreSQL in GREENPG_DSN. In this folder:

    uwsgi --http-socket 127.0.0.1:8000 --master --gevent 1000 --gevent-early-monkey-patch --module with_uwsgi \\
        --hook-master-start 'unix_signal:15 gracefully_kill_them_all' --worker-reload-mercy 30
    curl 'localhost:8000/?0.5'

`--gevent-monkey-patch`, which patches later, does as well.
"""

import os

import greenpg
import greenpg.integrations.uwsgi

greenpg.integrations.uwsgi.setup()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], max_size=10)


def application(environ, start_response):
    seconds = float(environ.get("QUERY_STRING") or 0.02)
    body = b"%d" % pool.fetchval("SELECT 42 FROM pg_sleep(%s)", (seconds,))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
