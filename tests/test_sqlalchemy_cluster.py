"""SQLAlchemy on a `greenpg.Cluster`: an engine for each role, and the Session that reads from replicas."""

from __future__ import annotations

import psycopg2
import pytest
from cluster import Pair, ask
from kit import Killed, Task, run_all, wait_until
from proxy import Proxy
from sqlalchemy import Column, Integer, String, exc, func, insert, select, text, update
from sqlalchemy.orm import Session, declarative_base, sessionmaker

import greenpg
from greenpg.hubs import hub
from greenpg.integrations.sqlalchemy import ClusterSession, create_cluster_engines

on_one_hub = pytest.mark.only_hub("gevent")
Base = declarative_base()
PORT = text("SELECT inet_server_port()")


class Item(Base):
    __tablename__ = "item_of_cluster"
    id = Column(Integer, primary_key=True)
    name = Column(String)


@pytest.fixture(scope="module")
def pair():
    with Pair() as pair:
        ask(pair.primary, "CREATE TABLE item_of_cluster (id serial PRIMARY KEY, name text)")
        ask(pair.primary, "INSERT INTO item_of_cluster VALUES (0, 'first')")
        wait_until(lambda: ask(pair.replica, "SELECT to_regclass('item_of_cluster')") != (None,))
        wait_until(lambda: ask(pair.replica, "SELECT count(*) FROM item_of_cluster") == (1,))
        yield pair


@pytest.fixture
def make_engines(pair):
    made = []

    def make(conninfo=None, engine_options=None, **options):
        options = {"min_size": 1, "max_size": 4, "interval": 0.05} | options
        cluster = greenpg.Cluster(conninfo or pair.dsn(), **options)
        made.append(cluster)
        cluster.open(wait=True)
        return create_cluster_engines(cluster, **engine_options or {})

    yield make
    for cluster in made:
        cores = [pool._core for pool in (cluster.primary, *(node.pool for node in cluster._topology.nodes))]
        for core in cores:
            assert core.ledger.lent_count == 0, "a connection wasn't given back"
        cluster.close()
        assert not any(core.ledger.slots for core in cores), "a slot is lost"


@pytest.fixture
def engines(make_engines):
    return make_engines()


@pytest.fixture
def sessions(engines):
    return sessionmaker(class_=ClusterSession, engines=engines)


def port_of(session, statement=None, **options):
    """Where a SELECT of a table goes."""
    if statement is None:
        statement = select(func.inet_server_port()).select_from(Item).where(Item.id == 0)
    return session.execute(statement, **options).scalar()


# -- engines


def test_an_engine_for_each_role(engines, pair):
    with engines.primary.connect() as conn:
        assert conn.execute(PORT).scalar() == pair.primary.port
    with engines.replica.connect() as conn:
        assert conn.execute(PORT).scalar() == pair.replica.port
        assert engines.replica.pool.checkedout() == 1
    assert engines.replica.pool.checkedout() == 0
    assert engines.replica.pool.stats()["requests_num"] == 1
    assert "Connections in pool: 1" in engines.replica.pool.status()
    engines.dispose()
    assert engines.replica.pool.checkedin() == 0
    with engines.replica.connect() as conn:
        assert conn.execute(PORT).scalar() == pair.replica.port


def test_the_replicas_engine_only_reads(make_engines, pair):
    engines = make_engines(pair.primary.tcp_dsn)  # without a replica, too
    for engine in (engines.replica, make_engines().replica):
        with engine.connect() as conn, pytest.raises(exc.InternalError) as caught:
            conn.execute(text("DELETE FROM item_of_cluster"))
        assert isinstance(caught.value.orig, psycopg2.errors.ReadOnlySqlTransaction)
    with engines.primary.begin() as conn:  # the connection was the same
        assert conn.execute(text("UPDATE item_of_cluster SET id = id")).rowcount


def test_sizes_are_the_clusters(make_engines):
    with pytest.raises(exc.ArgumentError, match="connection_pool's own"):
        make_engines(engine_options={"pool_size": 3})


