"""`greenpg.Cluster` on a primary and a streaming replica."""

import io

import psycopg2
import psycopg2.errors
import pytest
from cluster import Pair, ask
from kit import Killed, Task, wait_until
from proxy import Proxy

import greenpg
from greenpg import errors
from greenpg.cluster.nodes import PrimaryLog
from greenpg.cluster.tokens import position_of, token_of
from greenpg.hubs import hub

on_one_hub = pytest.mark.only_hub("gevent")


@pytest.fixture(scope="module")
def pair():
    with Pair(settings={"max_prepared_transactions": 2}) as pair:
        ask(pair.primary, "CREATE TABLE counter (k int PRIMARY KEY, n int)")
        wait_until(lambda: ask(pair.replica, "SELECT to_regclass('counter')") != (None,))
        yield pair


@pytest.fixture
def make_cluster(pair):
    clusters = []

    def make(conninfo=None, **options):
        options = {"min_size": 1, "max_size": 4, "interval": 0.05} | options
        cluster = greenpg.Cluster(conninfo or pair.dsn(), **options)
        clusters.append(cluster)
        cluster.open(wait=True)
        return cluster

    yield make
    for cluster in clusters:
        cluster.close()
        pools = [cluster.primary, *(node.pool for node in cluster._topology.nodes)]
        assert not any(pool._core.ledger.slots for pool in pools), "a slot is lost"


def port(source, **options):
    return source.fetchval("SELECT inet_server_port()", **options)


def block_port(block):
    with block as entered:
        return entered.execute("SELECT inet_server_port()").fetchone()[0]


# -- who serves what


def test_several_hosts_have_their_own_timeouts(make_cluster, pair):
    """Where nothing is said of it: so a host that was silent holds the primary's pool up for a second only."""
    cluster = make_cluster()
    assert "connect_timeout" not in cluster.primary.conninfo
    assert all("connect_timeout=3" in node.pool.conninfo for node in cluster._topology.nodes)
    assert "connect_timeout=7" in make_cluster(pair.dsn(connect_timeout=7)).primary.conninfo


def test_writes_go_to_the_primary_and_reads_to_a_replica(make_cluster, pair):
    cluster = make_cluster()
    assert port(cluster) == port(cluster.primary) == pair.primary.port
    assert port(cluster, readonly=True) == port(cluster.replica) == pair.replica.port
    assert block_port(cluster.transaction()) == pair.primary.port
    assert block_port(cluster.transaction(readonly=True)) == pair.replica.port
    assert block_port(cluster.replica.connection()) == pair.replica.port
    with cluster.cursor(readonly=True) as cur:
        cur.execute("SELECT pg_is_in_recovery()")
        assert cur.fetchone() == (True,)
    assert cluster.run(lambda conn: block_of(conn)) == pair.primary.port
    assert cluster.run(lambda conn: block_of(conn), readonly=True) == pair.replica.port
    assert [(node["host"], node["role"], node["in_rotation"]) for node in cluster.nodes] == [
        (f"127.0.0.1:{pair.primary.port}", "primary", False),
        (f"127.0.0.1:{pair.replica.port}", "replica", True),
    ]


def block_of(conn):
    return conn.execute("SELECT inet_server_port()").fetchone()[0]


def test_replicas_refuse_to_write(make_cluster):
    cluster = make_cluster()
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), cluster.transaction(readonly=True) as conn:
        conn.execute("INSERT INTO counter VALUES (0, 0)")
    (replica,) = [node for node in cluster._topology.nodes if node.role == "replica"]
    assert replica.pool.get_stats()["connections_evicted"] == 0


@pytest.mark.parametrize("strategy", ["round-robin", "least-busy"])
def test_several_replicas_share_the_work(make_cluster, pair, strategy):
    """The same replica behind two names."""
    with Proxy("127.0.0.1", pair.replica.port) as first, Proxy("127.0.0.1", pair.replica.port) as second:
        hosts = f"{pair.primary.port},{first.port},{second.port}"
        cluster = make_cluster(pair.dsn(host="127.0.0.1,127.0.0.1,127.0.0.1", port=hosts), strategy=strategy)
        taken = []

        def read():
            with cluster.transaction(readonly=True) as conn:
                taken.append(conn.info.port)
                wait_until(lambda: len(taken) == 4)

        tasks = []
        for number in range(1, 5):
            tasks.append(Task(read))
            wait_until(lambda number=number: len(taken) >= number)  # native threads would choose at the same time
        for task in tasks:
            task.result()
        assert sorted(taken) == sorted([first.port, second.port] * 2)


