"""The site's settings. All that is greenpg's is in DATABASES."""

import os

from psycopg2.extensions import parse_dsn

where = parse_dsn(os.environ.get("GREENPG_DSN", "dbname=postgres"))

SECRET_KEY = os.environ.get("SECRET_KEY", "of an example")
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "notes.urls"
INSTALLED_APPS = ["notes"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
STATIC_URL = "static/"

DATABASES = {
    "default": {
        "ENGINE": "greenpg.integrations.django",
        "NAME": where["dbname"],
        "USER": where.get("user", ""),
        "PASSWORD": where.get("password", ""),
        "HOST": where.get("host", ""),
        "PORT": where.get("port", ""),
        "OPTIONS": {"pool": {"max_size": 10, "timeout": 5}},
    }
}
