"""A PgBouncer of the test's own, in front of an embedded server. Skips where it isn't installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg2
import pytest

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer isn't installed: apt-get install pgbouncer")


class PgBouncer:
    """`with PgBouncer(server, "transaction") as bouncer:` pools of two server connections."""

    def __init__(self, server, mode, **settings):
        self._server = server
        self._settings = {"pool_mode": mode, "default_pool_size": 2, **settings}

    def __enter__(self):
        self._directory = Path(tempfile.mkdtemp(prefix="greenpg-bouncer-"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": "postgres",
            "logfile": self._directory / "log",
            "server_login_retry": 0.2,
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        where = f"* = host=127.0.0.1 port={self._server.port} user=postgres"
        (self._directory / "ini").write_text("\n".join(["[databases]", where, "[pgbouncer]", *lines]) + "\n")
        if os.getuid() == 0:
            shutil.chown(self._directory, "nobody")
        self.start()
        return self

    def start(self):
        """Also again, after `stop()`."""
        as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.getuid() == 0 else []
        command = [*as_nobody, PROGRAM, "--quiet", str(self._directory / "ini")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert time.monotonic() < deadline, (self._directory / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def stop(self):
        self._process.kill()  # SIGQUIT, its own "at once", is ignored in what a shell runs in the background
        self._process.wait(10)

    def __exit__(self, *exc_info):
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def dsn(self):
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres sslmode=disable"

    def tell(self, command):
        """PAUSE, RESUME, RECONNECT, SHOW ..."""
        conn = psycopg2.connect(f"{self.dsn} dbname=pgbouncer", connection_factory=psycopg2.extensions.connection)
        try:
            conn.autocommit = True
            with conn.cursor() as cur:
                cur.execute(command)
                return cur.fetchall() if cur.description else None
        finally:
            conn.close()