# -- who leaves, and comes back


def test_replica_that_is_down_leaves_and_comes_back(make_cluster, pair):
    with Proxy("127.0.0.1", pair.primary.port) as primary, Proxy("127.0.0.1", pair.replica.port) as replica:
        cluster = make_cluster(pair.dsn(through=[primary, replica]))
        assert block_port(cluster.transaction(readonly=True)) == pair.replica.port
        replica.refuse()
        replica.cut()
        hub().sleep(0.02)  # the proxy is another process
        assert block_port(cluster.transaction(readonly=True)) == pair.primary.port
        wait_until(lambda: cluster.nodes[1]["role"] is None)
        assert cluster.nodes[1]["error"]
        assert port(cluster, readonly=True) == pair.primary.port
        replica.accept()
        wait_until(lambda: cluster.nodes[1]["in_rotation"])
        assert port(cluster, readonly=True) == pair.replica.port


def test_replica_that_lags_leaves_and_comes_back(make_cluster, pair, paused):
    cluster = make_cluster(max_lag=0.2)
    paused.pause_replay()
    cluster.execute("INSERT INTO counter VALUES (1, 1)")
    cluster.token = None
    assert port(cluster, readonly=True) == pair.replica.port, "it isn't far behind"
    wait_until(lambda: not cluster.nodes[1]["in_rotation"])
    assert cluster.nodes[1]["lag"] > 0.2
    assert cluster.nodes[1]["role"] == "replica"
    assert port(cluster, readonly=True) == pair.primary.port
    paused.resume_replay()
    wait_until(lambda: cluster.nodes[1]["in_rotation"])
    assert port(cluster, readonly=True) == pair.replica.port


def test_without_fallback_a_reader_waits(make_cluster, pair):
    with Proxy("127.0.0.1", pair.primary.port) as primary, Proxy("127.0.0.1", pair.replica.port) as replica:
        replica.refuse()
        cluster = make_cluster(pair.dsn(through=[primary, replica]), fallback=False)
        with pytest.raises(greenpg.PoolTimeout, match="no replica can be read from"):
            port(cluster, readonly=True, timeout=0.1)
        reader = Task(lambda: port(cluster, readonly=True))
        replica.accept()
        assert reader.result() == pair.replica.port


# -- one's own writes


def write(cluster, k, n):
    cluster.execute("INSERT INTO counter VALUES (%s, %s) ON CONFLICT (k) DO UPDATE SET n = EXCLUDED.n", (k, n))


def read(cluster, k):
    return cluster.fetchval("SELECT n FROM counter WHERE k = %s", (k,), readonly=True)


def test_who_has_written_reads_it(make_cluster, pair, paused):
    cluster = make_cluster()
    write(cluster, 10, 1)
    wait_until(lambda: port(cluster, readonly=True) == pair.replica.port)
    paused.pause_replay()
    write(cluster, 10, 2)
    token = cluster.token
    assert read(cluster, 10) == 2
    assert port(cluster, readonly=True) == pair.primary.port
    assert block_port(cluster.transaction(readonly=True)) == pair.primary.port
    assert block_port(cluster.transaction(readonly=True, isolation_level="REPEATABLE READ")) == pair.primary.port
    # Others haven't, unless they are told.
    assert Task(lambda: (port(cluster, readonly=True), read(cluster, 10))).result() == (pair.replica.port, 1)

    def told():
        assert cluster.token is None
        cluster.token = token
        return port(cluster, readonly=True), read(cluster, 10)

    assert Task(told).result() == (pair.primary.port, 2)
    paused.resume_replay()
    wait_until(lambda: port(cluster, readonly=True) == pair.replica.port)
    assert read(cluster, 10) == 2
    cluster.token = None
    assert cluster.token is None


@pytest.mark.parametrize("way", ["transaction", "cursor", "run", "execute", "commit", "pool", "with conn"])
def test_every_way_to_commit_is_noted(make_cluster, way):
    cluster = make_cluster()
    statement = "INSERT INTO counter VALUES (20, 0) ON CONFLICT (k) DO UPDATE SET n = 0"
    before = position_of(cluster.fetchval("SELECT pg_current_wal_insert_lsn()::text"))
    cluster.token = None
    if way == "transaction":
        with cluster.transaction() as conn:
            conn.execute(statement)
    elif way == "cursor":
        with cluster.cursor() as cur:
            cur.execute(statement)
    elif way == "run":
        cluster.run(lambda conn: conn.execute(statement))
    elif way == "execute":
        cluster.execute(statement)
    elif way == "pool":
        cluster.primary.execute(statement)
    else:
        with cluster.primary.connection() as conn:
            if way == "commit":
                conn.execute(statement)
                conn.commit()
            else:
                with conn:
                    conn.execute(statement)
    after = position_of(cluster.fetchval("SELECT pg_current_wal_insert_lsn()::text"))
    assert before < position_of(cluster.token) <= after