def test_engines_read_what_the_task_has_written(engines, pair, paused):
    paused.pause_replay()
    with engines.primary.begin() as conn:
        conn.execute(update(Item).values(name="second"))
    with engines.replica.connect() as conn:
        assert conn.execute(PORT).scalar() == pair.primary.port
        assert conn.execute(select(Item.name)).scalar() == "second"
    assert Task(lambda: reading_port(engines)).result() == pair.replica.port
    paused.resume_replay()
    wait_until(lambda: reading_port(engines) == pair.replica.port)


def reading_port(engines):
    with engines.replica.connect() as conn:
        return conn.execute(PORT).scalar()


def test_autocommit_is_noticed(engines, pair, paused):
    paused.pause_replay()
    with engines.primary.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        conn.execute(update(Item).values(name="third"))
    with engines.replica.connect() as conn:
        assert conn.execute(select(Item.name)).scalar() == "third"
    paused.resume_replay()
    wait_until(lambda: reading_port(engines) == pair.replica.port)


# -- where a Session goes


def test_reads_go_to_the_replica_until_something_is_written(sessions, pair):
    with sessions() as session:
        assert port_of(session) == pair.replica.port
        item = session.get(Item, 0)
        item.name = "changed"
        assert port_of(session) == pair.primary.port, "it was flushed before"
        session.refresh(item)
        assert item.name == "changed"
        session.rollback()
        assert port_of(session) == pair.replica.port
        assert item.name != "changed"


@pytest.mark.parametrize(
    "statement",
    [
        PORT,
        select(func.inet_server_port()),
        select(func.inet_server_port()).select_from(Item).with_for_update(),
        select(func.inet_server_port()).select_from(select(Item.id).with_for_update().subquery()),
        select(func.inet_server_port(), func.pg_try_advisory_xact_lock(1)).select_from(Item),
        select(func.inet_server_port()).select_from(Item).execution_options(greenpg_role="primary"),
        select(func.inet_server_port()).select_from(insert(Item).values(name="x").returning(Item.id).cte()),
        select(func.inet_server_port()).select_from(Item).add_cte(insert(Item).values(name="x").cte()),
    ],
    ids=["text", "no table", "lock", "nested lock", "advisory", "option", "insert in it", "insert beside it"],
)
def test_what_needs_the_primary(sessions, pair, statement):
    with sessions() as session:
        assert port_of(session) == pair.replica.port
        assert session.execute(statement).scalar() == pair.primary.port
        assert port_of(session) == pair.primary.port, "once there, all goes there"
        session.rollback()
        assert port_of(session) == pair.replica.port


def test_who_asks_for_it(sessions, pair):
    with sessions() as session:
        replica = {"role": "replica"}
        assert port_of(session, PORT, bind_arguments=replica) == pair.replica.port
        assert session.connection(bind_arguments=replica).execute(PORT).scalar() == pair.replica.port
        assert session.get_bind() is session.get_bind(Item) is session.get_bind(clause=Item.__table__)
        assert session.connection().execute(PORT).scalar() == pair.primary.port
        assert port_of(session, PORT.execution_options(greenpg_role="replica")) == pair.replica.port
        with pytest.raises(exc.ArgumentError, match='a role is "primary" or "replica"'):
            port_of(session, bind_arguments={"role": "leader"})
    with sessions() as session, session.begin(), session.begin_nested():
        assert port_of(session) == pair.primary.port


def test_one_connection_each(sessions, engines):
    with sessions() as session:
        for _ in range(3):
            session.get(Item, 0, populate_existing=True)
        assert (engines.primary.pool.checkedout(), engines.replica.pool.checkedout()) == (0, 1)
        session.add(Item(name="new"))
        session.flush()
        port_of(session)
        assert (engines.primary.pool.checkedout(), engines.replica.pool.checkedout()) == (1, 1)
    assert (engines.primary.pool.checkedout(), engines.replica.pool.checkedout()) == (0, 0)


