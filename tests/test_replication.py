"""Streaming replication in green mode, with pgoutput: the embedded server has no other plugin."""

import itertools
import os

import psycopg2
import psycopg2.extras
import pytest
from kit import Killed, Task, is_waiting, wait_until
from psycopg2 import extensions, sql
from psycopg2.extras import LogicalReplicationConnection, PhysicalReplicationConnection, StopReplication

import greenpg
from greenpg.connection.replication import ReplicationCursor
from greenpg.errors import ConnectionInUse
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")
names = itertools.count(1)


@pytest.fixture
def table(admin):
    """A published table; its publication and a slot share its name."""
    name = f"replicated_{os.getpid()}_{next(names)}"
    with admin.cursor() as cur:
        cur.execute(f"CREATE TABLE {name} (id int); CREATE PUBLICATION {name} FOR TABLE {name}")
        yield name
        wait_until(lambda: not active(admin, name))
        cur.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
        )
        cur.execute(f"DROP PUBLICATION {name}; DROP TABLE {name}")


@pytest.fixture
def cur(dsn, table):
    conn = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection)
    cur = conn.cursor()
    cur.create_replication_slot(table, output_plugin="pgoutput")
    yield cur
    conn.close()


def options(table):
    return {"slot_name": table, "options": {"proto_version": 1, "publication_names": table}}


def active(admin, table):
    with admin.cursor() as cur:
        cur.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (table,))
        row = cur.fetchone()
        return row is not None and row[0]


def insert(admin, table, *numbers):
    with admin.cursor() as cur:
        for number in numbers:
            cur.execute(f"INSERT INTO {table} VALUES (%s)", (number,))


def inserted(message):
    """The number of an INSERT message of pgoutput, else None: I, relation, N, columns, then t, length, text."""
    payload = message.payload
    return int(payload[8 + 5 :]) if payload[:1] == b"I" else None


def usable(conn):
    with conn.cursor() as cur:
        cur.execute("IDENTIFY_SYSTEM")
        return len(cur.fetchall()) == 1


def test_classes(cur):
    assert isinstance(cur, psycopg2.extras.ReplicationCursor)
    assert isinstance(cur, ReplicationCursor)
    assert isinstance(cur.connection, greenpg.Connection)
    assert cur.fileno() == cur.connection.fileno()


def test_consume_stream(admin, cur, table):
    cur.start_replication(**options(table))
    insert(admin, table, 1, 2, 3)
    numbers = []

    def consume(message):
        assert isinstance(message, psycopg2.extras.ReplicationMessage)
        assert message.cursor is cur
        if (number := inserted(message)) is not None:
            numbers.append(number)
            cur.send_feedback(flush_lsn=message.data_start)
            if number == 3:
                raise StopReplication

    with pytest.raises(StopReplication):
        cur.consume_stream(consume)
    assert numbers == [1, 2, 3]
    assert cur.wal_end > 0
    assert cur.io_timestamp >= cur.feedback_timestamp
    with pytest.raises(psycopg2.ProgrammingError, match="not replicating, call start_replication first"):
        cur.consume_stream(consume)
    cur.stop_replication()
    assert usable(cur.connection)


def test_consume_stream_checks(cur, table):
    with pytest.raises(psycopg2.ProgrammingError, match="not replicating"):
        cur.consume_stream(print)
    cur.start_replication(**options(table))
    with pytest.raises(psycopg2.ProgrammingError, match=">= 1"):
        cur.consume_stream(print, keepalive_interval=0.5)
    with pytest.raises(psycopg2.ProgrammingError, match="int or float"):
        cur.consume_stream(print, keepalive_interval="1")


def test_replication_stream(admin, cur, table):
    insert(admin, table, 1, 2, 3)
    numbers = []
    for message in cur.replication_stream(**options(table)):
        if (number := inserted(message)) is not None:
            numbers.append(number)
            if number == 3:
                break
    assert numbers == [1, 2, 3]
    assert usable(cur.connection)
    wait_until(lambda: not active(admin, table))
    with pytest.raises(psycopg2.NotSupportedError, match="make a new connection"):
        cur.start_replication(**options(table))
    with pytest.raises(psycopg2.ProgrammingError, match="not replicating"):
        cur.replication_stream()