@pytest.mark.parametrize(
    "way", ["execute", "executemany", "copy", "copy_expert", "callproc", "pool", "multiplex", "2pc"]
)
def test_what_is_committed_without_telling_is_asked_for(make_cluster, pair, paused, way):
    """Autocommit, and two phases: how far the log is isn't known before somebody reads."""
    cluster = make_cluster(kwargs={"autocommit": way != "2pc"}, multiplex=1 if way == "multiplex" else 0)
    row = "INSERT INTO counter VALUES (%s, 0) ON CONFLICT (k) DO UPDATE SET n = counter.n + 1"
    cluster.execute("DELETE FROM counter WHERE k = 21")
    paused.pause_replay()
    cluster.token = None
    if way in ("pool", "multiplex"):
        cluster.execute(row, (21,))
    else:
        with cluster.primary.connection() as conn:
            if way == "execute":
                conn.execute(row, (21,))
            elif way == "executemany":
                conn.cursor().executemany(row, [(21,)])
            elif way == "copy":
                with conn.cursor() as cur, cur.copy("COPY counter FROM STDIN") as copy:
                    copy.write(b"21\t0\n")
            elif way == "copy_expert":
                conn.cursor().copy_expert("COPY counter FROM STDIN", io.StringIO("21\t0\n"))
            elif way == "callproc":
                conn.cursor().callproc("pg_logical_emit_message", [False, "test", "written"])
            else:
                if conn.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
                    pytest.skip("the server prepares no transactions")
                conn.rollback()
                conn.tpc_begin("here")
                conn.execute(row, (21,))
                conn.tpc_commit()
    if way != "callproc":
        assert read(cluster, 21) == 0
    assert port(cluster, readonly=True) == pair.primary.port
    assert cluster.token
    token = cluster.token
    cluster.token = None
    assert port(cluster, readonly=True) == pair.replica.port
    cluster.token = token
    paused.resume_replay()
    wait_until(lambda: port(cluster, readonly=True) == pair.replica.port)


def test_getconn_and_putconn_of_replicas(make_cluster, pair, paused):
    cluster = make_cluster()
    conn = cluster.replica.getconn()
    assert conn.info.port == pair.replica.port
    cluster.replica.putconn(conn)
    paused.pause_replay()
    write(cluster, 22, 1)
    conn = cluster.replica.getconn()
    assert conn.info.port == pair.primary.port
    cluster.replica.putconn(conn)
    with pytest.raises(ValueError, match="it has been returned already"):
        cluster.replica.putconn(conn)


def test_commit_tells_in_the_same_round_trip(make_cluster, pair):
    cluster = make_cluster()
    log = greenpg.SqlLog()
    with cluster.transaction() as conn:
        conn.execute("SELECT 1")
    assert conn.status == psycopg2.extensions.STATUS_READY
    assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE
    assert cluster.token
    del log


