"""examples/with_celery.py on a broker of files in the folder BROKER_FOLDER, and tasks that end badly."""

import os

import celery
from with_celery import app, db

import greenpg

IS_PATCHED_AT_IMPORT = greenpg.is_patched()
FOLDER = os.environ["BROKER_FOLDER"]
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER,
    "data_folder_out": FOLDER,
    "control_folder": os.path.join(FOLDER, "control"),
    "polling_interval": 0.02,
}


def insert(number, seconds=0.0):
    with db.cursor() as cur:
        cur.execute("INSERT INTO celery_done SELECT %s FROM pg_sleep(%s)", (number, seconds))


@app.task
def at_import():
    insert(int(IS_PATCHED_AT_IMPORT))


@app.task  # without acks_late
def work_once(number, seconds):
    insert(number, seconds)


@app.task
def leave_open(number):
    work_once(number, 0)
    db.connection.execute("SELECT 1")


@app.task
def fail(number):
    insert(number)
    raise ValueError("after it has written")


@app.task(soft_time_limit=0.3)
def stopped_softly(number):
    try:
        insert(-1, 60)
    except celery.exceptions.SoftTimeLimitExceeded:
        with db.pool.cursor() as cur:  # the task's own transaction will be rolled back
            cur.execute("INSERT INTO celery_done VALUES (%s)", (number,))
        raise


@app.task(time_limit=0.3)
def stopped(number):
    insert(number, 60)
