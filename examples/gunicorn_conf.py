"""gunicorn with the gevent worker and greenpg: `gunicorn -c gunicorn_conf.py webapp`, in this folder."""

from gevent import monkey

import greenpg

worker_class = "gevent"
workers = 1
bind = "127.0.0.1:8000"


def post_fork(server, worker):
    # greenpg.patch() belongs after gevent's monkey patching, for it looks at what is patched, and before the import of
    # the app, which may connect or make a pool. gunicorn has no hook between the two: it calls post_fork, then patches,
    # imports the app, and calls post_worker_init. So the patching is done here, and gunicorn's own finds nothing left
    # to do. (With `preload_app` the app is imported before the fork: then both calls belong at the top of this file.)
    monkey.patch_all()
    greenpg.patch()
