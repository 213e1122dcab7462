"""Stream a large object to an HTTP response: memory stays small, and other requests are answered meanwhile.

    python examples/large_object_download.py [DSN]

Without a DSN it starts the embedded PostgreSQL (`pip install 'greenpg[embedded]'`).
"""

from gevent import monkey

monkey.patch_all()

import hashlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import urllib.request  # noqa: E402
from contextlib import nullcontext  # noqa: E402

import gevent  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()

MEGABYTES = 20
CHUNK_BYTES = 256 * 1024


def store(pool):
    """A file's worth of random bytes; its OID and checksum."""
    checksum = hashlib.sha256()
    with pool.connection() as conn:
        lobject = conn.lobject(0, "wb")
        for _ in range(MEGABYTES):
            data = os.urandom(1 << 20)
            checksum.update(data)
            lobject.write(data)
        return lobject.oid, checksum.hexdigest()


def stream(pool, oid):
    """The object in pieces. Its transaction, and so the connection, is held until the client has it all."""
    with pool.connection() as conn:
        lobject = conn.lobject(oid, "rb")
        while piece := lobject.read(CHUNK_BYTES):
            yield piece


def application(pool):
    def handle(environ, start_response):
        oid = int(environ["PATH_INFO"].strip("/"))
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return stream(pool, oid)

    return handle


def main(dsn):
    with greenpg.ConnectionPool(dsn, min_size=1, max_size=4) as pool:
        oid, checksum = store(pool)
        server = WSGIServer(("127.0.0.1", 0), application(pool), log=None)
        server.start()
        url = f"http://127.0.0.1:{server.server_port}/{oid}"

        def download():
            received = hashlib.sha256()
            with urllib.request.urlopen(url) as response:
                while piece := response.read(65536):
                    received.update(piece)
            return received.hexdigest()

        downloads = [gevent.spawn(download) for _ in range(3)]
        right = [task.get() == checksum for task in downloads]
        print(f"{len(right)} downloads of {MEGABYTES} MB at the same time, right: {right}")
        server.stop()
        with pool.connection() as conn:
            conn.lobject(oid, "n").unlink()


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
