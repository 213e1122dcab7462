"""executemany() of 10,000 inserts: psycopg2 alone, psycopg2 with psycogreen's callback, psycopg 3 and greenpg.

    python benchmarks/executemany.py [DSN] [--rows 10000] [--rounds 7] [--delay 1]

Interleaved in one run, each in a transaction. Once directly, and once through a proxy that holds everything back
for `--delay` ms in each direction (0: leave that out; psycopg2 and psycogreen insert a twentieth of the rows there).
psycopg 3 runs as it does in a gevent program. What counts are the ratios.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402

import psycopg  # noqa: E402
import psycopg2  # noqa: E402
from psycogreen.gevent import gevent_wait_callback  # noqa: E402
from psycopg2 import extensions  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from proxy import Proxy  # noqa: E402

TABLE = "CREATE TEMP TABLE item (id int PRIMARY KEY, name text, price float)"
INSERT = "INSERT INTO item VALUES (%s, %s, %s)"


def contest(dsn, rows, rounds, one_by_one_rows):
    """Microseconds for each row, by competitor, in each round."""
    blocking = extensions.connection(dsn)  # psycopg2's own class
    psycopg3 = psycopg.connect(dsn)
    greenpg.patch("gevent")
    green = psycopg2.connect(dsn)
    callback = extensions.get_wait_callback()
    plain = extensions.connection(dsn)
    competitors = {
        "psycopg2": (blocking, None, one_by_one_rows),
        "psycopg2 + psycogreen": (plain, gevent_wait_callback, one_by_one_rows),
        "psycopg 3": (psycopg3, callback, rows),
        "greenpg": (green, callback, rows),
    }
    for conn, *_ in competitors.values():
        conn.cursor().execute(TABLE)
        conn.commit()
    found = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, (conn, wait_callback, count) in competitors.items():
            values = [(n, f"name {n}", n * 0.5) for n in range(count)]
            extensions.set_wait_callback(wait_callback)
            cur = conn.cursor()
            before = time.perf_counter()
            cur.executemany(INSERT, values)
            found[name].append((time.perf_counter() - before) / count * 1e6)
            assert cur.rowcount == count
            conn.rollback()
    extensions.set_wait_callback(callback)
    for conn, *_ in competitors.values():
        conn.close()
    greenpg.unpatch()
    return found


def report(title, found):
    print(title)
    ours = found["greenpg"]
    for name, values in found.items():
        print(
            f"  {name:24}{median(values):9.1f} µs a row (best {min(values):.1f}); greenpg is "
            f"{median(values) / median(ours):.2f} times as fast (by the best: {min(values) / min(ours):.2f})"
        )


def main(server_dsn, tcp_dsn, rows, rounds, delay):
    report(f"{rows} rows, {rounds} rounds, directly", contest(server_dsn, rows, rounds, rows))
    if delay and tcp_dsn:
        parameters = extensions.parse_dsn(tcp_dsn)
        with Proxy(parameters["host"], parameters["port"], delay / 1000) as proxy:
            dsn = extensions.make_dsn(tcp_dsn, port=proxy.port)
            report(f"with {delay:g} ms of delay each way", contest(dsn, rows, rounds, rows // 20))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="executemany(): psycopg2, psycogreen, psycopg 3 and greenpg")
    parser.add_argument("dsn", nargs="?")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--delay", type=float, default=1.0, help="ms; over TCP only")
    arguments = parser.parse_args()
    if arguments.dsn:
        is_tcp = extensions.parse_dsn(arguments.dsn).get("host", "/")[0] != "/"
        main(arguments.dsn, arguments.dsn if is_tcp else None, arguments.rows, arguments.rounds, arguments.delay)
    else:
        with greenpg.embedded.Server(settings={"fsync": "off"}, port=0) as server:
            main(server.dsn, server.tcp_dsn, arguments.rows, arguments.rounds, arguments.delay)
