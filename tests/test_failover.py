"""Another server becomes the primary: a real one and its streaming replica."""

import time

import psycopg2
import psycopg2.errors
import pytest
from cluster import Pair, ask
from kit import Task, needs_riding, run_all, wait_until
from proxy import Proxy
from psycopg2 import extensions

import greenpg
from greenpg import errors
from greenpg.connection.connect import silent
from greenpg.connection.connect.route import Host
from greenpg.hubs import hub

on_one_hub = pytest.mark.only_hub("gevent")


@pytest.fixture(scope="module")
def pair():
    with Pair() as pair:
        ask(pair.primary, "CREATE TABLE written (n int)")
        yield pair


@pytest.fixture
def own_pair():
    with Pair() as pair:
        ask(pair.primary, "CREATE TABLE written (n int)")
        yield pair


@pytest.fixture
def read_only_primary(pair):
    """Makes the primary refuse to write, until the end of the test."""

    def refuse():
        ask(pair.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        ask(pair.primary, "SELECT pg_reload_conf()")
        wait_until(lambda: ask(pair.primary, "SHOW default_transaction_read_only") == ("on",))

    yield refuse
    conn = psycopg2.connect(pair.primary.dsn)
    conn.set_session(readonly=False, autocommit=True)
    conn.cursor().execute("ALTER SYSTEM RESET default_transaction_read_only")
    conn.cursor().execute("SELECT pg_reload_conf()")
    conn.close()
    wait_until(lambda: ask(pair.primary, "SHOW default_transaction_read_only") == ("off",))


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    silent._silent_until.clear()
    silent._waited_for.clear()


def port_of(pool):
    return pool.fetchval("SELECT inet_server_port()")


# -- a server that takes no writes any more


def test_one_error_tells_the_pool(make_pool, pair, read_only_primary):
    """Of five connections one fails; those that are lent at that time are looked at when they come back, also if
    somebody waits for them."""
    dsn = pair.dsn(target_session_attrs="read-write")
    pool = make_pool(dsn, min_size=5)
    pool.wait()
    lent = [pool.getconn() for _ in range(4)]
    read_only_primary()
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        pool.execute("INSERT INTO written VALUES (1)")
    waiting = [Task(lambda: pool.fetchval("SELECT pg_is_in_recovery()", timeout=1)) for _ in range(3)]
    hub().sleep(0.02)
    pool.conninfo = pair.dsn()  # which leads to the same server: nobody is promoted in this test
    for conn in lent:
        pool.putconn(conn)
    assert [task.result() for task in waiting] == [False] * 3
    assert all(conn.closed for conn in lent)
    assert pool.get_stats()["connections_evicted"] == 5


def test_connections_that_may_write_are_kept(make_pool, pair):
    """The error was of the session's own making: the others are asked, and stay."""
    pool = make_pool(pair.dsn(), min_size=3)
    pool.wait()
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute("INSERT INTO written VALUES (1)")
    kept = {slot.conn for slot in pool._core.ledger.slots if slot.conn is not None}
    assert run_all([lambda: pool.fetchval("SELECT 1")] * 6) == [1] * 6
    assert pool.get_stats()["connections_evicted"] == 1
    assert sum(not conn.closed for conn in kept) >= 2
    assert not any(slot.is_doubted for slot in pool._core.ledger.slots if slot.conn is not None)


def test_doubted_connection_that_was_drained_is_not_kept(make_pool, pair):
    pool = make_pool(pair.dsn(), min_size=1)
    conn = pool.getconn()
    from greenpg.pool.failover import doubt_all

    doubt_all(pool._core)
    pool.drain()
    pool.putconn(conn)
    assert conn.closed
    assert pool.fetchval("SELECT 1") == 1


def test_read_only_transaction_evicts_nothing(make_pool, pair):
    pool = make_pool(pair.dsn(), min_size=1)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), pool.transaction(readonly=True) as conn:
        conn.execute("INSERT INTO written VALUES (1)")
    assert pool.get_stats()["connections_evicted"] == 0


