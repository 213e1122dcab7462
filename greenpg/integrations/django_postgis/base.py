"""The engine: Django loads `DatabaseWrapper` from here."""

from __future__ import annotations

from ..django.driver import choose_psycopg2

choose_psycopg2()

from django.contrib.gis.db.backends.postgis.base import DatabaseWrapper as PostGISWrapper  # noqa: E402

from ..django.replica import ClusteredWrapper  # noqa: E402


class DatabaseWrapper(ClusteredWrapper, PostGISWrapper):  # type: ignore[misc]  # django.contrib.gis is not looked into
    """GeoDjango's PostGIS backend, its connections lent by a pool of greenpg's."""
