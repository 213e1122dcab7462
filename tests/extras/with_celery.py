"""`pip install 'greenpg[celery]'`: a `-P gevent` worker, whose tasks are transactions, and its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg2

for folder in ("new", "queue", "control"):
    Path(folder).mkdir()
Path("tasks.py").write_text("""
import os

import celery

from greenpg.integrations.celery import setup

app = celery.Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": "queue", "data_folder_out": "new", "control_folder": "control", "polling_interval": 0.05
}
dsn = os.environ["GREENPG_DSN"] + " application_name=with_celery"
db = setup(app, dsn, per_task="transaction", max_size=2, shutdown_after=0.5)

@app.task
def insert(number, seconds=0):
    with db.cursor() as cur:
        cur.execute("INSERT INTO with_celery SELECT %s FROM pg_sleep(%s)", (number, seconds))
    if number % 2:
        raise ValueError
""")
sys.path.insert(0, "")

from tasks import insert  # noqa: E402

conn = psycopg2.connect(os.environ["GREENPG_DSN"])
conn.autocommit = True
cursor = conn.cursor()
cursor.execute("CREATE TABLE with_celery (number int)")


def numbers():
    cursor.execute("SELECT number FROM with_celery ORDER BY 1")
    return [number for (number,) in cursor.fetchall()]


def running():
    cursor.execute("SELECT FROM pg_stat_activity WHERE application_name = 'with_celery' AND state = 'active'")
    return cursor.rowcount


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert worker.poll() is None and time.monotonic() < until, output.read_text()
        time.sleep(0.05)


def deliver():
    for message in Path("new").iterdir():  # whole: kombu reads files that are only begun
        message.rename(Path("queue", message.name))


output = Path("output")
command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "gevent", "-c", "20", "-l", "info"]
with output.open("w") as file:
    worker = subprocess.Popen([*command, "--without-mingle", "--without-gossip"], stdout=file, stderr=subprocess.STDOUT)
try:
    for number in range(20):
        insert.delay(number)
    deliver()
    wait_until(lambda: numbers() == list(range(0, 20, 2)) and output.read_text().count("ValueError") >= 10)
    insert.delay(100, 60)
    deliver()
    wait_until(running)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, output.read_text()
    assert "QueryCanceled" in output.read_text(), output.read_text()
    assert running() == 0
finally:
    worker.kill()
    cursor.execute("DROP TABLE with_celery")
