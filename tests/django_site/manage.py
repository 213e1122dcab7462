"""Django's commands, green or not: DJANGO_SITE_GREEN."""

import os
import sys

if os.environ.get("DJANGO_SITE_GREEN"):
    from gevent import monkey

    monkey.patch_all()

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_site.settings")
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    execute_from_command_line(sys.argv)
