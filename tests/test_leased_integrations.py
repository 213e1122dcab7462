"""Django and SQLAlchemy with a lease for each transaction."""

from __future__ import annotations

import gc

import pytest
from django_kit import Databases, set_up
from kit import Killed, Task, lent, run_all, wait_until

pytest.importorskip("django")
pytest.importorskip("sqlalchemy")
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from sqlalchemy import create_engine, event, exc, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import greenpg
from greenpg.hubs import hub


@pytest.fixture
def database(dsn):
    set_up(dsn)
    databases = Databases()
    yield databases.make(pool={"max_size": 2, "timeout": 10, "lease": "transaction"})
    databases.close()


def query(alias, sql="SELECT 1", *args):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, args)
        return cursor.fetchone()[0]


# -- Django


def test_django_leases_for_a_query_or_an_atomic_block(database):
    pool = connections[database].pool
    assert query(database) == 1 and lent(pool) == 0
    assert isinstance(connections[database].connection, greenpg.LeasedConnection)
    with transaction.atomic(using=database):
        assert lent(pool) == 0
        pid = query(database, "SELECT pg_backend_pid()")
        assert lent(pool) == 1
        with transaction.atomic(using=database):
            assert query(database, "SELECT pg_backend_pid()") == pid
    assert lent(pool) == 0
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=database):
        query(database)
        raise ZeroDivisionError
    assert lent(pool) == 0 and query(database) == 1


def test_django_models_iterators_and_locks(database):
    from django_site.models import Item

    items, pool = Item.objects.using(database), connections[database].pool
    with transaction.atomic(using=database):
        items.all().delete()
        items.bulk_create([Item(name=f"item {n}") for n in range(10)])
        assert len(items.select_for_update()) == 10
    names = []
    for item in items.order_by("id").iterator(chunk_size=3):
        assert lent(pool) == 1  # a cursor WITH HOLD
        names.append(item.name)
    assert names == [f"item {n}" for n in range(10)] and lent(pool) == 0
    rows = items.values_list("id").iterator(chunk_size=3)
    next(rows)
    rows.close()
    assert lent(pool) == 0
    with transaction.atomic(using=database):
        assert items.count() == 10
        assert len(list(items.iterator(chunk_size=4))) == 10
        items.all().delete()


def test_django_session_state_sticks_until_the_end_of_the_request(database):
    wrapper = connections[database]
    query(database, "SELECT pg_advisory_lock(815)::text")
    assert lent(wrapper.pool) == 1
    wrapper.close()
    wait_until(lambda: lent(wrapper.pool) == 0 and not wrapper.pool._core.ledger.resetting)
    assert query(database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert query(database, "SHOW TimeZone") == "UTC"  # what the engine has set is there again


def test_django_tasks_that_wait_share_two_connections(database):
    def serve(number):
        assert query(database, "SELECT %s::int", number) == number
        hub().sleep(0.05)
        with transaction.atomic(using=database):
            assert query(database, "SELECT %s::int", number) == number
        hub().sleep(0.05)

    run_all([lambda number=number: serve(number) for number in range(60)])
    assert lent(connections[database].pool) == 0


@pytest.mark.only_hub("gevent", "eventlet")
def test_django_killed_in_a_query_and_in_a_block(database):
    pool = connections[database].pool
    for autocommit in (True, False):

        def serve(autocommit=autocommit):
            if autocommit:
                query(database, "SELECT pg_sleep(20)::text")
            with transaction.atomic(using=database):
                query(database)
                hub().sleep(20)

        task = Task(serve)
        wait_until(lambda: lent(pool) == 1)
        hub().sleep(0.05)
        task.throw(Killed())
        task.join()
        wait_until(lambda: lent(pool) == 0)
    assert query(database) == 1


def test_django_a_closed_pool_is_replaced(database):
    assert query(database) == 1
    connections[database].close_pool()
    assert query(database) == 1


def test_django_other_values_are_refused(dsn):
    set_up(dsn)
    databases = Databases()
    alias = databases.make("refused", pool={"lease": "statement"})
    try:
        with pytest.raises(ImproperlyConfigured, match='must be "request", or "transaction"'):
            query(alias)
    finally:
        databases.close()


# -- SQLAlchemy


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "leased_thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def engine(make_engine):
    engine = make_engine(lease="transaction")
    yield engine
    Base.metadata.drop_all(engine)


def test_sqlalchemy_leases_for_a_transaction(engine):
    with engine.connect() as conn:
        assert lent(engine.pool) == 0
        for end in (conn.commit, conn.rollback):
            assert conn.scalar(text("SELECT 1")) == 1
            assert lent(engine.pool) == 1
            end()
            assert lent(engine.pool) == 0
        assert isinstance(conn.connection.dbapi_connection, greenpg.LeasedConnection)
    with engine.begin() as conn:
        conn.execute(text("SELECT 1"))
    assert lent(engine.pool) == 0


def test_sqlalchemy_in_autocommit_leases_for_a_statement(engine):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        result = conn.execute(text("SELECT generate_series(1, 3)"))
        assert lent(engine.pool) == 0 and result.scalars().all() == [1, 2, 3]
    with engine.connect() as conn:
        assert conn.get_isolation_level() == "READ COMMITTED"


def test_sqlalchemy_sessions_and_streams(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Thing(id=n, name=f"thing {n}") for n in range(10)])
        session.commit()
        assert lent(engine.pool) == 0
        things = session.scalars(select(Thing).order_by(Thing.id).execution_options(yield_per=3))
        assert next(things).name == "thing 0" and lent(engine.pool) == 1
        assert [thing.id for thing in things] == list(range(1, 10))
        session.rollback()
        with pytest.raises(exc.IntegrityError):
            session.execute(text("INSERT INTO leased_thing VALUES (1, 'again')"))
        session.rollback()
    assert lent(engine.pool) == 0


