"""examples/with_uwsgi.py in a program that has hooks of its own."""

import uwsgi

uwsgi.post_fork_hook = lambda: print("the app's post_fork", flush=True)
uwsgi.atexit = lambda: print("the app's atexit", flush=True)

from with_uwsgi import application  # noqa: E402, F401
