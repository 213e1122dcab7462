"""Threads stay native: whoever takes a lock stops the loop.

finds: partly_patched
"""

from gevent import monkey

monkey.patch_all(thread=False)

import os  # noqa: E402

import greenpg  # noqa: E402

greenpg.patch()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
