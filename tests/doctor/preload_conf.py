"""gunicorn's configuration for wrong_preload.py."""

worker_class = "gevent"
preload_app = True


def post_worker_init(worker):
    import greenpg

    greenpg.patch()
