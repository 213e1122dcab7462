"""Django on a cluster: an alias for the replicas, the router, and requests that read what those before have written."""

from __future__ import annotations

import pytest
from cluster import Pair, ask
from django_kit import execute, set_up
from kit import Killed, Task, run_all, wait_until
from proxy import Proxy

pytest.importorskip("django")
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished, request_started
from django.db import InternalError, OperationalError, close_old_connections, connections, router, transaction
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from greenpg.hubs import hub
from greenpg.integrations.django import ClusterRouter, ReadYourWritesMiddleware, get_cluster, use_primary
from greenpg.integrations.django.pools import close_pools

on_one_hub = pytest.mark.only_hub("gevent")
PORT = "SELECT inet_server_port()"


class Router(ClusterRouter):
    primary = "main"


class Middleware(ReadYourWritesMiddleware):
    using = "main"


@pytest.fixture(scope="module")
def pair():
    with Pair() as pair:
        yield pair


@pytest.fixture
def make_aliases(dsn):
    """Makes "main" and "copies", which lead to a cluster; the router is in force."""
    set_up(dsn)
    made = []

    def make(where, *, cluster=None, pool=None, replica_pool=None, **settings):
        from psycopg2.extensions import parse_dsn

        where = parse_dsn(where)
        default = connections.settings["default"]
        nothing = {"NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": ""}
        test = {**default["TEST"], "MIRROR": None}
        connections.settings["main"] = {
            **default,
            "HOST": where["host"],
            "PORT": where["port"],
            "NAME": where["dbname"],
            "USER": where["user"],
            "TEST": dict(test),
            "OPTIONS": {
                "application_name": "django-cluster",
                "pool": {"max_size": 3, "timeout": 5} if pool is None else pool,
            },
            **settings,
        }
        replicas = {"replica_of": "main", "cluster": {"interval": 0.05} if cluster is None else cluster}
        if replica_pool is not None:
            replicas["pool"] = replica_pool
        connections.settings["copies"] = {**default, **nothing, "TEST": dict(test), "OPTIONS": replicas}
        made.append(None)

    with override_settings(DATABASE_ROUTERS=[f"{__name__}.Router"]):
        yield make
    close_all()
    if made:
        cores = [core for cluster in clusters() for core in cores_of(cluster)]
        wait_until(lambda: not any(core.ledger.lent_count for core in cores))
        close_pools(lambda key, _: key[0] == "main")
        wait_until(lambda: not any(core.ledger.slots for core in cores))  # else a slot is lost
        for alias in ("main", "copies"):
            try:
                del connections[alias]
            except AttributeError:
                pass
            connections.settings.pop(alias)


def clusters():
    from greenpg.integrations.django.clusters import _clusters

    return list(_clusters.values())


def cores_of(cluster):
    return [pool._core for pool in (cluster.primary, *(node.pool for node in cluster._topology.nodes))]


def close_all():
    for alias in ("main", "copies"):
        if alias in connections.settings:
            connections[alias].close()


@pytest.fixture
def aliases(make_aliases, pair):
    make_aliases(pair.dsn())
    make_table(pair)


def make_table(pair):
    from django_site.models import Item

    if ask(pair.primary, "SELECT to_regclass('django_site_item')") == (None,):
        with connections["main"].schema_editor() as editor:
            editor.create_model(Item)
        connections["main"].close()
    wait_until(lambda: ask(pair.replica, "SELECT to_regclass('django_site_item')") != (None,))
    cluster = get_cluster("main")
    cluster.open(wait=True)
    cluster.token = None


@pytest.fixture
def items(aliases):
    from django_site.models import Item

    return Item.objects


def port_of_reads():
    """Where what the ORM reads comes from."""
    from django.db.models import IntegerField
    from django.db.models.expressions import RawSQL
    from django_site.models import Item

    rows = Item.objects.annotate(port=RawSQL("inet_server_port()", (), IntegerField())).values_list("port", flat=True)
    if not rows.exists():
        Item.objects.create(name="for its port")
        get_cluster("main").token = None
        wait_until(rows.exists)
    return rows[0]


# -- who serves what


def test_writes_go_to_the_primary_and_reads_to_a_replica(items, pair):
    assert execute("main", PORT) == pair.primary.port
    assert execute("copies", PORT) == pair.replica.port
    get_cluster("main").token = None
    assert port_of_reads() == pair.replica.port
    assert (router.db_for_read(items.model), router.db_for_write(items.model)) == ("copies", "main")
    with pytest.raises(InternalError, match="read-only"):
        execute("copies", "DELETE FROM django_site_item RETURNING id")


