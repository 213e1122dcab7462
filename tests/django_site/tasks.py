"""Celery with the site's ORM: the worker's module, and a program that gives it work and prints what comes of it."""

import json
import os
import sys

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_site.settings")
here = os.environ["DJANGO_SITE_BROKER"]
app = Celery("django_site", broker="filesystem://", backend=f"file://{here}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{here}/queue",
        "data_folder_out": f"{here}/queue",
        "control_folder": f"{here}/control",
    },
    broker_connection_retry_on_startup=True,
)
for folder in ("queue", "results"):
    os.makedirs(os.path.join(here, folder), exist_ok=True)


@app.task
def good():
    from django.db import connection, transaction

    from .models import Item

    with transaction.atomic():
        item = Item.objects.create(name="celery")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.05)")
    item.delete()


@app.task
def failed():
    from django.db import transaction

    from .models import Item

    transaction.set_autocommit(False)
    Item.objects.create(name="rolled back")
    raise RuntimeError("a task that fails")


@app.task(time_limit=1)
def late():
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")


@app.task
def statistics():
    from django.db import connection

    return connection.pool.get_stats()


def main():
    tasks = {"good": [good] * 20, "failed": [failed] * 10, "late": [late] * 5}
    results = [(name, task.delay()) for name, kind in tasks.items() for task in kind]
    found = dict.fromkeys(tasks, 0)
    for name, result in results:
        outcome = result.get(timeout=60, propagate=False)
        found[name] += not isinstance(outcome, Exception) if name == "good" else isinstance(outcome, Exception)
    stats = statistics.delay().get(timeout=60)
    json.dump(found | {"size": stats["pool_size"], "available": stats["pool_available"]}, sys.stdout)
