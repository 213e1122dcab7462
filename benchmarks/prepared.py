"""Prepared statements: a look-up by key, and a join of three tables, by one task on one connection. psycopg2 by itself,
with PREPARE and EXECUTE written by hand, shows how much there is to gain.

python benchmarks/prepared.py [DSN] [--rounds 5] [--peers greenpg,psycopg3] [--times 5000]
"""

import sys
from functools import partial

from harness import Aim, Bars, Benchmark
from peers import open_connection
from peers.base import Clock

ROWS = 10_000
TABLES = [
    "CREATE TEMP TABLE person (id int PRIMARY KEY, name text, town int)",
    "CREATE TEMP TABLE town (id int PRIMARY KEY, name text, country int)",
    "CREATE TEMP TABLE country (id int PRIMARY KEY, name text)",
    f"INSERT INTO person SELECT n, 'person ' || n, n % 500 FROM generate_series(0, {ROWS - 1}) AS n",
    "INSERT INTO town SELECT n, 'town ' || n, n % 50 FROM generate_series(0, 499) AS n",
    "INSERT INTO country SELECT n, 'country ' || n FROM generate_series(0, 49) AS n",
    "ANALYZE person, town, country",
]
QUERIES = {
    "look-up by key": "SELECT id, name FROM person WHERE id = %s",
    "join of three tables": (
        "SELECT p.name, t.name, c.name FROM person p JOIN town t ON t.id = p.town JOIN country c ON c.id = t.country "
        "WHERE p.id = %s"
    ),
}
PREPARED, PLAIN = "{}, prepared", "{}, plain text"
#: It blocks the process while it waits, which is quicker than to let a loop wait.
BY_HAND = "psycopg2"


def run(cur, query, times):
    """psycopg 3 prepares by itself after five executions, greenpg by its `prepare_threshold`."""
    with Clock() as clock:
        for n in range(times):
            cur.execute(query, (n % ROWS,))
            assert len(cur.fetchall()) == 1
    return {"per_second": times / clock.seconds, "cpu_us": clock.cpu_seconds / times * 1e6}


def by_hand(conn, query):
    """The query as a prepared statement for a connection that prepares nothing by itself."""
    with conn.cursor() as cur:
        cur.execute(f"DEALLOCATE ALL; PREPARE by_hand (int) AS {query.replace('%s', '$1')}")
    return "EXECUTE by_hand (%s)"


def measure(name, dsn, sizes):
    found = {}
    with open_connection(name, dsn) as conn:
        conn.autocommit = True
        with conn.cursor() as cur:
            for statement in TABLES:
                cur.execute(statement)
        for what, query in QUERIES.items():
            for scenario, threshold in ((PLAIN, None), (PREPARED, 5)):
                text = query
                if hasattr(conn, "prepare_threshold"):
                    conn.prepare_threshold = threshold
                elif scenario == PREPARED:
                    if name != BY_HAND:
                        continue
                    text = by_hand(conn, query)
                with conn.cursor() as cur:
                    run(cur, text, 50)
                    found[scenario.format(what)] = run(cur, text, sizes["times"])
    return found


BENCHMARK = Benchmark(
    __file__,
    title="Prepared statements",
    description=(
        "A row by its key from a table of 10,000, and a row joined from three tables, in autocommit, each fetched, by "
        "one task on one connection by Unix socket. greenpg and psycopg 3 with a `prepare_threshold` of 5 and without; "
        "blocking psycopg2 with EXECUTE written by hand."
    ),
    peers={name: partial(measure, name) for name in ("greenpg", "psycopg3", "psycopg2-psycogreen", BY_HAND)},
    sizes={"times": 5_000},
    quick_sizes={"times": 500},
    pictures=[
        Bars(
            "speed",
            "per_second",
            [scenario.format(what) for what in QUERIES for scenario in (PLAIN, PREPARED)],
            "One task on one connection",
        )
    ],
    aims=[Aim(PREPARED.format(what), "per_second", at_least=1.5, than_scenario=PLAIN.format(what)) for what in QUERIES],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
