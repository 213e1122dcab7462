"""Large objects in green mode."""

import os

import psycopg2
import pytest
from kit import Killed, Task, is_waiting, run_all, wait_until
from psycopg2 import extensions

import greenpg
from greenpg.connection.lobject import CHUNK_BYTES, LargeObject
from greenpg.errors import ConnectionInUse
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


def test_write_and_read_in_the_same_transaction(conn):
    lo = conn.lobject()
    assert isinstance(lo, LargeObject)
    assert isinstance(lo, extensions.lobject)
    assert (lo.mode, lo.closed) == ("wt", False)
    assert lo.write("grün ☃") == 9
    assert lo.write(b" and bytes") == 10
    assert (conn.status, conn.get_transaction_status()) == (
        extensions.STATUS_BEGIN,
        extensions.TRANSACTION_STATUS_INTRANS,
    )
    lo.seek(0)
    assert lo.read(5) == "grün"
    assert lo.read() == " ☃ and bytes"
    assert lo.tell() == 19
    lo.close()
    assert lo.closed
    binary = conn.lobject(lo.oid, "rb")
    assert binary.mode == "rb"
    assert binary.read(3) == "grü".encode()[:3]
    assert binary.read(0) == b""
    assert binary.seek(-5, 2) == 14
    assert binary.seek(1, 1) == 15
    assert binary.read(100) == b"ytes"
    conn.rollback()
    with pytest.raises(psycopg2.OperationalError, match="does not exist") as caught:
        conn.lobject(lo.oid)
    assert caught.value.pgcode == "42704"
    assert isinstance(caught.value.__cause__, psycopg2.errors.UndefinedObject)
    assert not conn.closed


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_sizes_around_the_chunks(conn, size):
    data = os.urandom(size)
    lo = conn.lobject(0, "wb")
    assert lo.write(data) == size
    lo.seek(0)
    assert lo.read() == data
    lo.seek(1)
    assert lo.read(size) == data[1:]
    lo.seek(0)
    assert lo.read(CHUNK_BYTES) == data[:CHUNK_BYTES]


def test_offsets_beyond_4_gigabytes(conn):
    lo = conn.lobject(0, "rwb")
    far = 5 * 2**30
    lo.truncate(far)
    assert lo.seek(0, 2) == far
    lo.write(b"end")
    assert lo.tell() == far + 3
    lo.seek(far)
    assert lo.read() == b"end"
    lo.truncate()
    assert lo.seek(0, 2) == 0


def test_files(conn, tmp_path):
    data = os.urandom(CHUNK_BYTES + 100)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    lo = conn.lobject(0, "wb", 0, str(source))
    assert lo.read() == data
    lo.seek(7)
    lo.export(str(target))
    assert target.read_bytes() == data
    assert lo.tell() == 7
    with pytest.raises(psycopg2.OperationalError, match="could not open file"):
        conn.lobject(new_file=str(tmp_path / "missing"))
    with pytest.raises(psycopg2.OperationalError, match="could not open file"):
        lo.export(str(tmp_path / "missing" / "file"))
    assert lo.tell() == 7


def test_modes(conn):
    oid = conn.lobject().oid
    for mode, shown in {
        "": "rt",
        None: "rt",
        "r": "rt",
        "w": "wt",
        "rw": "rwt",
        "rwb": "rwb",
        "b": "rb",
        "n": "n",
    }.items():
        lo = conn.lobject(oid, mode)
        assert lo.mode == shown
        assert lo.closed is (shown == "n")
    for mode in ("x", "rbx", "wr"):
        with pytest.raises(ValueError, match="bad mode"):
            conn.lobject(oid, mode)
    for wrong in ("oid", 1.5):
        with pytest.raises(TypeError):
            conn.lobject(wrong)


def test_chosen_oid(conn):
    lo = conn.lobject()
    oid = lo.oid
    lo.unlink()
    assert lo.closed
    assert conn.lobject(0, "w", oid).oid == oid
    with pytest.raises(psycopg2.OperationalError, match="duplicate key"):
        conn.lobject(0, "w", oid)
    assert not conn.closed


@pytest.mark.parametrize("ending", ["commit", "rollback", "reset"])
def test_after_the_transaction(conn, ending):
    lo = conn.lobject()
    oid = lo.oid
    getattr(conn, ending)()
    for call in (lo.read, lo.tell, lo.truncate, lambda: lo.write(b""), lambda: lo.seek(0)):
        with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
            call()
    lo.close()
    if ending == "commit":
        lo.unlink()  # in a transaction of its own
        assert not lo.closed  # psycopg2's isn't, either
        conn.commit()
        with pytest.raises(psycopg2.OperationalError, match="does not exist"):
            conn.lobject(oid)


