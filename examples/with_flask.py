"""A Flask app with a pool: each request is one transaction, of which a failed request leaves nothing.

Needs greenpg[flask,gunicorn], and a PostgreSQL in GREENPG_DSN. In this folder:

    flask --app with_flask create-table
    gunicorn -k greenpg.integrations.gunicorn.GreenpgWorker with_flask:app
    curl 'localhost:8000/?seconds=0.5'

`flask --app with_flask greenpg doctor` says what is wrong with how the database is set up.
"""

import os

import flask

from greenpg.integrations.flask import Greenpg

app = flask.Flask(__name__)
db = Greenpg(app, os.environ["GREENPG_DSN"], per_request="transaction", max_size=10)


@app.cli.command("create-table")
def create_table():
    db.pool.execute("CREATE TABLE IF NOT EXISTS flask_visitor (at timestamptz DEFAULT now())")


@app.get("/")
def visit():
    seconds = flask.request.args.get("seconds", 0.02, type=float)
    with db.cursor() as cur:
        cur.execute("INSERT INTO flask_visitor SELECT FROM pg_sleep(%s)", (seconds,))
    return "welcome"


@app.get("/refused")
def refuse():
    with db.cursor() as cur:
        cur.execute("INSERT INTO flask_visitor DEFAULT VALUES")
    flask.abort(403)  # and the visitor isn't noted


@app.get("/count")
def count():
    with db.cursor() as cur:
        cur.execute("SELECT count(*) FROM flask_visitor")
        return {"visitors": cur.fetchone()[0]}
