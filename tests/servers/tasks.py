"""The Celery app of the workers' tests, on a broker of files in the folder SERVERS_BROKER."""

import os

import celery

import greenpg
from greenpg.integrations.celery import setup

FOLDER = os.environ["SERVERS_BROKER"]
app = celery.Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER,
    "data_folder_out": FOLDER,
    "control_folder": os.path.join(FOLDER, "control"),
    "polling_interval": 0.02,
}
app.conf.broker_connection_retry_on_startup = True
db = setup(app, os.environ["SERVERS_DSN"], max_size=10, timeout=60, per_task="transaction", shutdown_after=1.5)
IS_PATCHED_AT_IMPORT = greenpg.is_patched()


@app.task
def work(number, seconds=0.0):
    with db.cursor() as cur:
        cur.execute("INSERT INTO celery_done SELECT %s FROM pg_sleep(%s)", (number, seconds))


@app.task(acks_late=True)
def work_late(number, seconds):
    work(number, seconds)


@app.task
def at_import():
    work(int(IS_PATCHED_AT_IMPORT))


@app.task
def leave_open(number):
    work(number)
    db.connection.execute("SELECT 1")


@app.task
def fail(number):
    work(number)
    raise ValueError("after it has written")


@app.task(soft_time_limit=0.3)
def stopped_softly(number):
    try:
        work(-1, 60)
    except celery.exceptions.SoftTimeLimitExceeded:
        with db.pool.cursor() as cur:  # the task's own transaction will be rolled back
            cur.execute("INSERT INTO celery_done VALUES (%s)", (number,))
        raise


@app.task(time_limit=0.3)
def stopped(number):
    work(number, 60)
