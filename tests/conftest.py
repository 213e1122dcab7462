"""One process, one hub: `pytest --hub=gevent` (the default), `--hub=eventlet`, `--hub=threads`.

The program is monkey-patched as a user's would be, then `greenpg.patch()`ed; all tests talk to a real PostgreSQL: the
embedded one, or `--dsn`. The guard (`kit.Guard`) fails a test in which the hub was blocked.
"""

from __future__ import annotations

import warnings

import pytest
import slow

HUBS = ("gevent", "eventlet", "threads")


def pytest_addoption(parser):
    parser.addoption("--hub", choices=HUBS, default="gevent", help="the hub to run the tests on")
    parser.addoption("--quick", action="store_true", help="leave out the tests of tests/slow_tests.txt")
    parser.addoption("--part", choices=("each", "once"), help="what runs on each hub, or on this hub only")
    parser.addoption("--note-slow", action="store_true", help="add to tests/slow_tests.txt what is slow in this run")
    parser.addoption("--dsn", help="a PostgreSQL to test with (a superuser's DSN); default: the embedded one")


def pytest_configure(config):
    hub = config.getoption("--hub")
    if hub == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif hub == "eventlet":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import eventlet

            eventlet.monkey_patch()
            from eventlet import tpool

            tpool.setup()  # starts its threads, which takes longer than the guard would like
    import greenpg

    greenpg.patch(hub)
    if config.getoption("--note-slow"):
        config.pluginmanager.register(slow.SlowTests())


def pytest_report_header(config):
    import psycopg2

    return f"hub: {config.getoption('--hub')}, psycopg2 {psycopg2.__version__}"


def pytest_collection_modifyitems(config, items):
    hub, part = config.getoption("--hub"), config.getoption("--part")
    left_out = slow.known() if config.getoption("--quick") else set()
    selected, others = [], []
    for item in items:
        marker = item.get_closest_marker("only_hub")
        hubs = HUBS if marker is None else marker.args
        is_chosen = hub in hubs and slow.name_of(item.nodeid) not in left_out
        if part is not None:
            is_chosen = is_chosen and (part == "once") == (hubs == (hub,))
        (selected if is_chosen else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = selected


@pytest.fixture(scope="session")
def hub_name(pytestconfig):
    return pytestconfig.getoption("--hub")


@pytest.fixture(scope="session")
def server(pytestconfig):
    """The embedded server of the session: `greenpg.embedded.Server`. Skips with --dsn."""
    if pytestconfig.getoption("--dsn"):
        pytest.skip("needs the embedded server")
    from greenpg.embedded import Server

    settings = {"max_connections": 200, "wal_level": "logical", "max_prepared_transactions": 20}
    with Server(settings=settings, port=0) as running:
        yield running


@pytest.fixture(scope="session")
def dsn(pytestconfig, request):
    return pytestconfig.getoption("--dsn") or request.getfixturevalue("server").dsn


@pytest.fixture(autouse=True)
def patience(request, monkeypatch):
    """On a busy machine a cancel takes longer than connections get for it, and so does a statement that is shared."""
    import greenpg
    from greenpg.pool import multiplex_line

    if not request.node.get_closest_marker("usual_times"):
        monkeypatch.setattr(greenpg.Connection, "interruption_grace", 10.0)
        for name in ("SLOW", "IDLE", "LONGEST_LOAN"):
            monkeypatch.setattr(multiplex_line, name, 30.0)


@pytest.fixture
def conn(dsn):
    """A connection; `kit.statements_running()` tells what the server does for it."""
    import greenpg

    conn = greenpg.connect(dsn, application_name="tested")
    yield conn
    conn.close()


@pytest.fixture
def item(conn):
    """The connection has a table for the test: `item (id, name)`."""
    with conn.cursor() as cur:
        cur.execute("CREATE TEMP TABLE item (id int UNIQUE, name text)")
    conn.commit()


@pytest.fixture
def admin(dsn):
    """An autocommit connection to look at the server with."""
    import greenpg

    conn = greenpg.connect(dsn, application_name="admin")
    conn.autocommit = True
    yield conn
    conn.close()


@pytest.fixture
def pool_class():
    """What `make_pool` makes; `kit.either_pool` tests with both kinds."""
    import greenpg

    return greenpg.ConnectionPool


@pytest.fixture
def make_pool(dsn, pool_class):
    """Makes pools that are closed at the end, with the ledger's invariants checked whenever the mutex is released."""
    from kit import CheckingMutex

    import greenpg

    pools = []

    def make(conninfo=dsn, **options):
        if pool_class is greenpg.NullConnectionPool:
            options["max_size"] = options.get("max_size") or options.get("min_size")
            options["min_size"] = 0
        pool = pool_class(conninfo, **options)
        pool._core.mutex = CheckingMutex(pool._core.mutex, pool._core.ledger.check_invariants)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()
        assert not pool._core.ledger.slots, f"{pool!r} has lost a slot"
        assert pool._core.workers.count == 0, f"{pool!r} has lost a worker"


@pytest.fixture
def paused(pair):
    """The module's pair of servers, whose replica can `pause_replay()`; after the test it goes on."""
    yield pair
    pair.resume_replay()


@pytest.fixture
def make_engine(dsn):
    """Makes SQLAlchemy engines on greenpg, which are disposed of at the end; then no slot may be left."""
    from kit import wait_until
    from psycopg2 import extensions
    from sqlalchemy import create_engine

    engines = []

    def make(where=dsn, **options):
        options.setdefault("pool_size", 2)
        options.setdefault("max_overflow", 0)
        engine = create_engine("postgresql+greenpg://", connect_args=extensions.parse_dsn(where), **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        core = engine.pool._core
        engine.dispose()
        with core.mutex:
            core.ledger.check_invariants()
        wait_until(lambda core=core: not core.ledger.slots)  # else a slot is lost


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def opened(engine):
    """The connections that the engine has opened."""
    from sqlalchemy import event

    connections = []
    event.listen(engine, "connect", lambda conn, record: connections.append(conn))
    return connections


@pytest.fixture(autouse=True)
def guard(hub_name, request):
    """Fails the test if the hub was blocked for more than 50 ms."""
    from kit import Guard

    if hub_name == "threads" or request.node.get_closest_marker("may_block"):
        yield None
        return
    with Guard() as running:
        yield running
    assert not running.stalls, f"the hub was blocked for {[f'{stall * 1000:.0f} ms' for stall in running.stalls]}"


@pytest.fixture(scope="session")
def watch(hub_name):
    """Sees tasks being left in what says that it doesn't suspend."""
    if hub_name == "threads":
        yield None
        return
    from quiet import Watch

    running = Watch()
    running.start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def promises(watch):
    """Fails the test in which something suspended that says that it doesn't."""
    yield
    if watch is not None:
        broken, watch.broken = watch.broken, []
        assert not broken, f"these suspended: {sorted(set(broken))}"


@pytest.fixture
def through_proxy(server):
    """A TCP proxy to the server, and a DSN that goes through it."""
    from proxy import Proxy
    from psycopg2 import extensions

    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"]) as proxy:
        yield proxy, extensions.make_dsn(server.tcp_dsn, port=proxy.port)
