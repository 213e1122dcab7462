"""gevent is there, greenpg isn't: every query stops the program.

finds: not_patched
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402

import psycopg2  # noqa: E402

DSN = os.environ["GREENPG_DSN"]


def app(environ, start_response):
    conn = psycopg2.connect(DSN)
    start_response("200 OK", [])
    return [conn.info.dbname.encode()]
