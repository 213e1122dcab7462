"""First steps: patch at startup, make a pool, use a cursor in a transaction of its own.

Run it with `python examples/first_steps.py`; it brings a throw-away PostgreSQL along. Give it a DSN to use your own.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from contextlib import nullcontext  # noqa: E402

import gevent  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()  # once, at startup: from now on psycopg2 lets the other greenlets run


def main(dsn: str) -> None:
    with greenpg.ConnectionPool(dsn, min_size=2, max_size=10) as pool:
        with pool.cursor() as cur:  # one transaction: commit at the end, or roll back on error
            cur.execute("SELECT version()")
            print(cur.fetchone()[0])

        def sleep_in_the_database(n: int) -> int:
            with pool.cursor() as cur:
                cur.execute("SELECT pg_sleep(0.1), %s", (n,))
                return cur.fetchone()[1]

        # 50 greenlets share the pool's ten connections, in the order in which they ask.
        tasks = [gevent.spawn(sleep_in_the_database, n) for n in range(50)]
        gevent.joinall(tasks, raise_error=True)
        print("sum of what 50 greenlets read:", sum(task.value for task in tasks))

        with pool.connection() as conn:  # the connection itself, if a cursor isn't enough
            with conn.cursor() as cur:
                cur.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
                print("connections at the server:", cur.fetchone()[0])
        print(pool)


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