@pytest.mark.parametrize("ending", ["tpc_prepare", "tpc_commit", "tpc_rollback"])
def test_after_an_end_that_was_refused(conn, ending):
    lo = conn.lobject()
    with pytest.raises(psycopg2.ProgrammingError, match="two-phase transaction"):
        getattr(conn, ending)()
    assert lo.write("goes on") == 7 and lo.tell() == 7
    with conn.transaction(), pytest.raises(psycopg2.ProgrammingError):
        conn.commit()  # within a block
    assert lo.tell() == 7


def test_after_close(conn):
    lo = conn.lobject()
    lo.close()
    lo.close()
    for call in (lo.read, lo.tell, lo.truncate, lambda: lo.write(b""), lambda: lo.seek(0)):
        with pytest.raises(psycopg2.InterfaceError, match="lobject already closed"):
            call()
    other = conn.lobject(lo.oid)
    conn.close()
    other.close()
    assert other.closed
    with pytest.raises(psycopg2.InterfaceError):
        conn.lobject()


def test_autocommit(conn):
    conn.autocommit = True
    with pytest.raises(psycopg2.ProgrammingError, match="outside of transactions"):
        conn.lobject()
    conn.cursor().execute("BEGIN")  # psycopg2 doesn't know of it
    with pytest.raises(psycopg2.ProgrammingError, match="outside of transactions"):
        conn.lobject()
    conn.cursor().execute("ROLLBACK")
    with conn.transaction():
        lo = conn.lobject()
        lo.write("x")
    with pytest.raises(psycopg2.ProgrammingError, match="outside of transactions"):
        lo.read()


def test_two_phase(conn):
    conn.tpc_begin("greenpg-lobject")
    lo = conn.lobject()
    conn.tpc_prepare()
    with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
        lo.read()
    with pytest.raises(psycopg2.ProgrammingError, match="prepared two-phase"):
        conn.lobject()
    conn.tpc_rollback()


def test_factory(conn):
    class Counted(extensions.lobject):
        opened = 0

        def __init__(self, *args):
            Counted.opened += 1
            super().__init__(*args)

        def read_all(self):
            self.seek(0)
            return super().read()

    lo = conn.lobject(lobject_factory=Counted)
    lo.write("abc")
    assert isinstance(lo, Counted)
    assert isinstance(lo, LargeObject)
    assert lo.read_all() == "abc"
    assert Counted.opened == 1
    with pytest.raises(TypeError, match="must be subclass"):
        conn.lobject(lobject_factory=lambda *args: object())


def test_whatever_is_registered_for_bytea(conn):
    number = extensions.new_type((17,), "SHOUTING", lambda value, cur: "no")
    extensions.register_type(number, conn)
    with conn.cursor() as cur:
        cur.execute("SET bytea_output = 'escape'")
    lo = conn.lobject(0, "wb")
    lo.write(bytes(range(256)))
    lo.seek(0)
    assert lo.read() == bytes(range(256))


def test_wrong_data(conn):
    lo = conn.lobject()
    with pytest.raises(TypeError, match="requires a string"):
        lo.write(7)


@green_only
def test_others_run_and_are_refused(dsn, conn):
    data = os.urandom(4 * CHUNK_BYTES)

    def store():
        own = greenpg.connect(dsn)
        lo = own.lobject(0, "wb")
        lo.write(data)
        lo.seek(0)
        assert lo.read() == data
        own.rollback()
        own.close()
        return True

    assert run_all([store] * 3) == [True] * 3
    lo = conn.lobject(0, "wb")
    task = Task(lo.write, data)
    wait_until(lambda: is_waiting(conn))
    for call in (conn.lobject, lo.read, conn.commit):
        with pytest.raises(ConnectionInUse):
            call()
    assert task.result() == len(data)


@green_only
def test_kill_while_writing(conn):
    lo = conn.lobject(0, "wb")
    task = Task(lambda: [lo.write(os.urandom(CHUNK_BYTES)) for _ in range(1000)])
    wait_until(lambda: is_waiting(conn))
    hub().sleep(0.05)
    killed = Killed()
    task.throw(killed)
    task.join()
    assert task.error is killed
    assert not conn.closed
    conn.rollback()
    conn.lobject().write("goes on")


def test_unpatched_is_psycopg2s_own(dsn, hub_name):
    greenpg.unpatch()
    callback = extensions.get_wait_callback()  # eventlet.monkey_patch() brings one
    extensions.set_wait_callback(None)
    try:
        conn = greenpg.connect(dsn)
        lo = conn.lobject()
        assert type(lo) is extensions.lobject
        lo.write("x")
        lo.close()
        conn.close()
    finally:
        extensions.set_wait_callback(callback)
        greenpg.patch(hub_name)


def test_export_of_a_closed_connections_object(conn, tmp_path):
    """psycopg2 asks libpq first."""
    lobject = conn.lobject()
    conn.close()
    with pytest.raises(psycopg2.OperationalError, match="connection pointer is NULL"):
        lobject.export(str(tmp_path / "file"))