def test_commit_that_fails(make_cluster):
    cluster = make_cluster()
    cluster.token = None
    with pytest.raises(psycopg2.errors.UniqueViolation) as caught, cluster.transaction() as conn:
        conn.execute("CREATE TEMP TABLE one (n int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        conn.execute("INSERT INTO one VALUES (1), (1)")
    assert errors.commit_outcome(caught.value) == errors.ROLLED_BACK
    assert cluster.token is None
    with cluster.transaction() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert cluster.primary.get_stats()["pool_size"] == 1


def test_rollback_is_nothing_written(make_cluster):
    cluster = make_cluster()
    cluster.token = None
    with cluster.transaction(force_rollback=True) as conn:
        conn.execute("INSERT INTO counter VALUES (31, 0)")
    assert cluster.token is None


def start_waiting(pair, function):
    """A task that waits in its COMMIT; again until the checkpointer has seen that it has to."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    while True:
        task = Task(function)
        wait_until(lambda task=task: task.is_over or ask(pair.primary, waiting) == (1,))
        if not task.is_over:
            return task


@pytest.mark.usual_times
@on_one_hub
def test_killed_commit_is_not_cancelled(make_cluster, pair):
    ask(pair.primary, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    ask(pair.primary, "SELECT pg_reload_conf()")
    cluster = make_cluster()
    try:
        writer = start_waiting(pair, lambda: write(cluster, 40, 1))
        writer.throw(Killed())
        writer.join()
        assert errors.commit_outcome(writer.error) == errors.UNKNOWN
    finally:
        conn = psycopg2.connect(pair.primary.dsn)
        conn.autocommit = True
        conn.cursor().execute("ALTER SYSTEM RESET synchronous_standby_names")
        conn.cursor().execute("SELECT pg_reload_conf()")
        conn.close()
    wait_until(lambda: ask(pair.primary, "SELECT count(*) FROM counter WHERE k = 40") == (1,))


def test_reads_after_writes_with_a_replica_that_lags(pair, make_cluster):
    """`tests/read_your_writes.py` does it 10,000 times."""
    from read_your_writes import run

    ask(pair.replica, "ALTER SYSTEM SET recovery_min_apply_delay = '15ms'")
    ask(pair.replica, "SELECT pg_reload_conf()")
    cluster = make_cluster()
    found = run(cluster, reads=300, tasks=10)
    ask(pair.replica, "ALTER SYSTEM RESET recovery_min_apply_delay")
    ask(pair.replica, "SELECT pg_reload_conf()")
    assert found.reads == 300
    assert found.stale == 0
    assert found.stale_without_token > 0, "the replica doesn't lag: this shows nothing"


# -- failover


@on_one_hub
def test_promoted_replica_is_the_primary(make_cluster):
    with Pair() as pair:
        ask(pair.primary, "CREATE TABLE counter (k int PRIMARY KEY, n int)")
        cluster = make_cluster(pair.dsn(), timeout=10)
        write(cluster, 1, 1)
        pair.primary.stop("immediate")
        pair.promote()
        assert cluster.run(lambda conn: block_of(conn)) == pair.replica.port
        wait_until(lambda: [node["role"] for node in cluster.nodes] == [None, "primary"])
        assert port(cluster, readonly=True) == pair.replica.port, "nothing else to read from"
        cluster.close()


# -- small things


def test_lag_is_known_by_the_primarys_positions():
    log = PrimaryLog()
    log.note(1.0, 100)
    log.note(2.0, 100)
    log.note(5.0, 200)
    log.note(6.0, 300)
    assert log.lag_of(300, 9.0) == log.lag_of(400, 9.0) == 0.0
    assert log.lag_of(200, 9.0) == 3.0
    assert log.lag_of(150, 9.0) == 4.0
    assert log.lag_of(50, 9.0) == 8.0
    log.note(10.0, 250)  # another primary, with less
    assert log.lag_of(250, 11.0) == 0.0


def test_tokens():
    assert token_of(position_of("16/B374D848")) == "16/B374D848"
    for wrong in ("x", "", "16", "1/x"):
        with pytest.raises(ValueError, match=r"position in PostgreSQL's log|invalid literal"):
            position_of(wrong)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"strategy": "best"}, "strategy"),
        ({"max_lag": -1}, "max_lag"),
        ({"interval": 0}, "interval"),
        ({"kwargs": dict}, "kwargs can't be a function"),
        ({"conninfo": "host=a,b target_session_attrs=standby"}, "can't be for a cluster"),
    ],
)
def test_values_that_make_no_sense(options, what):
    with pytest.raises(ValueError, match=what):
        greenpg.Cluster(**{"conninfo": "host=a,b"} | options)


def test_one_server_is_a_cluster_too(make_cluster, pair):
    cluster = make_cluster(pair.primary.tcp_dsn)
    assert port(cluster) == port(cluster, readonly=True) == pair.primary.port


def test_conninfo_may_be_a_function(make_cluster, pair):
    calls = []

    def conninfo():
        calls.append(1)
        return pair.dsn(), 60

    cluster = make_cluster(conninfo, kwargs={"application_name": "mine"})
    assert port(cluster, readonly=True) == pair.replica.port
    assert cluster.fetchval("SHOW application_name") == "mine"
    assert len(calls) <= 6, "once for each pool that connects, and for the hosts"


def test_cluster_that_is_forgotten_leaves_no_task(pair):
    cluster = greenpg.Cluster(pair.dsn(), min_size=1, interval=0.02)
    cluster.open(wait=True)
    topology = cluster._topology
    cluster.close()
    assert cluster.closed
    wait_until(lambda: topology.is_stopped)
    with pytest.raises(greenpg.PoolClosed):
        cluster.execute("SELECT 1")
    hub().sleep(0.03)
