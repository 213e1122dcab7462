"""examples/with_flask_sqlalchemy.py with a way to kill the requests that run, wherever they are: for gunicorn."""

import random

import gevent
from flask import g, jsonify
from with_flask_sqlalchemy import app

import greenpg

RUNNING = set()

#: A busy machine may take longer to save a connection than users would wait for.
greenpg.Connection.interruption_grace = 5.0


class Stop(BaseException):
    """Of no class that anybody knows."""


@app.before_request
def note_begin():
    g.greenlet = gevent.getcurrent()
    RUNNING.add(g.greenlet)


@app.teardown_request
def note_end(error):
    RUNNING.discard(g.pop("greenlet", None))


@app.route("/kill")
def kill():
    victims = [greenlet for greenlet in RUNNING if greenlet is not gevent.getcurrent()]
    victims = random.sample(victims, len(victims) // 3)
    RUNNING.difference_update(victims)  # a second exception, while the first one is held back, closes the connection
    for victim in victims:
        victim.kill(random.choice([gevent.GreenletExit, Stop()]), block=False)
    return jsonify(killed=len(victims))
