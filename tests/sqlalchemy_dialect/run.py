"""`sqlalchemy.testing.suite`, the tests that SQLAlchemy has for dialects, on `postgresql+greenpg` under a hub.

    python tests/sqlalchemy_dialect/run.py HUB DSN [pytest's arguments]

A process of its own, since SQLAlchemy's pytest plugin takes over the whole session. See tests/test_sqlalchemy_suite.py.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(hub, dsn, *arguments):
    if hub == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif hub == "eventlet":
        import eventlet

        eventlet.monkey_patch()
    import greenpg

    greenpg.patch(hub)
    import psycopg2.extensions
    import pytest
    from sqlalchemy.dialects.postgresql import provision

    from greenpg.integrations.sqlalchemy import PGDialect_greenpg

    # The embedded server has no contrib modules.
    provision._extensions.clear()
    # Some tests look at a private attribute of the driver that is named.
    PGDialect_greenpg.driver = "psycopg2"
    os.chdir(HERE)
    sys.path.insert(0, str(HERE))
    where = psycopg2.extensions.parse_dsn(dsn)
    url = f"postgresql+greenpg://{where['user']}@/{where['dbname']}?host={where['host']}&port={where['port']}"
    options = ["-c", "setup.cfg", "--rootdir", ".", "-p", "plugin", "-p", "no:cacheprovider", "-q", "--timeout=120"]
    return pytest.main([*options, "--dburi", url, "suite.py", *arguments])


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(int(status))
