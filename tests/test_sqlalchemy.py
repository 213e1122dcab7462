"""`postgresql+greenpg`: what an application does with an engine or a Session."""

from __future__ import annotations

import io

import psycopg2
import pytest
from counting import RoundTripCounter
from kit import Killed, Task, run_all, wait_until
from psycopg2 import extensions
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, event, exc, insert, select, text, update
from sqlalchemy.orm import Session, declarative_base

import greenpg
from greenpg.errors import DeadlineExceeded
from greenpg.hubs import hub
from greenpg.integrations.sqlalchemy import GreenpgPool

green = pytest.mark.only_hub("gevent", "eventlet")

Base = declarative_base()


class Item(Base):
    __tablename__ = "sqlalchemy_item"
    id = Column(Integer, primary_key=True)
    name = Column(String)


@pytest.fixture
def items(engine):
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)


def pid_of(conn):
    return conn.execute(text("SELECT pg_backend_pid()")).scalar()


# -- the URL


def test_url_is_all_that_changes(dsn):
    where = extensions.parse_dsn(dsn)
    engine = create_engine(
        f"postgresql+greenpg://{where['user']}@/{where['dbname']}?host={where['host']}&port={where['port']}"
    )
    with engine.connect() as conn:
        assert conn.execute(text("SELECT 1")).scalar() == 1
        assert isinstance(conn.connection.dbapi_connection, greenpg.Connection)
    assert engine.driver == "greenpg"
    assert isinstance(engine.pool, GreenpgPool)
    engine.dispose()


def test_errors_are_psycopg2s(engine):
    with engine.connect() as conn, pytest.raises(exc.IntegrityError) as caught:
        conn.execute(text("DO $$ BEGIN RAISE unique_violation; END $$"))
    assert isinstance(caught.value.orig, psycopg2.errors.UniqueViolation)


def test_wrong_address_is_told_at_once(make_engine):
    engine = make_engine("host=/nonexistent user=nobody dbname=nothing", pool_timeout=20)
    began = hub().now()
    with pytest.raises(exc.OperationalError, match="No such file or directory"):
        engine.connect()
    assert hub().now() - began < 10


# -- round trips


@pytest.fixture
def counted(server, make_engine):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        engine = make_engine(extensions.make_dsn(server.tcp_dsn, port=counter.port))
        for _ in range(3):  # connected, initialized, and psycopg2's status proven
            with engine.connect() as conn:
                conn.execute(text("SELECT 1"))
        yield engine, counter
        engine.dispose()


def test_round_trips(counted):
    engine, counter = counted

    def one_statement():
        with Session(engine) as session:
            session.execute(text("SELECT 1"))
            session.commit()

    def left_to_be_rolled_back():
        with Session(engine) as session:
            session.execute(text("SELECT 1"))

    def nothing():
        with Session(engine) as session:
            session.connection()

    def autocommitted():
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("SELECT 1"))

    def serializable():
        with engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn:
            conn.execute(text("SELECT 1"))

    def nested():
        with Session(engine) as session, session.begin(), session.begin_nested():
            session.execute(text("SELECT 1"))

    assert counter.of(one_statement) == 2
    assert counter.of(left_to_be_rolled_back) == 2
    assert counter.of(nothing) == 0
    assert counter.of(autocommitted) == 1
    assert counter.of(serializable) == 2
    assert counter.of(nested) == 4  # SAVEPOINT, with BEGIN; SELECT; RELEASE; COMMIT


def test_round_trips_of_bulk_statements(counted, items):
    """SQLAlchemy's own work, as an INSERT's many VALUES, and what it leaves to the cursor's executemany()."""
    engine, counter = counted

    def add():
        with Session(engine) as session:
            session.add_all([Item(name="new") for _ in range(500)])
            session.commit()

    def change():
        with Session(engine) as session:
            for item in session.scalars(select(Item)):
                item.name = f"changed {item.id}"
            session.commit()

    def update_by_key():
        with Session(engine) as session:
            session.execute(update(Item), [{"id": number, "name": f"updated {number}"} for number in ids])
            session.commit()

    def delete_autocommitted():
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("DELETE FROM sqlalchemy_item WHERE id = :id"), [{"id": number} for number in ids])

    assert counter.of(add) <= 3
    with items.connect() as conn:
        ids = conn.scalars(select(Item.id)).all()
    assert len(ids) == 500
    few = 20  # of 500: 3, and more where the server answers before all has gone out
    assert counter.of(change) <= few
    assert counter.of(update_by_key) <= few
    with items.connect() as conn:
        assert set(conn.scalars(select(Item.name))) == {f"updated {number}" for number in ids}
    assert counter.of(delete_autocommitted) <= few
    with items.connect() as conn:
        assert conn.scalars(select(Item.id)).all() == []