def test_confirmed_messages_do_not_come_again(dsn, admin, cur, table):
    insert(admin, table, 1)
    for message in cur.replication_stream(**options(table)):
        if message.payload[:1] == b"C":
            cur.send_feedback(flush_lsn=message.wal_end, force=True)
            break
    insert(admin, table, 2)
    conn = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection)
    for message in conn.cursor().replication_stream(**options(table)):
        number = inserted(message)
        if number is not None:
            assert number == 2
            break
    conn.close()


def test_exception_in_the_loop(cur, admin, table):
    insert(admin, table, 1)
    with pytest.raises(ZeroDivisionError):
        for _ in cur.replication_stream(**options(table)):
            raise ZeroDivisionError
    assert usable(cur.connection)


def test_read_message(admin, cur, table):
    cur.start_replication(**options(table))
    assert cur.read_message() is None
    insert(admin, table, 7)
    numbers = []

    def seven_came():
        while message := cur.read_message():
            numbers.append(inserted(message))
        return 7 in numbers

    wait_until(seven_came)
    assert extensions.get_wait_callback() is not None


def test_wait_callback_is_there_after_errors(cur, table):
    callback = extensions.get_wait_callback()
    with pytest.raises(psycopg2.DatabaseError):
        cur.read_message()  # no stream
    assert extensions.get_wait_callback() is callback
    for wrong in (7, None):
        with pytest.raises(TypeError):
            cur.start_replication_expert(wrong)
        assert extensions.get_wait_callback() is callback
    with pytest.raises(psycopg2.ProgrammingError):
        cur.start_replication_expert("START_REPLICATION nonsense")
    with pytest.raises(psycopg2.ProgrammingError, match="status_interval"):
        cur.start_replication(**options(table), status_interval=0.5)
    assert extensions.get_wait_callback() is callback
    cur.close()
    with pytest.raises(psycopg2.InterfaceError):
        cur.start_replication_expert("START_REPLICATION")
    assert extensions.get_wait_callback() is callback


def test_missing_slot_and_recovery(cur, table):
    with pytest.raises(psycopg2.errors.UndefinedObject):
        cur.start_replication(slot_name="nowhere")
    assert usable(cur.connection)
    cur.start_replication(**options(table))


def test_expert_takes_composed_sql(cur, table):
    cur.start_replication_expert(
        sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})").format(
            sql.Identifier(table), sql.Literal(table)
        ),
        decode=False,
    )
    cur.stop_replication()
    assert usable(cur.connection)


def test_physical(dsn, admin):
    conn = psycopg2.connect(dsn, connection_factory=PhysicalReplicationConnection)
    cur = conn.cursor()
    cur.execute("IDENTIFY_SYSTEM")
    start = cur.fetchone()[2]
    with admin.cursor() as other:
        other.execute("SELECT pg_logical_emit_message(true, 'greenpg', 'some WAL')")
    for message in cur.replication_stream(start_lsn=start, options=None):
        assert message.data_size > 0
        break
    conn.close()


def test_asynchronous_connection(dsn, admin, table):
    conn = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection, async_=True)
    psycopg2.extras.wait_select(conn)
    cur = conn.cursor()
    cur.create_replication_slot(table, output_plugin="pgoutput")
    psycopg2.extras.wait_select(conn)
    cur.start_replication(**options(table))
    psycopg2.extras.wait_select(conn)
    insert(admin, table, 1)
    with pytest.raises(psycopg2.ProgrammingError, match="asynchronous mode"):
        cur.consume_stream(print)
    wait_until(cur.read_message)
    conn.close()


@green_only
@pytest.mark.parametrize("way", ["consume_stream", "replication_stream"])
def test_kill(admin, cur, table, way):
    """Others run while the consumer waits; a kill ends it."""
    seen = []
    cur.start_replication(**options(table))

    def consume():
        if way == "consume_stream":
            cur.consume_stream(seen.append)
        else:
            for message in cur.replication_stream():
                seen.append(message)

    task = Task(consume)
    hub().sleep(0.02)
    insert(admin, table, 1)
    wait_until(lambda: seen)
    wait_until(lambda: is_waiting(cur.connection))
    with pytest.raises(ConnectionInUse):
        cur.execute("IDENTIFY_SYSTEM")
    with pytest.raises(ConnectionInUse):
        cur.read_message()
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    if way == "consume_stream":
        cur.stop_replication()
    assert usable(cur.connection)
    assert not active(admin, table)


