"""eventlet: monkey-patch, patch, and everything else is the same.

Run it with `python examples/with_eventlet.py [DSN]`.
"""

import eventlet

eventlet.monkey_patch()

import sys  # noqa: E402
from contextlib import nullcontext  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()


def main(dsn: str) -> None:
    with greenpg.ConnectionPool(dsn, min_size=1, max_size=5) as pool:

        def work(n: int) -> int:
            with pool.cursor() as cur:
                cur.execute("SELECT pg_sleep(0.1), %s", (n,))
                return cur.fetchone()[1]

        print("numbers:", list(eventlet.GreenPool(size=50).imap(work, range(25))))
        print(pool)


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