def test_pre_ping_costs_no_round_trip(server, make_engine):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with RoundTripCounter(parameters["host"], parameters["port"]) as counter:
        engine = make_engine(extensions.make_dsn(server.tcp_dsn, port=counter.port), pool_pre_ping=True)
        engine.connect().close()
        assert counter.of(lambda: engine.connect().close()) == 0
        engine.dispose()


# -- transactions


def test_isolation_level_is_put_back(engine, opened):
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn:
        assert conn.execute(text("SHOW transaction_isolation")).scalar() == "serializable"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("CREATE TEMP TABLE t (a int)"))
        conn.connection.rollback()
        conn.execute(text("DROP TABLE t"))
    with engine.connect() as conn:
        assert conn.execute(text("SHOW transaction_isolation")).scalar() == "read committed"
        assert conn.connection.dbapi_connection.autocommit is False
    assert len(opened) == 1


def test_readonly_and_deferrable(engine):
    options = {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True}
    with engine.connect().execution_options(**options) as conn:
        settings = "SELECT current_setting('transaction_read_only'), current_setting('transaction_deferrable')"
        assert conn.execute(text(settings)).one() == ("on", "on")
    with engine.connect() as conn:
        assert conn.execute(text(settings)).one() == ("off", "off")


def test_engine_wide_autocommit(make_engine):
    engine = make_engine(isolation_level="AUTOCOMMIT")
    for _ in range(2):
        with engine.connect() as conn:
            assert conn.connection.dbapi_connection.autocommit is True
            conn.execute(text("SELECT 1"))
            assert conn.connection.dbapi_connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE


def test_savepoints(items):
    with Session(items) as session:
        session.add(Item(name="kept"))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(Item(name="lost"))
            session.flush()
            raise ZeroDivisionError
        session.commit()
        assert [item.name for item in session.scalars(select(Item))] == ["kept"]


def test_two_phase(items):
    with items.connect() as conn:
        transaction = conn.begin_twophase()
        conn.execute(insert(Item), {"name": "prepared"})
        transaction.prepare()
        with items.connect() as other:
            assert transaction.xid in other.recover_twophase()
        transaction.commit()
    with items.connect() as conn:
        transaction = conn.begin_twophase()
        conn.execute(insert(Item), {"name": "not"})
        transaction.prepare()
        transaction.rollback()
        assert conn.scalars(select(Item.name)).all() == ["prepared"]


def test_bulk_statements(items):
    rows = [{"name": str(number)} for number in range(2500)]
    with items.begin() as conn:
        ids = conn.scalars(insert(Item).returning(Item.id, sort_by_parameter_order=True), rows).all()
        assert ids == sorted(ids) and len(ids) == 2500
        conn.execute(text("UPDATE sqlalchemy_item SET name = :name WHERE id = :id"), [
            {"id": number, "name": "x"} for number in ids
        ])  # fmt: skip
        assert conn.execute(text("SELECT count(*) FROM sqlalchemy_item WHERE name = 'x'")).scalar() == 2500


@green
def test_server_side_cursor_lets_others_run(engine):
    turns = []
    ticking = True

    def tick():
        while ticking:
            turns.append(1)
            hub().sleep(0.001)

    ticker = Task(tick)
    with engine.connect() as conn:
        result = conn.execution_options(yield_per=100).execute(text("SELECT generate_series(1, 5000)"))
        assert sum(row[0] for row in result) == 12502500
    ticking = False
    ticker.join()
    assert len(turns) > 5


def test_copy(items):
    with items.begin() as conn:
        cur = conn.connection.cursor()
        cur.copy_expert("COPY sqlalchemy_item (name) FROM STDIN", io.StringIO("one\ntwo\n"))
        with cur.copy("COPY sqlalchemy_item (name) TO STDOUT") as copy:
            assert b"".join(copy) == b"one\ntwo\n"
    with items.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM sqlalchemy_item")).scalar() == 2