def test_sqlalchemy_many_connections_on_two(engine):
    def serve(number):
        with engine.connect() as conn:
            for _ in range(2):
                assert conn.scalar(text("SELECT :number"), {"number": number}) == number
                conn.commit()
                hub().sleep(0.05)

    run_all([lambda number=number: serve(number) for number in range(60)])
    assert lent(engine.pool) == 0 and engine.pool.stats()["pool_size"] <= 2


@pytest.mark.only_hub("gevent", "eventlet")
def test_sqlalchemy_killed(engine):
    def serve():
        with engine.connect() as conn:
            conn.execute(text("SELECT pg_sleep(20)"))

    task = Task(serve)
    wait_until(lambda: lent(engine.pool) == 1)
    hub().sleep(0.05)
    task.throw(Killed())
    task.join()
    wait_until(lambda: lent(engine.pool) == 0)
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT 1")) == 1


def test_sqlalchemy_garbage(engine):
    conn = engine.connect()
    conn.execute(text("SELECT 1"))
    del conn
    gc.collect()
    wait_until(lambda: lent(engine.pool) == 0)


def test_sqlalchemy_lost_connections(engine, admin):
    with engine.connect() as conn:
        pid = conn.scalar(text("SELECT pg_backend_pid()"))
        admin.cursor().execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(exc.OperationalError) as info:
            conn.execute(text("SELECT 1"))
        assert info.value.connection_invalidated
        conn.rollback()
        assert conn.scalar(text("SELECT 1")) == 1
    assert lent(engine.pool) == 0


def test_sqlalchemy_on_a_shared_pool(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    engine = create_engine("postgresql+greenpg://", connection_pool=pool, lease="transaction")
    seen = []
    event.listen(engine, "connect", lambda conn, record: seen.append(type(conn)))
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT 1")) == 1
        conn.commit()
        assert pool.fetchval("SELECT 2") == 2
    assert seen == [greenpg.Connection]
    engine.dispose()


def test_sqlalchemy_who_cannot_connect_is_told_at_the_checkout():
    engine = create_engine("postgresql+greenpg://nobody@127.0.0.1:1/none", lease="transaction")
    with pytest.raises(exc.OperationalError):
        engine.connect()
    with pytest.raises(exc.ArgumentError, match="lease"):
        create_engine("postgresql+greenpg://", lease="statement")
