"""gunicorn with greenpg's worker: `gunicorn -c gunicorn_conf.py webapp`, in this folder.

That's gevent's worker, in which psycopg2 is green before the app is imported, with preload_app as well. At SIGTERM
requests have graceful_timeout seconds; what still runs at the server then is cancelled, and the worker exits by itself.
"""

worker_class = "greenpg.integrations.gunicorn.GreenpgWorker"
workers = 1
bind = "127.0.0.1:8000"
graceful_timeout = 30