def test_reflection_and_core(items):
    table = Table("sqlalchemy_item", MetaData(), autoload_with=items)
    assert set(table.columns.keys()) == {"id", "name"}


# -- cancel and keep


def pg_sleep(conn):
    conn.execute(text("SELECT pg_sleep(10)"))


@green
def test_killed_session_goes_on_with_its_connection(engine, opened):
    pids = []

    def work():
        with Session(engine) as session:
            pids.append(pid_of(session))
            try:
                session.execute(text("SELECT pg_sleep(10)"))
            except Killed:
                pass
            with pytest.raises(exc.SQLAlchemyError):
                session.execute(text("SELECT 1"))  # in error, as after any failed statement
            session.rollback()
            pids.append(pid_of(session))
            session.commit()

    task = Task(work)
    wait_until(lambda: pids)
    hub().sleep(0.05)
    task.throw(Killed())
    task.result()
    assert pids[0] == pids[1]
    assert len(opened) == 1


@green
@pytest.mark.parametrize("where", ["statement", "commit", "rollback", "close"])
def test_kills_cost_no_connection(engine, opened, where, through_proxy, make_engine):
    """50 tasks are killed, each in the same place; the connections are as many as before."""
    proxy, dsn = through_proxy
    engine = make_engine(dsn)
    opened = []
    event.listen(engine, "connect", lambda conn, record: opened.append(conn))
    engine.connect().close()
    proxy.delay = 0.01

    def work():
        with Session(engine) as session:
            session.execute(text("SELECT 1" if where != "statement" else "SELECT pg_sleep(10)"))
            if where in ("commit", "rollback"):
                getattr(session, where)()

    for number in range(20):
        task = Task(work)
        hub().sleep(0.005 + 0.025 * (where != "statement") + (number % 5) * 0.002)
        task.throw(Killed())
        task.join()
    proxy.delay = 0
    assert engine.pool.checkedout() == 0
    assert len(opened) <= 2, "a kill has cost a connection"
    with engine.connect() as conn:
        assert conn.execute(text("SELECT 1")).scalar() == 1


@pytest.mark.only_hub("gevent")
def test_timeouts_cost_no_connection(engine, opened, admin):
    import gevent

    for _ in range(10):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02), engine.begin() as conn:
            pg_sleep(conn)
    assert len(opened) == 1

    def is_idle():
        with admin.cursor() as cur:
            cur.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (opened[0].info.backend_pid,))
            return cur.fetchone() == ("idle",)

    wait_until(is_idle)


def test_statement_deadline(make_engine):
    engine = make_engine(statement_deadline=0.05)
    with engine.connect() as conn:
        pid = pid_of(conn)
        with pytest.raises(exc.OperationalError) as caught:
            pg_sleep(conn)
        assert isinstance(caught.value.orig, DeadlineExceeded)
        conn.rollback()
        assert pid_of(conn) == pid


@green
def test_commit_outcome_is_told(items):
    """A kill in the COMMIT: it is waited for, and what has become of the transaction is on the exception."""
    with items.begin() as conn:
        conn.execute(text("""CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON sqlalchemy_item DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION slow()"""))  # fmt: skip
    try:

        def work():
            with Session(items) as session:
                session.add(Item(name="committed"))
                session.commit()

        task = Task(work)
        hub().sleep(0.1)
        task.throw(Killed())
        task.join()
        assert isinstance(task.error, Killed)
        assert greenpg.errors.commit_outcome(task.error) == "committed"
        with items.connect() as conn:
            assert conn.scalars(select(Item.name)).all() == ["committed"]
    finally:
        with items.begin() as conn:
            conn.execute(text("DROP FUNCTION slow CASCADE"))


def test_many_tasks(items):
    def work(number):
        def run():
            with Session(items) as session:
                session.add(Item(name=str(number)))
                session.commit()

        return run

    run_all([work(number) for number in range(50)])
    with items.connect() as conn:
        assert conn.execute(text("SELECT count(DISTINCT name) FROM sqlalchemy_item")).scalar() == 50
    assert items.pool.stats()["connections_num"] <= 2
