"""Native threads without any green library: the same pool, and the same calls.

Run it with `python examples/native_threads.py [DSN]`.
"""

import sys
import threading
from contextlib import nullcontext

import greenpg
import greenpg.embedded

greenpg.patch("threads")


def main(dsn: str) -> None:
    results = []
    with greenpg.ConnectionPool(dsn, min_size=1, max_size=4) as pool:

        def work(n: int) -> None:
            with pool.cursor() as cur:
                cur.execute("SELECT pg_sleep(0.05), %s * %s", (n, n))
                results.append(cur.fetchone()[1])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("squares:", sorted(results))
        print(pool)


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
