"""Celery with greenlets: a thousand tasks at once on ten connections. Each task is one transaction.

Needs greenpg[celery], a PostgreSQL in GREENPG_DSN, and a broker in BROKER (as amqp://). In this folder:

    celery -A with_celery worker -P gevent -c 1000
    python with_celery.py

At SIGTERM the tasks have 20 seconds. What runs then is cancelled at the server: that task goes back to the queue.
"""

import os

from celery import Celery

from greenpg.integrations.celery import setup

app = Celery("with_celery", broker=os.environ.get("BROKER", "amqp://"))
db = setup(
    app,
    os.environ["GREENPG_DSN"],
    max_size=10,
    per_task="transaction",
    shutdown_after=float(os.environ.get("SHUTDOWN_AFTER", "20")),
)


@app.task(acks_late=True, soft_time_limit=60)
def work(number, seconds=0.02):
    with db.cursor() as cur:
        cur.execute("INSERT INTO celery_done SELECT %s FROM pg_sleep(%s)", (number, seconds))


if __name__ == "__main__":
    db.pool.execute("CREATE TABLE IF NOT EXISTS celery_done (number int)")
    for number in range(1000):
        work.delay(number)
