"""Django's PostgreSQL backend on psycopg2, with a pool of greenpg's: `"ENGINE": "greenpg.integrations.django"`.

docs/django.md is the guide. Like any backend's package it may be imported before the settings are there.
"""

from .clusters import get_cluster
from .middleware import ReadYourWritesMiddleware
from .pinning import use_primary
from .repeating import run_in_transaction
from .routers import ClusterRouter

__all__ = ["ClusterRouter", "ReadYourWritesMiddleware", "get_cluster", "run_in_transaction", "use_primary"]
