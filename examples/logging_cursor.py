"""A cursor class of one's own, for all statements of a pool: each is logged as it was sent, with its time.

psycopg2.extras has LoggingConnection and MinTimeLoggingConnection ready-made; they work the same way, as the pool's
connection_class. Run it with `python examples/logging_cursor.py [DSN]`.
"""

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from typing import Any  # noqa: E402

import psycopg2  # noqa: E402
from psycopg2.extensions import cursor  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()

logger = logging.getLogger("statements")


class LoggingCursor(cursor):  # psycopg2's class; greenpg puts its own methods under it
    def execute(self, query: Any, vars: Any = None) -> None:
        started = time.monotonic()
        outcome = "ok"
        try:
            super().execute(query, vars)
        except BaseException as error:  # a kill or a timeout, too
            outcome = type(error).__name__
            raise
        finally:
            sent = (self.query or b"").decode()
            logger.info("%s [%s, %.1f ms]", sent, outcome, (time.monotonic() - started) * 1000)


def main(dsn: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    with greenpg.ConnectionPool(dsn, kwargs={"cursor_factory": LoggingCursor}) as pool:
        with pool.cursor() as cur:
            cur.execute("SELECT %s, pg_sleep(0.02)", ("it's",))
        try:
            with pool.cursor() as cur:
                cur.execute("SELECT 1 / %s", (0,))
        except psycopg2.errors.DivisionByZero as error:
            print("error:", str(error).strip())


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
