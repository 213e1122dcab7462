"""GeoDjango's engine on greenpg's pools: `"ENGINE": "greenpg.integrations.django_postgis"`.

All else is as with `greenpg.integrations.django`. GDAL and GEOS must be there, as for Django's own PostGIS engine.
"""
