"""SQLAlchemy on greenpg: `create_engine("postgresql+greenpg://user@host/db")`. docs/sqlalchemy.md tells how.

Needs the extra: `pip install greenpg[sqlalchemy]`.
"""

from __future__ import annotations

from .dialect import PGDialect_greenpg
from .keeping import keep_connections
from .pool import GreenpgPool

__all__ = ["GreenpgPool", "PGDialect_greenpg", "keep_connections"]
