"""A module was imported before the monkey-patching, and keeps the blocking socket and sleep.

finds: taken_before_patching
"""

import os
from socket import socket
from time import sleep

from gevent import monkey

monkey.patch_all()

import greenpg  # noqa: E402

greenpg.patch()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
unpatched = socket, sleep
