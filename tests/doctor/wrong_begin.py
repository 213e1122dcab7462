"""BEGIN was told not to ride, and that has been forgotten.

finds: begin_separate
"""

import os

os.environ["GREENPG_BEGIN"] = "separate"

import greenpg

greenpg.patch("threads")
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
