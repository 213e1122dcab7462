"""`pip install 'greenpg[otel]'`: the API alone; the SDK is the program's choice, and without one nothing happens."""

import os

import greenpg
from greenpg.integrations.otel import instrument

greenpg.patch("threads")
with greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=3, name="shop") as pool:
    instrumentation = instrument(pool)
    assert pool.fetchval("SELECT 42") == 42
    instrumentation.uninstrument()
    assert pool.fetchval("SELECT 42") == 42
