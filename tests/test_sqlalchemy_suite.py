"""The tests that SQLAlchemy has for dialects, which are in its wheel, on `postgresql+greenpg`.

Its whole test tree, which isn't: `make sqlalchemy-suite`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

pytestmark = [pytest.mark.only_hub("gevent"), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def database(admin, dsn):
    with admin.cursor() as cur:
        cur.execute("DROP DATABASE IF EXISTS sqlalchemy_suite")
        cur.execute("CREATE DATABASE sqlalchemy_suite")
    own = make_dsn(dsn, dbname="sqlalchemy_suite")
    import greenpg

    conn = greenpg.connect(own)
    conn.execute("CREATE SCHEMA test_schema")
    conn.commit()
    conn.close()
    yield own
    with admin.cursor() as cur:
        cur.execute("DROP DATABASE sqlalchemy_suite WITH (FORCE)")


def test_dialect_suite(database, hub_name, tmp_path):
    program = ROOT / "tests" / "sqlalchemy_dialect" / "run.py"
    done = subprocess.run(
        [sys.executable, str(program), hub_name, database],
        capture_output=True,
        text=True,
        timeout=580,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed > 1500, done.stdout[-500:]