def test_what_is_bound_elsewhere_stays_there(engines, pair):
    with ClusterSession(engines=engines, binds={Item: engines.primary.execution_options()}) as session:
        assert session.execute(select(Item)).scalars().first()
        assert engines.replica.pool.checkedout() == 0
    with engines.primary.connect() as conn, ClusterSession(conn, engines=engines) as session:
        assert port_of(session) == pair.primary.port
        assert engines.primary.pool.checkedout() == 1


def test_a_session_that_only_reads(engines, pair, paused):
    with ClusterSession(engines=engines, readonly=True) as session:
        assert port_of(session, PORT) == port_of(session) == pair.replica.port
        session.add(Item(name="no"))
        with pytest.raises(exc.InternalError) as caught:
            session.commit()
        assert isinstance(caught.value.orig, psycopg2.errors.ReadOnlySqlTransaction)
        session.rollback()
        paused.pause_replay()
        port_of(session)
        with engines.primary.begin() as conn:
            conn.execute(update(Item).values(name="elsewhere"))
        assert session.execute(select(Item.name)).scalars().first() == "elsewhere"
        with pytest.raises(exc.InternalError):
            session.execute(text("DELETE FROM item_of_cluster"))


# -- reading what was written


def test_reads_what_it_has_written(sessions, pair, paused):
    paused.pause_replay()
    with sessions() as session, sessions() as other:
        assert port_of(other) == pair.replica.port
        session.get(Item, 0).name = "mine"
        session.commit()
        assert session.get(Item, 0).name == "mine"
        assert port_of(session) == pair.primary.port
        # A Session whose transaction began on the replica before.
        assert other.execute(select(Item.name).where(Item.id == 0)).scalar() == "mine"
        assert engines_of(session).primary.pool.checkedout() == 2
    paused.resume_replay()
    with sessions() as session:
        wait_until(lambda: (port_of(session), session.rollback())[0] == pair.replica.port)
        assert session.get(Item, 0).name == "mine"


def engines_of(session):
    return session._engines


def test_leases_of_the_primary(make_engines, pair, paused):
    engines = make_engines(engine_options={"lease": "transaction"})
    paused.pause_replay()
    with ClusterSession(engines=engines) as session:
        assert port_of(session) == pair.replica.port
        session.get(Item, 0).name = "leased"
        session.commit()
        assert session.get(Item, 0).name == "leased"
    with engines.primary.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        conn.execute(update(Item).values(name="leased for a statement"))
    with engines.replica.connect() as conn:
        assert conn.execute(select(Item.name)).scalars().first() == "leased for a statement"


def test_the_token_is_passed_on(sessions, engines, pair, paused):
    cluster = engines.replica.pool._cluster
    paused.pause_replay()
    with sessions() as session:
        session.get(Item, 0).name = "told"
        session.commit()
    token = cluster.token

    def name(token):
        cluster.token = token
        with sessions() as session:
            return session.get(Item, 0).name

    assert Task(lambda: name(None)).result() != "told"
    assert Task(lambda: name(token)).result() == "told"


def test_reads_after_writes_with_a_replica_that_lags(sessions, engines, pair):
    ask(pair.replica, "ALTER SYSTEM SET recovery_min_apply_delay = '40ms'")
    ask(pair.replica, "SELECT pg_reload_conf()")
    cluster = engines.replica.pool._cluster
    with sessions() as session:
        session.add_all(Item(id=100 + k, name="") for k in range(10))
        session.commit()
    counts = {"stale": 0, "stale without token": 0, "replica": 0}

    def work(k):
        for n in range(30):
            with sessions() as session:
                session.get(Item, 100 + k).name = str(n)
                session.commit()
            token = cluster.token
            hub().sleep(0.02 * (n % 4))
            with sessions() as session:
                name, port = session.execute(select(Item.name, func.inet_server_port()).where(Item.id == 100 + k)).one()
                counts["stale"] += name != str(n)
                counts["replica"] += port == pair.replica.port
            cluster.token = None
            with sessions() as session:
                name = session.execute(select(Item.name).where(Item.id == 100 + k)).scalar()
                counts["stale without token"] += name != str(n)
            cluster.token = token

    token = cluster.token
    run_all([lambda k=k: (setattr(cluster, "token", token), work(k)) for k in range(10)], timeout=60)
    ask(pair.replica, "ALTER SYSTEM RESET recovery_min_apply_delay")
    ask(pair.replica, "SELECT pg_reload_conf()")
    assert counts["stale"] == 0
    assert counts["stale without token"] > 0, "the replica doesn't lag: this shows nothing"
    assert counts["replica"] > 0


