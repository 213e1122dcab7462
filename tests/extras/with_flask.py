"""`pip install 'greenpg[flask]'`: each request is one transaction; `flask greenpg doctor`."""

import os
import subprocess
import sys
from pathlib import Path

from gevent import monkey

monkey.patch_all()

import greenpg  # noqa: E402

greenpg.patch()

Path("app.py").write_text("""
import os

import flask

from greenpg.integrations.flask import Greenpg

app = flask.Flask(__name__)
db = Greenpg(app, os.environ["GREENPG_DSN"], per_request="transaction", max_size=2)

@app.get("/<int:number>")
def insert(number):
    with db.cursor() as cur:
        cur.execute("INSERT INTO with_flask VALUES (%s)", (number,))
    if number % 2:
        flask.abort(404)
    return "done"
""")
sys.path.insert(0, "")

import gevent  # noqa: E402
from app import app, db  # noqa: E402

db.pool.execute("CREATE TABLE with_flask (number int)")
try:
    requests = [gevent.spawn(app.test_client().get, f"/{number}") for number in range(20)]
    gevent.joinall(requests, raise_error=True)
    assert [request.value.status_code for request in requests] == [200, 404] * 10
    assert db.pool.fetchall("SELECT number FROM with_flask ORDER BY 1") == [(number,) for number in range(0, 20, 2)]
    assert db.pool.get_stats()["pool_size"] <= 2
finally:
    db.pool.execute("DROP TABLE with_flask")
    greenpg.shutdown()

command = [sys.executable, "-m", "flask", "--app", "app", "greenpg", "doctor"]
done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60)
assert done.returncode == 0 and "pools: default (2 to 2)" in done.stdout, done
