"""The same with eventlet.

finds: taken_before_patching
"""

import os
import warnings
from socket import socket
from time import sleep

warnings.simplefilter("ignore")
import eventlet  # noqa: E402

eventlet.monkey_patch()

import greenpg  # noqa: E402

greenpg.patch()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
unpatched = socket, sleep
