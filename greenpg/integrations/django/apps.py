"""For INSTALLED_APPS: needed only where psycopg 3 is installed as well, see driver.py."""

from django.apps import AppConfig

from .driver import choose_psycopg2

choose_psycopg2()


class GreenpgConfig(AppConfig):
    """It has no models."""

    name = "greenpg.integrations.django"
    label = "greenpg"
    verbose_name = "greenpg"
