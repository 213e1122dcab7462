"""COPY: a million rows in and out, by blocking psycopg2, psycopg 3 and greenpg, interleaved in one run.

    python benchmarks/bulk_copy.py [DSN] [--rows 1000000] [--rounds 5]

What counts are the ratios and the longest time for which the hub could not run another greenlet; the megabytes per
second are of this machine at this moment. psycopg 3 runs as it does in a gevent program, with its C implementation.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import io  # noqa: E402
import time  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from statistics import median  # noqa: E402

import gevent  # noqa: E402
import psycopg  # noqa: E402
import psycopg2  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

TABLE = """
    CREATE TEMP TABLE item AS
    SELECT n AS id, 'name ' || n AS name, md5(n::text) AS hash, now() AS created FROM generate_series(1, {}) AS n
"""


class Heartbeat:
    """How long the hub was held up at most, in ms."""

    BEAT = 0.002

    def __enter__(self):
        self.stall_ms = 0.0
        self._is_over = False
        self._task = gevent.spawn(self._beat)
        return self

    def __exit__(self, *exc_info):
        self._is_over = True
        self._task.join()

    def _beat(self):
        while not self._is_over:
            before = time.monotonic()
            gevent.sleep(self.BEAT)
            self.stall_ms = max(self.stall_ms, (time.monotonic() - before - self.BEAT) * 1000)


class Bench:
    def __init__(self, dsn, rows):
        self.rows = rows
        self.blocking = psycopg2.connect(dsn)
        self.psycopg3 = psycopg.connect(dsn)
        greenpg.patch("gevent")
        self.green = psycopg2.connect(dsn)
        for conn in (self.blocking, self.psycopg3, self.green):
            conn.cursor().execute(TABLE.format(rows))
            conn.commit()
        file = io.BytesIO()
        self.green.cursor().copy_expert("COPY item TO STDOUT", file)
        self.data = file.getvalue()

    # Each returns nothing, and moves self.data.

    def out_file(self, conn):
        conn.cursor().copy_expert("COPY item TO STDOUT", io.BytesIO())

    def out_block(self, conn):
        file = io.BytesIO()
        with conn.cursor() as cur, cur.copy("COPY item TO STDOUT") as copy:
            for block in copy:
                file.write(block)

    def out_rows(self, conn):
        with conn.cursor() as cur, cur.copy("COPY item TO STDOUT") as copy:
            for _ in copy.rows():
                pass

    def in_file(self, conn):
        conn.cursor().copy_expert("COPY item FROM STDIN", io.BytesIO(self.data))

    def in_block(self, conn):
        file = io.BytesIO(self.data)
        with conn.cursor() as cur, cur.copy("COPY item FROM STDIN") as copy:
            while data := file.read(8192):
                copy.write(data)

    def in_rows(self, conn):
        with conn.cursor() as cur, cur.copy("COPY item FROM STDIN") as copy:
            for number in range(self.rows):
                copy.write_row((number, f"name {number}", "d41d8cd98f00b204e9800998ecf8427e", "2026-01-01"))

    def run(self, rounds):
        contests = [
            ("out", self.out_file, {"psycopg2, blocking": self.blocking, "greenpg, copy_expert": self.green}),
            ("out", self.out_block, {"psycopg 3, iterated": self.psycopg3, "greenpg, iterated": self.green}),
            ("out", self.out_rows, {"psycopg 3, rows()": self.psycopg3, "greenpg, rows()": self.green}),
            ("in", self.in_file, {"psycopg2, blocking": self.blocking, "greenpg, copy_expert": self.green}),
            ("in", self.in_block, {"psycopg 3, write()": self.psycopg3, "greenpg, write()": self.green}),
            ("in", self.in_rows, {"psycopg 3, write_row()": self.psycopg3, "greenpg, write_row()": self.green}),
        ]
        seconds, stalls = {}, {}
        for _ in range(rounds):
            for direction, contest, runners in contests:
                for name, conn in runners.items():
                    key = direction, name
                    taken, stall = self.once(direction, contest, conn)
                    seconds.setdefault(key, []).append(taken)
                    stalls.setdefault(key, []).append(stall)
        return {key: len(self.data) / 1e6 / median(values) for key, values in seconds.items()}, stalls

    def once(self, direction, contest, conn):
        if direction == "in":
            conn.cursor().execute("TRUNCATE item")
        if conn is self.blocking:
            greenpg.unpatch()
        with Heartbeat() as heartbeat:
            gevent.sleep(0.005)
            before = time.monotonic()
            contest(conn)
            taken = time.monotonic() - before
        greenpg.patch("gevent")
        conn.rollback()
        return taken, heartbeat.stall_ms


def main(dsn, rows, rounds):
    bench = Bench(dsn, rows)
    print(f"{rows} rows, {len(bench.data) / 1e6:.0f} MB; median of {rounds} rounds")
    speeds, stalls = bench.run(rounds)
    print(f"{'':32}{'MB/s':>6}   longest stall of the hub, ms: median, worst")
    for (direction, name), speed in speeds.items():
        found = stalls[direction, name]
        print(f"{direction:4}{name:28}{speed:6.0f}{median(found):9.1f}{max(found):9.1f}")
    print("ratios")
    for direction, one, other in (
        ("out", "greenpg, copy_expert", "psycopg2, blocking"),
        ("out", "greenpg, copy_expert", "psycopg 3, iterated"),
        ("out", "greenpg, iterated", "psycopg 3, iterated"),
        ("out", "greenpg, rows()", "psycopg 3, rows()"),
        ("in", "greenpg, copy_expert", "psycopg2, blocking"),
        ("in", "greenpg, write()", "psycopg 3, write()"),
        ("in", "greenpg, write_row()", "psycopg 3, write_row()"),
    ):
        print(f"{direction:4}{one} / {other}: {speeds[direction, one] / speeds[direction, other]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="COPY: blocking psycopg2, psycopg 3 and greenpg")
    parser.add_argument("dsn", nargs="?")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with nullcontext(arguments.dsn) if arguments.dsn else greenpg.embedded.server(settings={"fsync": "off"}) as dsn:
        main(dsn, arguments.rows, arguments.rounds)
