"""greenpg is told of threads in a program of greenlets.

finds: wrong_hub
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402

import greenpg  # noqa: E402

greenpg.patch("threads")
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
