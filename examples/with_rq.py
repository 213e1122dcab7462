"""RQ, whose worker forks a process for each job. One line makes a job's timeout end its statement at the server, too.

Needs `pip install greenpg rq`, a PostgreSQL in GREENPG_DSN and a Redis in REDIS_URL. In this folder:

    rq worker --url $REDIS_URL
    python with_rq.py 0.5 60    # two jobs, of which one takes too long
"""

import os

import greenpg

greenpg.patch("threads")  # without it psycopg2 doesn't hear of timeouts before the server has answered
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=2)


def work(seconds):
    return pool.fetchval("SELECT 42 FROM pg_sleep(%s)", (seconds,))


if __name__ == "__main__":
    import sys

    import redis
    import rq

    queue = rq.Queue(connection=redis.from_url(os.environ["REDIS_URL"]))
    for seconds in sys.argv[1:]:
        queue.enqueue("with_rq.work", float(seconds), job_timeout=2)
