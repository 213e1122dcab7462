"""The demo, examples/webapp.py, on a peer's pool, served by gunicorn with one gevent worker.

    with Site("psycopg_pool", dsn) as site:
        ...  # site.host, site.port

Routes, statements, transactions and rendering are the demo's for every peer. What a peer brings is what the demo has of
greenpg: a pool whose `cursor()` gives a cursor in a transaction, on a connection that is held until its end.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

POOL_SIZE = 10
EXAMPLES = Path(__file__).parents[1] / "examples"


class Site:
    """A running gunicorn, which `script` serves; at the end of the `with` block it has ended."""

    def __init__(self, peer: str, dsn: str, script: str = __file__) -> None:
        self._peer, self._dsn, self._script = peer, dsn, script

    def __enter__(self) -> Site:
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            self.host, self.port = listener.getsockname()
            self._process = subprocess.Popen(
                [sys.executable, self._script, self._peer, str(listener.fileno())],
                pass_fds=[listener.fileno()],
                env=os.environ | {"GREENPG_DSN": self._dsn, "GREENPG_POOL_SIZE": str(POOL_SIZE)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        try:
            line = self._process.stdout.readline()
            if not line:
                raise OSError(f"gunicorn did not start: `web.py --peer {self._peer} DSN` shows its log")
            self._worker_pid = int(line)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        finally:
            self._process.kill()  # its worker sees that it's alone, and ends
            self._process.wait()
            self._process.stdout.close()

    def worker_cpu_seconds(self) -> float:
        """User and system time of the worker so far."""
        fields = Path(f"/proc/{self._worker_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- in gunicorn's process


def psycopg_pool(dsn, size):
    from psycopg_pool import ConnectionPool

    class Pool(ConnectionPool):
        @contextmanager
        def cursor(self):
            with self.connection() as conn, conn.cursor() as cur:
                yield cur

    pool = Pool(dsn, min_size=size, max_size=size, open=True)
    pool.wait()
    return pool


def psycogreen(dsn, size):
    """After gevent's example; see peers/semaphore_pool.py."""
    import psycopg2
    from gevent.lock import BoundedSemaphore
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
    semaphore = BoundedSemaphore(size)
    idle = [psycopg2.connect(dsn) for _ in range(size)]

    class Pool:
        @contextmanager
        def cursor(self):
            with semaphore:
                conn = idle.pop()
                try:
                    with conn, conn.cursor() as cur:
                        yield cur
                finally:
                    idle.append(conn)

    return Pool()


def load_app(peer):
    """For the worker, once gevent has patched it."""
    import greenpg

    if peer == "greenpg":
        greenpg.patch()
    sys.path.append(str(EXAMPLES))
    import webapp

    if peer != "greenpg":  # the demo's own pool has not connected yet, and never will
        webapp.pool = {"psycopg_pool": psycopg_pool, "psycogreen": psycogreen}[peer](webapp.DSN, webapp.POOL_SIZE)
    if peer == "psycopg_pool":  # psycopg 3 has its batches there
        webapp.execute_batch = lambda cursor, statement, rows: cursor.executemany(statement, rows)
    return webapp.application


def serve(peer, listening_fd, load_app=load_app):
    from gunicorn.app.base import BaseApplication

    class Demo(BaseApplication):
        def load_config(self):
            settings = {
                "bind": f"fd://{listening_fd}",
                "worker_class": "gevent",
                "workers": 1,
                "keepalive": 60,
                "graceful_timeout": 1,
                "loglevel": "warning",
                "control_socket_disable": True,
                "post_worker_init": lambda worker: print(worker.pid, flush=True),  # the app is loaded
            }
            for name, value in settings.items():
                if name in self.cfg.settings:  # older versions have no control socket
                    self.cfg.set(name, value)

        def load(self):
            return load_app(peer)

    Demo().run()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