# -- replicas that are down, kills, a failover


def test_without_a_replica_all_is_one_transaction_of_the_primary(make_engines, pair):
    with Proxy("127.0.0.1", pair.primary.port) as primary, Proxy("127.0.0.1", pair.replica.port) as replica:
        engines = make_engines(pair.dsn(through=[primary, replica]), max_size=1)
        sessions = sessionmaker(class_=ClusterSession, engines=engines)
        with sessions() as session:
            assert port_of(session) == pair.replica.port
        replica.refuse()
        replica.cut()
        hub().sleep(0.02)  # the proxy is another process
        with sessions() as session:
            assert port_of(session) == pair.primary.port
            session.add(Item(name="the pool has one connection"))
            session.commit()
        replica.accept()
        wait_until(lambda: engines.replica.pool._cluster.nodes[1]["in_rotation"])
        engines.replica.pool._cluster.token = None
        with sessions() as session:
            assert port_of(session) == pair.replica.port


def test_a_replica_lost_in_between_doesnt_harm_what_is_written(make_engines, pair):
    with Proxy("127.0.0.1", pair.primary.port) as primary, Proxy("127.0.0.1", pair.replica.port) as replica:
        engines = make_engines(pair.dsn(through=[primary, replica]))
        with ClusterSession(engines=engines) as session:
            assert port_of(session) == pair.replica.port
            session.add(Item(id=500, name="kept"))
            session.flush()
            replica.refuse()
            replica.cut()
            hub().sleep(0.02)
            session.commit()
            assert session.get(Item, 500).name == "kept"
            assert port_of(session) == pair.primary.port


@on_one_hub
def test_kills(sessions, engines):
    """In every wait of a Session that reads here and writes there."""

    def work():
        with sessions() as session:
            session.execute(select(func.pg_sleep(0.001)).select_from(Item).where(Item.id == 0))
            session.add(Item(name="killed?"))
            session.commit()
            session.execute(select(Item.name).where(Item.id == 0))

    outcomes = set()
    for number in range(120):
        task = Task(work)
        hub().sleep(0.0001 * number)
        task.throw(Killed())
        task.join()
        outcomes.add(type(task.error))
    assert Killed in outcomes and outcomes <= {Killed, type(None)}
    wait_until(lambda: engines.primary.pool.checkedout() == engines.replica.pool.checkedout() == 0)


@on_one_hub
def test_failover(make_engines):
    with Pair() as pair:
        ask(pair.primary, "CREATE TABLE item_of_cluster (id serial PRIMARY KEY, name text)")
        engines = make_engines(pair.dsn(), timeout=10)
        sessions = sessionmaker(class_=ClusterSession, engines=engines)
        with sessions() as session:
            session.add(Item(id=1, name="before"))
            session.commit()
            wait_until(
                lambda: ask(pair.replica, "SELECT count(*) FROM pg_class WHERE relname = 'item_of_cluster'") == (1,)
            )
            wait_until(lambda: ask(pair.replica, "SELECT count(*) FROM item_of_cluster") == (1,))
        pair.primary.stop("immediate")
        pair.promote()

        def write():
            try:
                with sessions() as session:
                    session.get(Item, 1).name = "after"
                    session.commit()
            except exc.DBAPIError:
                return False
            return True

        wait_until(write, timeout=20)
        with sessions() as session:
            assert session.get(Item, 1).name == "after"
            assert port_of(session, PORT) == pair.replica.port
        engines.replica.pool._cluster.close()


def test_an_ordinary_session_is_as_ever(engines, pair):
    with Session(engines.primary) as session:
        assert port_of(session) == pair.primary.port
