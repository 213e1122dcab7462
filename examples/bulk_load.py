"""Load a CSV file into a table while a web handler goes on answering.

    python examples/bulk_load.py [DSN]

Without a DSN it starts the embedded PostgreSQL (`pip install 'greenpg[embedded]'`).
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import urllib.request  # noqa: E402
from contextlib import nullcontext  # noqa: E402

import gevent  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()

ROWS = 300_000


def write_csv(file):
    file.writelines(f"{number},name {number},{number / 7:.3f}\n" for number in range(ROWS))
    file.seek(0)


def load(pool, file):
    """One transaction: all rows or none. copy_expert reads the file by 64 KiB; other greenlets run in between."""
    with pool.cursor() as cur:
        cur.copy_expert("COPY item FROM STDIN (FORMAT csv)", file, size=65536)
        return cur.rowcount


def application(pool):
    def handle(environ, start_response):
        with pool.cursor() as cur:
            cur.execute("SELECT count(*) FROM item")
            body = f"{cur.fetchone()[0]} rows\n".encode()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    return handle


def ask_until(loaded, url):
    """What a client sees meanwhile: the slowest answer, in seconds, and how many there were."""
    slowest, answers = 0.0, 0
    while not loaded.ready():
        started = time.monotonic()
        urllib.request.urlopen(url).read()
        slowest, answers = max(slowest, time.monotonic() - started), answers + 1
        gevent.sleep(0.01)
    return slowest, answers


def main(dsn):
    with greenpg.ConnectionPool(dsn, min_size=2, max_size=4) as pool:
        with pool.cursor() as cur:
            cur.execute("DROP TABLE IF EXISTS item; CREATE TABLE item (id int, name text, price numeric)")
        server = WSGIServer(("127.0.0.1", 0), application(pool), log=None)
        server.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        with tempfile.TemporaryFile("w+") as file:
            write_csv(file)
            started = time.monotonic()
            loaded = gevent.spawn(load, pool, file)
            slowest, answers = ask_until(loaded, url)
            print(f"loaded {loaded.get()} rows in {time.monotonic() - started:.1f} s")
        print(f"meanwhile {answers} requests were answered, the slowest in {slowest * 1000:.0f} ms")
        print(f"the handler says: {urllib.request.urlopen(url).read().decode().strip()}")
        server.stop()


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
