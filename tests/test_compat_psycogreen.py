"""psycogreen's README with one import changed."""

import subprocess
import sys

import psycopg2
import pytest

import greenpg

PROGRAM = """
{patch_all}
from greenpg.compat.psycogreen{module} import patch_psycopg
patch_psycopg()
patch_psycopg()

import greenpg, psycopg2
from greenpg.hubs import hub
assert greenpg.is_patched() and hub().name == {hub!r}
conn = psycopg2.connect({dsn!r})
cur = conn.cursor()
cur.execute("SELECT pg_sleep(0.01)")
assert isinstance(conn, greenpg.Connection)
print(hub().name)
"""
MONKEY = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize("hub", ["gevent", "eventlet"])
@pytest.mark.parametrize("named", [True, False])
def test_patch_psycopg(dsn, hub, named):
    program = PROGRAM.format(patch_all=MONKEY[hub], module=f".{hub}" if named else "", hub=hub, dsn=dsn)
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == f"{hub}\n"


def test_another_hub_is_an_error(hub_name):
    from greenpg.compat import psycogreen

    other = psycogreen.eventlet if hub_name == "gevent" else psycogreen.gevent
    with pytest.raises(greenpg.errors.PatchError, match="patched for"):
        other.patch_psycopg()
    psycogreen.patch_psycopg()
    assert psycopg2.extensions.get_wait_callback() is not None
