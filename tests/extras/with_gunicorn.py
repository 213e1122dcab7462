"""`pip install 'greenpg[gunicorn]'`: its worker is green before the app is imported, and leaves nothing running."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2

Path("app.py").write_text("""
import os

import psycopg2

import greenpg

assert psycopg2.extensions.get_wait_callback() is not None
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"] + " application_name=with_gunicorn", min_size=1, max_size=10)

def application(environ, start_response):
    body = b"%d" % pool.fetchval("SELECT 42 FROM pg_sleep(%s)", (float(environ["QUERY_STRING"]),))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
""")


def get(url):
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read()


def running(cursor):
    cursor.execute("SELECT FROM pg_stat_activity WHERE application_name = 'with_gunicorn' AND state = 'active'")
    return cursor.rowcount


cursor = psycopg2.connect(os.environ["GREENPG_DSN"]).cursor()
cursor.connection.autocommit = True
output = Path("output")
command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--graceful-timeout", "2"]
command += ["-k", "greenpg.integrations.gunicorn.GreenpgWorker", "app"]
with output.open("w") as file:
    gunicorn = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
try:
    until = time.monotonic() + 60
    while not (address := re.search(r"Listening at: (http://\S+)", output.read_text())):
        assert gunicorn.poll() is None and time.monotonic() < until, output.read_text()
        time.sleep(0.05)
    with ThreadPoolExecutor(10) as clients:
        began = time.monotonic()
        assert set(clients.map(get, [f"{address[1]}?0.5"] * 10)) == {b"42"}
        assert time.monotonic() - began < 4, "one after the other"
        late = clients.submit(get, f"{address[1]}?60")
        while not running(cursor):
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.05)
        gunicorn.send_signal(signal.SIGTERM)
        assert gunicorn.wait(30) == 0, output.read_text()
        assert late.exception() is not None
finally:
    gunicorn.kill()
assert running(cursor) == 0
assert "SIGKILL" not in output.read_text(), output.read_text()
