"""`pip install 'greenpg[embedded]'`: a PostgreSQL of one's own, and the benchmark on one."""

import subprocess
import sys
from pathlib import Path

from greenpg import ConnectionPool, embedded

with embedded.server() as dsn, ConnectionPool(dsn) as pool:
    assert pool.fetchval("SELECT current_setting('server_version_num')::int") >= 180000
    directory = pool.fetchval("SHOW data_directory")
assert not Path(directory).exists()

greenpg = Path(sys.executable).with_name("greenpg")
done = subprocess.run(
    [greenpg, "bench", "--rounds", "1", "--peers", "greenpg"], capture_output=True, text=True, timeout=120, check=False
)
assert done.returncode == 0, done.stderr
assert "| **greenpg** |" in done.stdout
