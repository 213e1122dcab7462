"""`pip install 'greenpg[prometheus]'`: a pool's numbers, as Prometheus reads them."""

import os

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import greenpg
from greenpg.integrations.prometheus import Collector

greenpg.patch("threads")
with greenpg.ConnectionPool(os.environ["GREENPG_DSN"], min_size=1, max_size=3, name="shop") as pool:
    Collector(pool, statements=True)
    assert pool.fetchval("SELECT 42") == 42
    families = {family.name: family for family in text_string_to_metric_families(generate_latest().decode())}
assert families["greenpg_pool_max_size"].samples[0].value == 3
assert families["greenpg_pool_requests"].samples[0].labels == {"pool": "shop"}
assert families["greenpg_pool_statement_seconds"].type == "histogram"