def test_other_databases_are_others_business(items):
    elsewhere = items.model(name="elsewhere")
    elsewhere._state.db = "default"
    ours = items.model(name="ours")
    ours._state.db = "copies"
    assert Router().db_for_read(items.model, instance=elsewhere) is None
    assert Router().db_for_write(items.model, instance=elsewhere) is None
    assert Router().db_for_write(items.model, instance=ours) == "main"
    assert Router().allow_relation(ours, items.model()) is True
    assert Router().allow_relation(ours, elsewhere) is None
    assert Router().allow_migrate("copies", "django_site") is False
    assert Router().allow_migrate("main", "django_site") is None


def test_without_replicas_the_router_is_harmless(make_aliases, pair):
    make_aliases(pair.dsn())
    connections.settings["copies"]["OPTIONS"].pop("replica_of")
    assert Router().db_for_read(object) == Router().db_for_write(object) == "main"
    with pytest.raises(ImproperlyConfigured, match=r'no alias of DATABASES has OPTIONS\["replica_of"\] = \'main\''):
        get_cluster("main")


def test_a_transaction_reads_on_the_primary(items, pair):
    with transaction.atomic(using="main"):
        assert port_of_reads() == pair.primary.port
        item = items.create(name="not yet")
        assert items.get(pk=item.pk).name == "not yet"
        assert items.using("copies").get(pk=item.pk).name == "not yet", "refresh_from_db() names an alias, too"
        assert connections["copies"].connection is None
    get_cluster("main").token = None
    assert port_of_reads() == pair.replica.port
    with transaction.atomic(using="copies"):
        assert port_of_reads() == execute("copies", PORT) == pair.replica.port


def test_use_primary(items, pair):
    port_of_reads()
    with use_primary():
        assert port_of_reads() == execute("copies", PORT) == pair.primary.port

    @use_primary()
    def view():
        return port_of_reads()

    assert view() == pair.primary.port
    get_cluster("main").token = None
    assert port_of_reads() == pair.replica.port


def test_select_for_update_and_get_or_create_go_to_the_primary(items, pair):
    with transaction.atomic(using="main"):
        item, _ = items.get_or_create(name="once")
    assert items.get_or_create(name="once") == (item, False)
    wait_until(lambda: items.using("copies").filter(pk=item.pk).exists())
    loaded = items.using("copies").get(pk=item.pk)
    loaded.name = "twice"
    loaded.save()
    assert loaded._state.db == "main"
    loaded.delete()


# -- reading what was written


@pytest.mark.parametrize("way", ["save", "atomic", "update", "bulk", "raw", "copy"])
def test_who_has_written_reads_it(items, pair, paused, way):
    item = items.create(name="old")
    wait_until(lambda: port_of_reads() == pair.replica.port)
    read_before = items.get(pk=item.pk)
    assert read_before._state.db == "copies"
    assert connections["copies"].connection is not None
    paused.pause_replay()
    name = f"new by {way}"
    if way == "save":
        item.name = name
        item.save()
    elif way == "atomic":
        with transaction.atomic(using="main"):
            items.filter(pk=item.pk).update(name=name)
    elif way == "update":
        items.filter(pk=item.pk).update(name=name)
    elif way == "bulk":
        item.name = name
        items.bulk_update([item], ["name"])
    else:
        with connections["main"].cursor() as cursor:
            if way == "raw":
                cursor.execute("UPDATE django_site_item SET name = %s WHERE id = %s", [name, item.pk])
            else:
                cursor.execute("DELETE FROM django_site_item WHERE id = %s", [item.pk])
                get_cluster("main").token = None
                with cursor.copy("COPY django_site_item (id, name, data, made) FROM STDIN") as copy:
                    copy.write_row((item.pk, name, "{}", "2026-01-01"))
    assert items.get(pk=item.pk).name == name
    read_before.refresh_from_db()
    assert read_before.name == name
    assert execute("copies", "SELECT name FROM django_site_item WHERE id = %s", item.pk) == name
    assert [found.name for found in items.filter(pk=item.pk).iterator()] == [name]
    assert port_of_reads() == pair.primary.port
    # The task's next request, and others, haven't.
    close_all()
    request_started.send(sender=None)
    assert port_of_reads() == pair.replica.port
    close_all()


def test_leases_of_the_primary(make_aliases, pair, paused):
    from django_site.models import Item

    make_aliases(pair.dsn(), pool={"max_size": 3, "timeout": 5, "lease": "transaction"})
    make_table(pair)
    pk = Item.objects.create(name="before").pk
    wait_until(lambda: port_of_reads() == pair.replica.port)
    paused.pause_replay()
    Item.objects.filter(pk=pk).update(name="in autocommit")
    assert Item.objects.get(pk=pk).name == "in autocommit"
    get_cluster("main").token = None
    with transaction.atomic(using="main"):
        Item.objects.filter(pk=pk).update(name="in a transaction")
    assert Item.objects.get(pk=pk).name == "in a transaction"


