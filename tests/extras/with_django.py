"""`pip install 'greenpg[django]'`: an engine for Django's settings; the pool is green without another line."""

import os

from gevent import monkey

monkey.patch_all()

import django  # noqa: E402
import gevent  # noqa: E402
from django.conf import settings  # noqa: E402
from psycopg2.extensions import parse_dsn  # noqa: E402

where = parse_dsn(os.environ["GREENPG_DSN"])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "greenpg.integrations.django",
            "NAME": where["dbname"],
            "USER": where.get("user", ""),
            "HOST": where.get("host", ""),
            "PORT": where.get("port", ""),
            "OPTIONS": {"application_name": "with_django", "pool": {"max_size": 2}},
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import Group  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402

call_command("migrate", verbosity=0)
call_command("check", databases=["default"])


def add(number: int) -> int:
    with transaction.atomic():
        Group.objects.create(name=f"group {number}")
        return Group.objects.count()


connection.close()
tasks = [gevent.spawn(add, number) for number in range(20)]  # none of them calls connection.close()
gevent.joinall(tasks, raise_error=True)
assert Group.objects.count() == 20
stats = connection.pool.get_stats()
assert stats["pool_size"] <= 2, stats
