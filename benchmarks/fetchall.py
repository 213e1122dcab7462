"""A million rows fetched by psycopg2 alone and by greenpg, interleaved in one run: the ratios, and the hub's stalls.

    python benchmarks/fetchall.py [DSN] [--rows 1000000] [--rounds 5]

The result is with the client already: what is measured is making Python objects of it, in CPU time of the thread, so
that other load on the machine counts less.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import gc  # noqa: E402
import time  # noqa: E402
from contextlib import contextmanager, nullcontext  # noqa: E402
from statistics import median  # noqa: E402

import gevent  # noqa: E402
import psycopg2  # noqa: E402
from bulk_copy import Heartbeat  # noqa: E402
from psycopg2 import extensions, extras  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

SELECT = "SELECT n AS id, 'name ' || n AS name, md5(n::text) AS hash FROM generate_series(1, {}) AS n"


kept = []  # freeing a million rows is a stall of its own, which is not psycopg2's


def fetchall(cur):
    kept.append(cur.fetchall())
    return len(kept[0])


def iterate(cur):
    number = 0
    for _ in cur:
        number += 1
    return number


@contextmanager
def collections():
    """How long each run of Python's garbage collector took, in ms: nothing else runs meanwhile either."""
    durations = []
    started = 0.0

    def note(phase, _):
        nonlocal started
        if phase == "start":
            started = time.perf_counter()
        else:
            durations.append((time.perf_counter() - started) * 1000)

    gc.callbacks.append(note)
    try:
        yield durations
    finally:
        gc.callbacks.remove(note)


CONTESTS = {
    "fetchall": (fetchall, None, extensions.cursor),
    "iteration": (iterate, None, extensions.cursor),
    "fetchall, DictCursor": (fetchall, extras.DictCursor, extras.DictCursor),
    "fetchall, NamedTupleCursor": (fetchall, extras.NamedTupleCursor, extras.NamedTupleCursor),
}


def small_fetchalls(cur):
    """Seconds for 20,000 fetchall() of a result of 10 rows, without the statements."""
    cur.execute(SELECT.format(10))
    before = time.thread_time()
    for _ in range(20_000):
        cur.scroll(0, "absolute")
        cur.fetchall()
    return time.thread_time() - before


def main(dsn, rows, rounds):
    psycopg2s = extensions.connection(dsn)  # made before patch(): all is psycopg2's own
    greenpg.patch("gevent")
    green = psycopg2.connect(dsn)
    seconds, stalls, gc_stalls = {}, {}, {}
    for _ in range(rounds):
        for contest, (run, factory, _base) in CONTESTS.items():
            for peer, conn in (("psycopg2", psycopg2s), ("greenpg", green)):
                cur = conn.cursor(cursor_factory=factory)
                cur.execute(SELECT.format(rows))
                with collections() as longest_gc_ms, Heartbeat() as heartbeat:
                    gevent.sleep(0.005)
                    before = time.thread_time()
                    assert run(cur) == rows
                    seconds.setdefault((contest, peer), []).append(time.thread_time() - before)
                stalls.setdefault((contest, peer), []).append(heartbeat.stall_ms)
                gc_stalls.setdefault((contest, peer), []).append(max(longest_gc_ms, default=0.0))
                kept.clear()
                cur.close()
                conn.rollback()
        for peer, conn in (("psycopg2", psycopg2s), ("greenpg", green)):
            seconds.setdefault(("20,000 small ones", peer), []).append(small_fetchalls(conn.cursor()))
    print(f"{rows} rows, {rounds} rounds; CPU seconds of the thread: median, best")
    print("longest stall of the hub, ms: median, worst; the longest garbage collection in it, ms: median, worst")
    for key, values in seconds.items():
        found, found_gc = stalls.get(key, [0]), gc_stalls.get(key, [0])
        print(
            f"{key[0]:28}{key[1]:10}{median(values):8.3f}{min(values):8.3f}{median(found):10.1f}{max(found):8.1f}"
            f"{median(found_gc):10.1f}{max(found_gc):8.1f}"
        )
    print("greenpg's speed / psycopg2's: median, best")
    for contest in (*CONTESTS, "20,000 small ones"):
        ours, own = seconds[contest, "greenpg"], seconds[contest, "psycopg2"]
        print(f"{contest:28}{median(own) / median(ours):8.2f}{min(own) / min(ours):8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="fetchall() of a million rows: psycopg2 and greenpg")
    parser.add_argument("dsn", nargs="?")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with nullcontext(arguments.dsn) if arguments.dsn else greenpg.embedded.server(settings={"fsync": "off"}) as dsn:
        main(dsn, arguments.rows, arguments.rounds)