def test_a_task_that_lives_long_comes_back_to_the_replica(items, pair, paused):
    port_of_reads()
    paused.pause_replay()
    items.create(name="long")
    assert port_of_reads() == pair.primary.port
    paused.resume_replay()
    wait_until(lambda: port_of_reads() == pair.replica.port)


class Site:
    """A site of two views behind the middleware, and a client of it. Each request has a task of its own."""

    def __init__(self, items):
        self._items = items
        self.cookies = {}

    def _view(self, request):
        if request.method == "POST":
            pk, name = request.POST["pk"], request.POST["name"]
            if request.POST.get("atomic"):
                with transaction.atomic(using="main"):
                    self._items.update_or_create(pk=pk, defaults={"name": name})
            else:
                self._items.filter(pk=pk).update(name=name)
            return HttpResponse("written")
        return HttpResponse(self._items.filter(pk=request.GET["pk"]).values_list("name", flat=True).first())

    def _request(self, method, data):
        request = getattr(RequestFactory(), method)("/", data)
        request.COOKIES = dict(self.cookies)

        def handle():
            request_started.send(sender=None)
            try:
                return Middleware(self._view)(request)
            finally:
                close_all()

        response = Task(handle).result()
        self.cookies.update({name: morsel.value for name, morsel in response.cookies.items()})
        return response

    def post(self, **data):
        return self._request("post", data)

    def get(self, pk):
        return self._request("get", {"pk": pk}).content.decode()


@pytest.mark.parametrize("atomic", ["", "1"], ids=["autocommit", "atomic"])
def test_the_next_request_reads_what_this_one_has_written(items, pair, paused, atomic):
    pk = items.create(name="before").pk
    wait_until(lambda: port_of_reads() == pair.replica.port)
    close_all()
    mine, others = Site(items), Site(items)
    assert mine.get(pk) == "before"
    assert mine.cookies == {}, "nothing was written"
    paused.pause_replay()
    response = mine.post(pk=pk, name="after", atomic=atomic)
    cookie = response.cookies["greenpg_written"]
    assert (cookie["max-age"], cookie["httponly"], cookie["samesite"]) == (70, True, "Lax")
    assert mine.get(pk) == "after"
    assert mine.get(pk) == "after"
    assert others.get(pk) == "before"
    assert others.cookies == {}
    others.cookies["greenpg_written"] = mine.cookies["greenpg_written"][:-1] + "x"  # forged
    assert others.get(pk) == "before"
    paused.resume_replay()
    wait_until(lambda: others.get(pk) == "after")
    assert mine.get(pk) == "after"


def test_requests_that_read_on_the_primary_set_no_cookie(items, make_aliases, pair):
    """For want of a replica."""
    pk = items.create(name="alone").pk
    close_all()
    make_aliases(pair.primary.tcp_dsn)
    site = Site(items)
    assert site.get(pk) == "alone"
    assert site.cookies == {}


def test_reads_after_writes_with_a_replica_that_lags(items, pair):
    ask(pair.replica, "ALTER SYSTEM SET recovery_min_apply_delay = '40ms'")
    ask(pair.replica, "SELECT pg_reload_conf()")
    pks = [items.create(name="").pk for _ in range(10)]
    counts = {"stale": 0, "stale without cookie": 0}
    close_all()

    def work(pk):
        site = Site(items)
        for n in range(30):
            site.post(pk=pk, name=str(n), atomic="1" if n % 2 else "")
            counts["stale without cookie"] += Site(items).get(pk) != str(n)
            hub().sleep(0.02 * (n % 4))
            counts["stale"] += site.get(pk) != str(n)

    run_all([lambda pk=pk: work(pk) for pk in pks], timeout=60)
    ask(pair.replica, "ALTER SYSTEM RESET recovery_min_apply_delay")
    ask(pair.replica, "SELECT pg_reload_conf()")
    assert counts["stale"] == 0
    assert counts["stale without cookie"] > 0, "the replica doesn't lag: this shows nothing"


# -- replicas that are down, kills, a failover


