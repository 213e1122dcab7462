"""Nothing listens where the program connects to.

finds: server_unreachable
"""

import greenpg

greenpg.patch("threads")
pool = greenpg.ConnectionPool("host=127.0.0.1 port=1 user=app dbname=app")
