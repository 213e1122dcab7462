"""From the environment: DJANGO_SITE_DSN, and as JSON DJANGO_SITE_POOL, ..._OPTIONS, ..._DATABASE, ..._REPLICA."""

import json
import os

from psycopg2.extensions import parse_dsn

where = parse_dsn(os.environ["DJANGO_SITE_DSN"])
SECRET_KEY = "of a site for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_site.urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_site"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
DATABASES = {
    "default": {
        "ENGINE": "greenpg.integrations.django",
        "NAME": where.get("dbname", "postgres"),
        "USER": where.get("user", ""),
        "PASSWORD": where.get("password", ""),
        "HOST": where.get("host", ""),
        "PORT": where.get("port", ""),
        "OPTIONS": {
            "application_name": os.environ.get("DJANGO_SITE_NAME", "django_site"),
            "pool": json.loads(os.environ.get("DJANGO_SITE_POOL", '{"max_size": 10}')),
            **json.loads(os.environ.get("DJANGO_SITE_OPTIONS", "{}")),
        },
        **json.loads(os.environ.get("DJANGO_SITE_DATABASE", "{}")),
    }
}
if "DJANGO_SITE_REPLICA" in os.environ:
    DATABASES["replica"] = json.loads(os.environ["DJANGO_SITE_REPLICA"])
    DATABASE_ROUTERS = ["greenpg.integrations.django.ClusterRouter"]
    MIDDLEWARE = ["greenpg.integrations.django.ReadYourWritesMiddleware"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"django.request": {"level": "CRITICAL"}, "greenpg": {"handlers": ["stderr"], "level": "WARNING"}},
}
