"""A program on gevent, with a module that patches for eventlet.

finds: app_fails two_loops
"""

import os
import warnings

warnings.simplefilter("ignore")

import eventlet  # noqa: E402

eventlet.monkey_patch()

from gevent import monkey  # noqa: E402

monkey.patch_all()

import greenpg  # noqa: E402

greenpg.patch()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