def test_without_a_replica_the_primarys_connection_is_used(make_aliases, pair):
    """The pool has no other one."""
    with Proxy("127.0.0.1", pair.primary.port) as primary, Proxy("127.0.0.1", pair.replica.port) as replica:
        make_aliases(pair.dsn(through=[primary, replica]), pool={"max_size": 1, "timeout": 2})
        make_table(pair)
        assert port_of_reads() == pair.replica.port
        close_all()
        replica.refuse()
        replica.cut()
        hub().sleep(0.02)  # the proxy is another process
        assert port_of_reads() == pair.primary.port
        assert execute("main", PORT) == execute("copies", PORT) == pair.primary.port
        close_all()
        replica.accept()
        wait_until(lambda: get_cluster("main").nodes[1]["in_rotation"])
        get_cluster("main").token = None
        assert port_of_reads() == pair.replica.port


@on_one_hub
def test_kills(items, pair):
    pk = items.create(name="0").pk
    close_all()

    def work():
        try:
            items.filter(pk=pk).first()
            with transaction.atomic(using="main"):
                items.filter(pk=pk).update(name="1")
            items.filter(pk=pk).first()
            items.filter(pk=pk).update(name="2")
            items.filter(pk=pk).first()
        finally:
            close_all()

    outcomes = set()
    for number in range(100):
        task = Task(work)
        hub().sleep(0.0001 * number)
        task.throw(Killed())
        task.join()
        outcomes.add(type(task.error))
    assert Killed in outcomes and outcomes <= {Killed, type(None)}
    cluster = get_cluster("main")
    wait_until(lambda: not any(core.ledger.lent_count for core in cores_of(cluster)))


@on_one_hub
def test_failover(make_aliases):
    from django_site.models import Item

    with Pair() as pair:
        make_aliases(pair.dsn())
        make_table(pair)
        pk = Item.objects.create(name="before").pk
        wait_until(lambda: port_of_reads() == pair.replica.port)
        close_all()
        pair.primary.stop("immediate")
        pair.promote()

        def write():
            try:
                with transaction.atomic(using="main"):
                    Item.objects.filter(pk=pk).update(name="after")
            except OperationalError:
                return False
            finally:
                close_all()
            return True

        wait_until(write, timeout=20)
        assert Item.objects.get(pk=pk).name == "after"
        assert port_of_reads() == pair.replica.port
        close_all()
        close_pools(lambda key, _: key[0] == "main")


# -- settings


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"cluster": {"lag": 1}}, r"has 'lag'; it may have fallback, interval, max_lag, strategy"),
        ({"cluster": {"max_lag": -1}}, r"max_lag can't be negative"),
        ({"replica_pool": False}, "can't be without a pool"),
        ({"pool": False}, "so it can't be without a pool"),
    ],
)
def test_settings_that_make_no_sense(make_aliases, pair, settings, what):
    make_aliases(pair.dsn(), **settings)
    with pytest.raises(ImproperlyConfigured, match=what):
        execute("copies", PORT)


def test_aliases_that_make_no_sense(make_aliases, pair):
    make_aliases(pair.dsn())
    connections.settings["copies"]["OPTIONS"]["replica_of"] = "nowhere"
    with pytest.raises(ImproperlyConfigured, match="must be the alias of its primary, not 'nowhere'"):
        connections["copies"]  # makes it
    connections.settings["copies"]["OPTIONS"]["replica_of"] = "main"
    connections.settings["more"] = connections.settings["copies"]
    try:
        with pytest.raises(ImproperlyConfigured, match="are both replica_of 'main'"):
            execute("main", PORT)
    finally:
        del connections.settings["more"]


def test_the_replicas_pools_have_options_of_their_own(make_aliases, pair):
    make_aliases(pair.dsn(), replica_pool={"max_size": 7})
    cluster = get_cluster("main")
    assert cluster.primary.max_size == 3
    assert {node.pool.max_size for node in cluster._topology.nodes} == {7}
    assert connections["copies"].pool.get_stats()["pool_max"] == 14


def test_a_mirror_reads_on_the_primarys_connection(items, pair):
    """As a test's, also what isn't committed."""
    assert connections["copies"].settings_dict["TEST"]["MIRROR"] == "main"
    connections["copies"].creation.set_as_test_mirror(connections["main"].settings_dict)
    assert Router().db_for_read(items.model) == "main"
    assert execute("copies", PORT) == pair.primary.port
    with transaction.atomic(using="main"):
        pk = items.create(name="of a test").pk
        assert items.using("copies").get(pk=pk).name == "of a test"
    assert connections["copies"].connection is None


def test_check(items):
    from django.core.management import call_command

    call_command("check", databases=["main", "copies"], verbosity=0)
    assert connections["copies"].pg_version >= 140000


def test_close_old_connections(items):
    port_of_reads()
    execute("main", PORT)
    request_finished.send(sender=None)
    close_old_connections()
    assert connections["copies"].connection is connections["main"].connection is None
