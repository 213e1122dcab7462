"""SQLAlchemy on greenpg: `create_engine("postgresql+greenpg://user@host/db")`. docs/sqlalchemy.md tells how.

Needs the extra: `pip install greenpg[sqlalchemy]`.
"""

from __future__ import annotations

from .dialect import PGDialect_greenpg
from .keeping import keep_connections
from .pool import GreenpgPool
from .replicas import ReplicaPool
from .routing import ClusterEngines, ClusterSession, create_cluster_engines

__all__ = [
    "ClusterEngines",
    "ClusterSession",
    "GreenpgPool",
    "PGDialect_greenpg",
    "ReplicaPool",
    "create_cluster_engines",
    "keep_connections",
]
