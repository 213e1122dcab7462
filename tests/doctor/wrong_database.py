"""The server is there, the database isn't.

finds: server_refuses
says: "shop" does not exist
"""

import os

import greenpg

greenpg.patch("threads")
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"], kwargs={"dbname": "shop"})