@on_one_hub
def test_readers_leave_the_old_primary_when_a_new_one_is_found(make_pool, own_pair):
    pool = make_pool(own_pair.dsn(target_session_attrs="read-write"), min_size=3)
    pool.wait()
    own_pair.promote()
    ask(own_pair.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
    ask(own_pair.primary, "SELECT pg_reload_conf()")
    wait_until(lambda: ask(own_pair.primary, "SHOW default_transaction_read_only") == ("on",))
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        pool.execute("INSERT INTO written VALUES (1)")
    assert set(run_all([lambda: port_of(pool)] * 6)) == {own_pair.replica.port}
    assert pool.run(lambda conn: conn.execute("INSERT INTO written VALUES (1)").rowcount) == 1


# -- hosts that don't answer


def test_several_hosts_have_a_timeout_by_default(server, monkeypatch):
    monkeypatch.setattr("greenpg.connection.connect.route.SEVERAL_HOSTS_TIMEOUT", 0.3)
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy("127.0.0.1", server.port) as silent_one, Proxy("127.0.0.1", server.port) as good:
        silent_one.stall()
        dsn = extensions.make_dsn(
            **parameters | {"host": "127.0.0.1,127.0.0.1", "port": f"{silent_one.port},{good.port}"}
        )
        started = time.monotonic()
        conn = greenpg.connect(dsn)
        assert time.monotonic() - started > 0.25
        assert conn.info.port == good.port
        assert conn.info.dsn_parameters["tcp_user_timeout"] == "10000"
        conn.close()
        # Remembered: the silent one is tried last now.
        conn = greenpg.connect(dsn)
        assert conn.info.port == good.port
        conn.close()
        # And comes back: as the only one that answers.
        silent_one.resume()
        good.refuse()
        conn = greenpg.connect(dsn)
        assert conn.info.port == silent_one.port
        assert not silent._silent_until
        conn.close()


def test_silent_host_is_the_last(monkeypatch):
    a, b, c = (Host(name, "", "5432") for name in "abc")
    silent.note_silent(a)
    assert silent.silent_last([a, b, c]) == [b, c, a]
    until = dict(silent._silent_until)
    silent.note_silent(a)
    assert until == silent._silent_until, "after a while it gets all of its time again"
    silent.note_answer(a)
    assert silent.silent_last([a, b, c]) == [a, b, c]


def test_suspected_host_is_the_last_until_more_is_known(monkeypatch):
    monkeypatch.setattr(silent, "SHORT_TIMEOUT", 0.05)
    a, b = (Host(name, "", "5432") for name in "ab")
    silent.suspect(a)
    assert silent.silent_last([a, b]) == [b, a]
    assert silent.is_suspect(a) and not silent.is_suspect(b)
    hub().sleep(0.06)
    assert silent.silent_last([a, b]) == [a, b], "it has answered"
    silent.suspect(a)
    hub().sleep(0.06)
    silent.note_silent(a)
    assert silent.is_silent(a) and not silent.is_suspect(a)
    silent.suspect(a)
    assert not silent.is_suspect(a), "it's known to be silent"


@on_one_hub
def test_attempt_at_a_suspected_host_proves_nothing(server, monkeypatch):
    """It has less time than hosts have: it isn't remembered for half a minute that this wasn't enough."""
    monkeypatch.setattr(silent, "SHORT_TIMEOUT", 0.3)
    monkeypatch.setattr("greenpg.connection.connect.watch.SHORT_TIMEOUT", 0.4)
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy("127.0.0.1", server.port) as far_away, Proxy("127.0.0.1", server.port) as refusing:
        far_away.stall()
        refusing.refuse()
        ports = f"{far_away.port},{refusing.port}"
        silent.suspect(host := Host("127.0.0.1", "", str(far_away.port)))
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            greenpg.connect(**parameters | {"host": "127.0.0.1,127.0.0.1", "port": ports})
        assert not silent.is_silent(host)


@on_one_hub
def test_one_attempt_at_a_time_waits_for_a_silent_host(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy("127.0.0.1", server.port) as frozen, Proxy("127.0.0.1", server.port) as standby:
        frozen.stall()
        standby.refuse()
        silent.note_silent(Host("127.0.0.1", "", str(frozen.port)))
        ports = {"host": "127.0.0.1,127.0.0.1", "port": f"{frozen.port},{standby.port}"}
        first = Task(lambda: greenpg.connect(**parameters | ports))
        wait_until(lambda: silent._waited_for)
        with pytest.raises(psycopg2.OperationalError, match=f"port {frozen.port} failed: it says nothing"):
            greenpg.connect(**parameters | ports)
        standby.accept()
        conn = greenpg.connect(**parameters | ports)
        assert conn.info.port == standby.port
        conn.close()
        standby.refuse()
        frozen.resume()
        first.result().close()
        greenpg.connect(**parameters | ports).close()


@pytest.mark.usual_times
@on_one_hub
def test_frozen_primary_is_given_up(make_pool, own_pair, monkeypatch):
    """The host of the primary answers nothing, not even a connect; the replica is promoted. No connect_timeout."""
    monkeypatch.setattr("greenpg.connection.connect.route.SEVERAL_HOSTS_TIMEOUT", 0.5)
    monkeypatch.setattr("greenpg.connection.connect.silent.SHORT_TIMEOUT", 0.2)
    monkeypatch.setattr("greenpg.connection.connect.watch.SHORT_TIMEOUT", 0.2)
    with Proxy("127.0.0.1", own_pair.primary.port) as primary, Proxy("127.0.0.1", own_pair.replica.port) as replica:
        dsn = own_pair.dsn(through=[primary, replica], target_session_attrs="read-write")
        pool = make_pool(dsn, min_size=2, max_size=6, statement_deadline=0.3, timeout=20)
        pool.wait()
        primary.stall()
        writers = [Task(lambda: pool.run(write, attempts=50)) for _ in range(2)]
        hub().sleep(0.5)
        own_pair.promote()
        assert [task.result() for task in writers] == [1] * 2
        # What else there is will be asked before it is lent.
        slots = [slot for slot in pool._core.ledger.slots if slot.conn and not slot.is_doubted]
        assert {slot.conn.info.port for slot in slots} == {replica.port}


def write(conn):
    try:
        return conn.execute("INSERT INTO written VALUES (2)").rowcount
    except errors.DeadlineExceeded:
        conn.close()  # the server is silent
        raise psycopg2.OperationalError("silent") from None


# -- pool.run()


def test_run_repeats_after_a_lost_connection(make_pool, dsn, admin):
    pool = make_pool(dsn, min_size=1)
    lost = []

    def work(conn):
        if not lost:
            lost.append(conn)
            admin.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
        return conn.execute("SELECT 7").fetchone()

    assert pool.run(work) == (7,)
    assert lost[0].closed


def test_run_does_not_repeat_a_commit_in_doubt(make_pool, through_proxy):
    proxy, dsn = through_proxy
    pool = make_pool(dsn, min_size=1)
    calls = []

    def work(conn):
        calls.append(conn)
        conn.execute("SELECT 1")
        proxy.cut()
        hub().sleep(0.05)

    with pytest.raises(psycopg2.Error) as caught:
        pool.run(work)
    assert len(calls) == 1
    assert errors.commit_outcome(caught.value) == errors.UNKNOWN


def test_run_of_a_read_only_transaction_is_not_repeated(make_pool, pair):
    pool = make_pool(pair.dsn(), min_size=1)
    calls = []
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        pool.run(lambda conn: (calls.append(1), conn.execute("INSERT INTO written VALUES (1)")), readonly=True)
    assert len(calls) == 1


# -- COMMITs in doubt


class Doubt:
    """Transactions whose COMMIT waits for a standby that isn't there, and whose client loses the connection then."""

    def __init__(self, pair):
        self.pair = pair
        self.wait_for("nobody")

    def wait_for(self, standby):
        ask(self.pair.primary, f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        ask(self.pair.primary, "SELECT pg_reload_conf()")
        while not standby and self.is_waiting():  # the checkpointer has to see it, too
            hub().sleep(0.01)

    def is_waiting(self):
        return ask(self.pair.primary, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") != (0,)

    def start(self, work):
        """A task that commits, and waits in that; again until the checkpointer has seen that it has to."""
        while True:
            task = Task(work)
            wait_until(lambda task=task: task.is_over or self.is_waiting())
            if not task.is_over:
                return task
            task.result()
            ask(self.pair.primary, "SET synchronous_commit = local; TRUNCATE written")

    def commit(self, pool, proxy, number):
        """The exception of a COMMIT that was cut."""

        def work():
            with pool.transaction(settle=True) as conn:
                conn.execute("INSERT INTO written VALUES (%s)", (number,))

        task = self.start(work)
        proxy.cut()
        task.join()
        assert errors.commit_outcome(task.error) == errors.UNKNOWN
        return task.error


def count(server, number):
    return ask(server, f"SELECT count(*) FROM written WHERE n = {number}")[0]


@pytest.fixture
def doubt(make_pool, request):
    """With the pair of servers that the test names."""
    found = request.getfixturevalue("own_pair" if "own_pair" in request.fixturenames else "pair")
    with Proxy("127.0.0.1", found.primary.port) as proxy:
        pool = make_pool(found.dsn(through=[proxy]), min_size=1)
        pool.fetchval("SELECT 1")
        doubt = Doubt(found)
        yield doubt, pool, proxy
        if found.primary.is_running:
            doubt.wait_for("")


@needs_riding
def test_transaction_tells_its_id_with_its_first_statement(make_pool, pair):
    pool = make_pool(pair.dsn(application_name="mine"), min_size=1)
    pool.run(lambda conn: conn.execute("SELECT 1"))
    with pool.transaction(settle=True) as conn:
        conn.execute("INSERT INTO written VALUES (3)")
        name = conn.info.parameter_status("application_name")
        assert name.split()[:2] == ["greenpg", conn.execute("SELECT pg_current_xact_id()::text").fetchone()[0]]
        with pytest.raises(psycopg2.errors.SyntaxError) as caught, conn.transaction():
            conn.execute("nonsense")
    assert caught.value.diag.statement_position == "1"
    assert pool.fetchval("SHOW application_name") == "mine"
    assert not conn._wants_identity
    with pytest.raises(psycopg2.errors.UndefinedColumn) as caught, pool.transaction(settle=True) as conn:
        conn.execute("SELECT nowhere")
    assert caught.value.diag.statement_position == "8"
    assert "LINE 1: SELECT nowhere" in str(caught.value)


def test_settling_needs_a_commit_in_doubt(make_pool, pair):
    pool = make_pool(pair.dsn(), min_size=1)
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught, pool.transaction(settle=True) as conn:
        conn.execute("CREATE TEMP TABLE one (n int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        conn.execute("INSERT INTO one VALUES (1), (1)")
    assert errors.commit_outcome(caught.value, ask=pool) == errors.ROLLED_BACK
    assert errors.commit_outcome(LookupError(), ask=pool) is None


@on_one_hub
def test_in_progress_then_committed(pair, doubt):
    doubt, pool, proxy = doubt
    error = doubt.commit(pool, proxy, 11)
    assert errors.commit_outcome(error, ask=pool, timeout=0.1) == errors.UNKNOWN
    doubt.wait_for("")
    assert errors.commit_outcome(error, ask=pool) == errors.COMMITTED
    assert count(pair.primary, 11) == 1


@on_one_hub
def test_committed_and_taken_over_by_the_replica(own_pair, doubt, make_pool):
    doubt, pool, proxy = doubt
    error = doubt.commit(pool, proxy, 1)
    wait_until(lambda: count(own_pair.replica, 1) == 1)
    own_pair.primary.crash()
    own_pair.promote()
    other = make_pool(own_pair.replica.dsn, min_size=1)
    assert errors.commit_outcome(error, ask=other) == errors.COMMITTED


@on_one_hub
@pytest.mark.parametrize("is_id_used_again", [False, True])
def test_lost_with_the_primary(own_pair, doubt, make_pool, is_id_used_again):
    """The replica knows nothing of it, or knows another transaction by that id, which it has committed."""
    doubt, pool, proxy = doubt
    own_pair.replica.stop()
    error = doubt.commit(pool, proxy, 1)
    own_pair.primary.crash()
    own_pair.replica.start()
    own_pair.promote()
    other = make_pool(own_pair.replica.dsn, min_size=1)
    if is_id_used_again:
        xid = error._greenpg_transaction.xid
        while int(other.fetchval("SELECT pg_current_xact_id()::text")) <= int(xid):
            pass
        assert other.fetchval("SELECT pg_xact_status(%s::text::xid8)", (xid,)) == "committed"
    assert errors.commit_outcome(error, ask=other) == errors.ROLLED_BACK
    assert count(own_pair.replica, 1) == 0


@on_one_hub
def test_crash_of_the_only_server(pair, doubt):
    """The COMMIT was written: the recovery brings it."""
    doubt, pool, proxy = doubt
    error = doubt.commit(pool, proxy, 12)
    pair.primary.crash()
    pair.primary.start()
    doubt.wait_for("")
    assert errors.commit_outcome(error, ask=pool) == errors.COMMITTED
    assert count(pair.primary, 12) == 1


@on_one_hub
def test_a_standby_cannot_tell(pair, doubt, make_pool):
    doubt, pool, proxy = doubt
    error = doubt.commit(pool, proxy, 1)
    standby = make_pool(pair.replica.dsn, min_size=1)
    assert errors.commit_outcome(error, ask=standby, timeout=0.1) == errors.UNKNOWN


@on_one_hub
def test_run_settles_by_itself(pair, doubt):
    doubt, pool, proxy = doubt
    calls = []

    def work(conn):
        calls.append(1)
        conn.execute("INSERT INTO written VALUES (5)")
        return "done"

    task = doubt.start(lambda: pool.run(work, settle=True))
    calls[:] = calls[-1:]
    proxy.cut()
    hub().sleep(0.1)
    doubt.wait_for("")
    assert task.result() == "done"
    assert calls == [1]
    assert count(pair.primary, 5) == 1
