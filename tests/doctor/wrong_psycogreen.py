"""psycogreen waits for psycopg2, not greenpg.

finds: other_wait_callback
"""

from gevent import monkey

monkey.patch_all()

from psycogreen.gevent import patch_psycopg  # noqa: E402

patch_psycopg()
