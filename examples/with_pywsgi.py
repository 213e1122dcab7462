"""gevent's own WSGI server, and an app of no framework. Its requests take as many seconds as their query string says.

    python with_pywsgi.py "dbname=app" [PORT [SECONDS]]
    curl 'localhost:8000/?0.5'

At SIGTERM requests have SECONDS (10). Then they are killed, which cancels their statements at the server.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import signal  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

import greenpg  # noqa: E402
from greenpg.integrations.wsgi import Greenpg  # noqa: E402

greenpg.patch()


def app(environ, start_response):
    seconds = float(environ.get("QUERY_STRING") or 0.02)
    with environ["greenpg"].cursor() as cur:
        cur.execute("SELECT 42 FROM pg_sleep(%s)", (seconds,))
        body = b"%d" % cur.fetchone()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("port", nargs="?", type=int, default=8000)
    parser.add_argument("seconds", nargs="?", type=float, default=10)
    options = parser.parse_args()
    # Only with a pool of greenlets does the server wait for its requests, and kill those that take too long.
    server = WSGIServer(("127.0.0.1", options.port), Greenpg(app, options.dsn, max_size=10), spawn=Pool(1000))
    gevent.signal_handler(signal.SIGTERM, server.close)
    server.start()
    print(f"listens on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(stop_timeout=options.seconds)
    greenpg.shutdown()
