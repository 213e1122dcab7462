"""GeoDjango's engine, on a PostgreSQL with PostGIS where this machine has one: Debian's, with GDAL."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import psycopg2
import pytest
from kit import wait_until

import greenpg

pytest.importorskip("django")
pytestmark = pytest.mark.only_hub("gevent")

SITE = """
import os
from gevent import monkey
monkey.patch_all()
import greenpg
greenpg.patch()
import gevent
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS=["django.contrib.gis"],
    DATABASES={"default": {
        "ENGINE": "greenpg.integrations.django_postgis", "NAME": "postgres", "USER": "postgres",
        "HOST": os.environ["POSTGIS_HOST"], "OPTIONS": {"pool": {"max_size": 2, "timeout": 10}},
    }},
)
django.setup()
from django.contrib.gis.db import models
from django.contrib.gis.db.models.functions import Distance
from django.contrib.gis.geos import Point
from django.core.management import call_command
from django.db import connection, transaction


class City(models.Model):
    name = models.TextField()
    place = models.PointField(geography=True)

    class Meta:
        app_label = "gis"


call_command("migrate", verbosity=0)  # makes the extension
with connection.schema_editor() as editor:
    editor.create_model(City)
connection.close()


def add(name, x, y):
    with transaction.atomic():
        City.objects.create(name=name, place=Point(x, y))


places = {"Bern": (7.45, 46.95), "Basel": (7.59, 47.56), "Genf": (6.14, 46.20), "Chur": (9.53, 46.85)}
tasks = [gevent.spawn(add, name, *place) for name, place in places.items()]  # which end without close()
gevent.joinall(tasks, raise_error=True)
near = City.objects.annotate(far=Distance("place", Point(7.45, 46.95, srid=4326))).order_by("far")
print([(city.name, round(city.far.km)) for city in near], near[1].place.coords)
stats = connection.pool.get_stats()
print(stats["pool_max"], stats["connections_num"] <= 2)
"""


def installed():
    """The folder with the programs of a PostgreSQL that has PostGIS, or None."""
    for control in Path("/usr/share/postgresql").glob("*/extension/postgis.control"):
        programs = Path("/usr/lib/postgresql", control.parts[4], "bin")
        if (programs / "postgres").exists():
            return programs
    return None


@pytest.fixture(scope="module")
def postgis():
    """The socket's folder of a server with PostGIS."""
    programs = installed()
    if programs is None:
        pytest.skip("needs PostGIS and GDAL: apt-get install postgresql-15-postgis-3 libgdal32")
    from django.contrib.gis.geos.libgeos import geos_version
    from django.core.exceptions import ImproperlyConfigured

    try:
        geos_version()
    except ImproperlyConfigured as error:
        pytest.skip(f"needs GEOS and GDAL: {error}")
    folder = tempfile.mkdtemp(prefix="greenpg-postgis-")
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")
    data = f"{folder}/data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "--no-sync"], check=True, stdout=subprocess.DEVNULL, **user
    )
    command = [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    with open(f"{folder}/log", "w") as log:
        server = subprocess.Popen(command, stderr=log, **user)
    try:
        wait_until(lambda: answers(folder), timeout=30)
        yield folder
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def answers(folder):
    try:
        greenpg.connect(host=folder, user="postgres", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


def test_distances(postgis):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SITE)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "POSTGIS_HOST": postgis},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cities = "[('Bern', 0), ('Basel', 69), ('Genf', 131), ('Chur', 159)] (7.59, 47.56)"
    assert done.stdout.splitlines() == [cities, "2 True"]
