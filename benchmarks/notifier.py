"""Sends notifications from a process of its own.

    with Notifier(dsn) as notifier:
        notifier.send(channels=1, count=100, at_once=10)    # returns at once

The notifications go to `channel_0`, `channel_1` and so on in turns. A payload is its number in its channel and the time
on the clock that all processes share, `time.monotonic()`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time


class Notifier:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def __enter__(self) -> Notifier:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._write(self._dsn)
            self.connections()  # it's there
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def send(self, channels: int, count: int, *, at_once: int = 1, pause: float = 0.0) -> None:
        """Have `count` notifications sent, `at_once` in each transaction, with `pause` seconds after each."""
        self._write({"channels": channels, "count": count, "at_once": at_once, "pause": pause})

    def connections(self) -> int:
        """How many clients the server has, the notifier not counted."""
        self._write(None)
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the notifier has ended; its error is above")
        return int(line)

    def _write(self, message: object) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


CLIENTS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def serve() -> None:
    """Until stdin ends."""
    import psycopg2

    conn = psycopg2.connect(json.loads(sys.stdin.readline()))
    conn.autocommit = True
    with conn.cursor() as cursor:
        for line in sys.stdin:
            order = json.loads(line)
            if order is None:
                cursor.execute(CLIENTS)
                print(cursor.fetchone()[0], flush=True)
            else:
                notify(cursor, **order)


def notify(cursor, channels, count, at_once, pause):
    for first in range(0, count, at_once):
        numbers = range(first, min(first + at_once, count))
        values = []
        for number in numbers:
            values += [f"channel_{number % channels}", f"{number // channels} {time.monotonic()}"]
        cursor.execute(f"SELECT {', '.join(['pg_notify(%s, %s)'] * len(numbers))}", values)
        time.sleep(pause)


if __name__ == "__main__":
    serve()
