"""gevent is asked for, but the program's own sockets block.

finds: not_monkey_patched
"""

import os
import warnings

import greenpg

warnings.simplefilter("ignore")  # greenpg.patch() says it, too
greenpg.patch("gevent")
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
