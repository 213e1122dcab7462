"""greenpg.patch(), and then a library that patches psycopg2 again: greenpg's stays.

finds: nothing
"""

from gevent import monkey

monkey.patch_all()

from psycogreen.gevent import patch_psycopg  # noqa: E402

import greenpg  # noqa: E402

greenpg.patch()
patch_psycopg()
