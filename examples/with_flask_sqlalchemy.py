"""A Flask-SQLAlchemy app under gunicorn's gevent worker.

    cd examples
    export DATABASE_URL=postgresql+greenpg://user@host/database
    flask --app with_flask_sqlalchemy create-tables
    gunicorn -c gunicorn_conf.py with_flask_sqlalchemy:app

Needs `pip install 'greenpg[sqlalchemy]' flask-sqlalchemy 'gunicorn[gevent]'`. Nothing in it is greenpg's but the
URL: gunicorn_conf.py patches in the worker. A request that takes too long is given up, and its connection goes on.
"""

import os

import gevent
from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import func, select, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REQUEST_TIMEOUT = 5.0


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = "flask_visit"
    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str]


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 10, "max_overflow": 0, "pool_timeout": 10}
db = SQLAlchemy(app, model_class=Base)


@app.cli.command("create-tables")
def create_tables():
    Base.metadata.create_all(db.engine)


@app.route("/visit")
def visit():
    """One transaction, two round trips: the visit is there when the answer is sent."""
    db.session.add(Visit(path=request.args.get("path", "/")))
    db.session.commit()
    return jsonify(count=db.session.scalar(select(func.count()).select_from(Visit)))


@app.route("/slow")
def slow():
    seconds = float(request.args.get("seconds", 1))
    limit = float(request.args.get("limit", REQUEST_TIMEOUT))
    try:
        with gevent.Timeout(limit):
            db.session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
    except gevent.Timeout:
        db.session.rollback()  # the statement has been cancelled, the connection is as good as before
        return jsonify(error=f"longer than {limit:g} s"), 504
    return jsonify(slept=seconds)


@app.route("/pool")
def pool():
    return jsonify(status=db.engine.pool.status(), stats=db.engine.pool.stats())


@app.errorhandler(PoolTimeout)
def too_busy(error):
    return jsonify(error="too busy"), 503
