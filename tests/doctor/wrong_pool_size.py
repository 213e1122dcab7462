"""Eight workers of 20 connections each, on a server that has room for fewer.

options: --workers 8
finds: too_many_connections
says: 8 workers with 20
"""

import os

import greenpg

greenpg.patch("threads")
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=20)