@green_only
def test_feedback_is_sent_without_messages(admin, cur, table):
    cur.start_replication(**options(table), status_interval=1)
    task = Task(cur.consume_stream, print)
    wait_until(lambda: is_waiting(cur.connection))
    first = cur.feedback_timestamp
    wait_until(lambda: cur.feedback_timestamp > first)
    assert task.error is None
    task.throw(Killed())
    task.join()


@green_only
def test_lost_connection(admin, cur, table):
    cur.start_replication(**options(table))
    task = Task(lambda: list(cur.replication_stream()))
    wait_until(lambda: is_waiting(cur.connection))
    with admin.cursor() as other:
        other.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", (table,)
        )
    with pytest.raises(psycopg2.Error):
        task.result()
    assert not is_waiting(cur.connection)
    cur.connection.close()


@green_only
def test_others_run_during_a_flood(guard, admin, cur, table):
    with admin.cursor() as other:
        other.execute(f"INSERT INTO {table} SELECT generate_series(1, 50000)")
    turns = 0
    over = False

    def count():
        nonlocal turns
        while not over:
            turns += 1
            hub().sleep(0)

    counter = Task(count)
    numbers = 0
    for message in cur.replication_stream(**options(table)):
        numbers += inserted(message) is not None
        if numbers == 50000:
            break
    over = True
    counter.join()
    assert turns > 100


# -- feedback


@pytest.fixture
def impatient(admin):
    """The server ends streams of which it hears nothing for 2 s."""
    with admin.cursor() as cur:
        cur.execute("ALTER SYSTEM SET wal_sender_timeout = '2s'")
        cur.execute("SELECT pg_reload_conf()")
        yield
        cur.execute("ALTER SYSTEM RESET wal_sender_timeout")
        cur.execute("SELECT pg_reload_conf()")


def confirmed(admin, table):
    with admin.cursor() as cur:
        cur.execute("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s", (table,))
        return int(cur.fetchone()[0])


@pytest.mark.parametrize("way", ["stream", "consume"])
def test_a_slow_handler_keeps_its_stream(cur, table, admin, impatient, way):
    got = []

    def handle(message):
        if inserted(message) is not None:
            got.append(inserted(message))
            if len(got) == 1:
                hub().sleep(3)  # an HTTP call
            cur.send_feedback(flush_lsn=message.data_start)
            if len(got) == 2:
                raise StopReplication

    def consume():
        cur.start_replication(**options(table), status_interval=1)
        if way == "consume":
            cur.consume_stream(handle)
        for message in cur.replication_stream():
            handle(message)

    task = Task(consume)
    wait_until(lambda: active(admin, table))
    insert(admin, table, 1, 2)
    with pytest.raises(StopReplication):
        task.result()
    assert got == [1, 2]


@pytest.mark.parametrize("way", ["break", "exception", "consume", "killed"])
def test_feedback_that_was_given_is_sent_when_the_stream_is_left(cur, table, admin, way):
    given = []

    def handle(message):
        cur.send_feedback(flush_lsn=message.data_start)
        given.append(message.data_start)
        if inserted(message) == 3:
            if way == "killed":
                hub().sleep(0)
                raise Killed
            if way != "break":
                raise StopReplication

    def consume():
        cur.start_replication(**options(table))
        if way == "consume":
            cur.consume_stream(handle)
        for message in cur.replication_stream():
            handle(message)
            if inserted(message) == 3:
                break

    task = Task(consume)
    wait_until(lambda: active(admin, table))
    insert(admin, table, 1, 2, 3)
    task.join()
    wait_until(lambda: confirmed(admin, table) >= given[-1])
    cur.connection.close()


def test_feedback_is_sent_when_there_is_nothing_else_to_do(cur, table, admin):
    given = []

    def consume():
        for message in cur.replication_stream(**options(table)):
            cur.send_feedback(flush_lsn=message.data_start)
            given.append(message.data_start)

    task = Task(consume)
    wait_until(lambda: active(admin, table))
    insert(admin, table, 1, 2)
    wait_until(lambda: len(given) >= 6)
    wait_until(lambda: confirmed(admin, table) >= given[-1], 3)
    cur.connection.close()
    task.join()
