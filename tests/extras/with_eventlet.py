"""`pip install 'greenpg[eventlet]'`: greenpg on eventlet's hub."""

import os

import eventlet

eventlet.monkey_patch()

import greenpg  # noqa: E402

greenpg.patch()
assert greenpg.hubs.hub().name == "eventlet"
with greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=2) as pool:
    tasks = [eventlet.spawn(pool.fetchval, "SELECT %s + 1", (number,)) for number in range(10)]
    assert [task.wait() for task in tasks] == list(range(1, 11))
