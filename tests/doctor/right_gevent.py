"""gevent as it should be.

finds: nothing
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
from socket import socket  # noqa: E402, F401

import greenpg  # noqa: E402

greenpg.patch()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=10)
