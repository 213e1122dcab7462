"""Native threads.

finds: nothing
"""

import os

import greenpg

greenpg.patch("threads")
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=10)
pool.open()
