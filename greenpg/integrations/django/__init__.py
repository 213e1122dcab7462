"""Django's PostgreSQL backend on psycopg2, with a pool of greenpg's: `"ENGINE": "greenpg.integrations.django"`.

docs/django.md is the guide. Like any backend's package it may be imported before the settings are there.
"""

from .repeating import run_in_transaction

__all__ = ["run_in_transaction"]
