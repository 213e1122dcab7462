"""A Django site under gunicorn with one gevent worker: greenpg's engine, django-db-geventpool, and no pool.

    python benchmarks/django_web.py [DSN] [--rounds 5] [--peers greenpg,django-db-geventpool] [--quick]

Creates the tables `world` and `fortune` in the database, if they aren't there.
"""

import http.client
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from harness import Bars, Benchmark, Latencies
from web import with_tables
from web_app import POOL_SIZE, Site, serve
from web_load import WRK, load, load_by_wrk

ENGINES = {
    "greenpg": {"ENGINE": "greenpg.integrations.django", "OPTIONS": {"pool": {"max_size": POOL_SIZE}}},
    "django-db-geventpool": {
        "ENGINE": "django_db_geventpool.backends.postgresql_psycopg2",
        "OPTIONS": {"MAX_CONNS": POOL_SIZE, "REUSE_CONNS": POOL_SIZE},
    },
    "django-psycogreen": {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {}},
}
ENDPOINTS = ["/read", "/atomic"]
NAME = "django_web"
CONNECTIONS, AT_ONCE, KILLED = 64, 200, 20
WARM_UP_SECONDS = 0.3


# -- in gunicorn's process


def load_app(peer):
    """The site, in one function; psycopg 3 is out of its sight, so that all have psycopg2."""
    import os

    sys.modules["psycopg"] = None
    if peer != "greenpg":  # greenpg's engine does so by itself
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
    import django
    import gevent
    from django.conf import settings
    from psycopg2.extensions import parse_dsn

    where = parse_dsn(os.environ["GREENPG_DSN"])
    database = {name.upper(): where.get(name, "") for name in ("user", "password", "host", "port")}
    engine = ENGINES[peer]
    options = engine["OPTIONS"] | {"application_name": NAME}
    database |= {"NAME": where.get("dbname", ""), "CONN_MAX_AGE": 0} | engine | {"OPTIONS": options}
    settings.configure(
        DATABASES={"default": database}, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", USE_TZ=True
    )
    django.setup()
    from django.core.wsgi import get_wsgi_application
    from django.db import connection, models, transaction
    from django.http import HttpResponse
    from django.urls import path

    class World(models.Model):
        randomnumber = models.IntegerField()

        class Meta:
            app_label, db_table, managed = NAME, "world", False

    def answer(text):
        return HttpResponse(text, headers={"Content-Length": str(len(text))})

    def read(request):
        return answer(str(World.objects.get(pk=1).randomnumber))

    def atomic(request):
        with transaction.atomic():
            numbers = World.objects.get(pk=1).randomnumber, World.objects.get(pk=2).randomnumber
        return answer(str(numbers))

    def killed(request):
        gevent.spawn_later(0.05, gevent.getcurrent().kill, block=False)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(5)")

    globals()["urlpatterns"] = [path(view.__name__, view) for view in (read, atomic, killed)]
    return get_wsgi_application()


# -- in the peer's process


def ask(site, path, timeout):
    """The seconds until the answer, None if there was no good one."""
    started = time.monotonic()
    connection = http.client.HTTPConnection(site.host, site.port, timeout=timeout)
    try:
        connection.request("GET", path)
        return time.monotonic() - started if connection.getresponse().status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Watch:
    """The most connections of the site's that the server has at any moment."""

    def __init__(self, dsn):
        import psycopg2

        self.most, self._is_over = 0, threading.Event()
        self._conn = psycopg2.connect(dsn)
        self._conn.autocommit = True
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        with self._conn.cursor() as cursor:
            while not self._is_over.wait(0.005):
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (NAME,))
                self.most = max(self.most, cursor.fetchone()[0])

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._is_over.set()
        self._thread.join()
        self._conn.close()


def at_once(site, path, count, timeout):
    with ThreadPoolExecutor(count) as clients:
        answers = sorted(clients.map(lambda _: ask(site, path, timeout) or float("inf"), range(count)))
    good = [seconds for seconds in answers if seconds != float("inf")]
    found = {"failed": count - len(good)}
    if good:
        found["p99_ms"] = good[len(good) * 99 // 100] * 1e3
    return found


def measure(name, dsn, sizes):
    with Site(name, dsn, __file__) as site, Watch(dsn) as watch:
        found = {"200 at once, at the start": at_once(site, "/read", AT_ONCE, 20)}
        found["200 at once, at the start"]["connections_opened"] = watch.most
    with Site(name, dsn, __file__) as site:
        for path in ENDPOINTS:
            asked = (site.host, site.port, path, CONNECTIONS)
            load(*asked, WARM_UP_SECONDS)
            cpu_seconds = site.worker_cpu_seconds()
            done = (load_by_wrk if WRK else load)(*asked, sizes["seconds"])
            cpu_seconds = site.worker_cpu_seconds() - cpu_seconds
            found[path] = {
                "requests_per_second": done.count / done.seconds,
                "request_cpu_us": cpu_seconds / done.count * 1e6,
                "p50_ms": done.p50_ms,
                "p99_ms": done.p99_ms,
                "max_ms": done.max_ms,
            }
        at_once(site, "/killed", KILLED, 10)
        found[f"after {KILLED} killed requests"] = at_once(site, "/read", POOL_SIZE, 5)
    return found


BENCHMARK = Benchmark(
    __file__,
    title="A Django site under gunicorn",
    description=(
        f"One query, and two in atomic(), on pools of {POOL_SIZE}; gunicorn with one gevent worker, asked by "
        f"{CONNECTIONS} keep-alive connections of another process. And {AT_ONCE} requests at once on a worker that "
        f"has just started, and {POOL_SIZE} requests after {KILLED} others were killed in a query of 5 s; one without "
        "an answer for 5 s has failed. Without a pool each request connects."
    ),
    peers={name: partial(measure, name) for name in ENGINES},
    sizes={"seconds": 2},
    quick_sizes={"seconds": 1},
    needs=["gunicorn", "django"],
    target=with_tables,
    pictures=[
        Bars("speed", "requests_per_second", ENDPOINTS, "A Django site under gunicorn, one worker"),
        Latencies("latency", ENDPOINTS, f"A Django site under gunicorn, {CONNECTIONS} connections"),
    ],
)

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].isdigit():
        serve(sys.argv[1], int(sys.argv[2]), load_app)
    else:
        sys.exit(BENCHMARK.main())
