"""`greenpg.LeasedConnection`: a connection of a pool's for each transaction."""

import gc
import io
import os
import random

import psycopg2
import psycopg2.extras
import pytest
from kit import Killed, Task, lent, run_all, wait_until
from psycopg2 import extensions, sql

import greenpg
from greenpg import errors
from greenpg.hubs import hub
from greenpg.pool.leased.state import leaves_state


@pytest.fixture
def pool(make_pool):
    return make_pool(min_size=1, max_size=2, timeout=10)


@pytest.fixture
def leased(pool):
    conn = greenpg.LeasedConnection(pool)
    yield conn
    conn.close()


@pytest.fixture
def auto(leased):
    leased.autocommit = True
    return leased


def all_back(pool):
    wait_until(lambda: lent(pool) == 0 and not pool._core.ledger.resetting)
    return True


# -- when there is a lease


def test_it_is_leased_from_the_first_statement_to_the_end_of_the_transaction(pool, leased):
    cur = leased.cursor()
    assert not leased.is_leased and lent(pool) == 0
    for end in (leased.commit, leased.rollback):
        cur.execute("SELECT 1")
        assert leased.is_leased and lent(pool) == 1 and leased.status == extensions.STATUS_BEGIN
        end()
        assert not leased.is_leased and lent(pool) == 0 and leased.status == extensions.STATUS_READY


def test_in_autocommit_it_is_leased_for_each_statement(pool, auto):
    cur = auto.cursor()
    for number in range(3):
        cur.execute("SELECT %s", (number,))
        assert lent(pool) == 0
        assert cur.fetchall() == [(number,)]


def test_a_transaction_begun_by_sql_has_one_connection(pool, auto):
    cur = auto.cursor()
    cur.execute("BEGIN")
    pid = auto.get_backend_pid()
    cur.execute("SELECT pg_backend_pid()")
    assert cur.fetchone() == (pid,) and lent(pool) == 1
    cur.execute("COMMIT")
    assert lent(pool) == 0 and auto.get_backend_pid() == 0


def test_commit_and_rollback_without_a_transaction_need_no_connection(pool, leased):
    with pool.connection(), pool.connection():
        leased.commit()
        leased.rollback()
        with leased:
            pass
    assert pool.get_stats()["requests_num"] == 2


def test_an_error_keeps_the_transaction_until_the_rollback(pool, leased):
    with pytest.raises(psycopg2.errors.DivisionByZero):
        leased.execute("SELECT 1/0")
    assert leased.info.transaction_status == extensions.TRANSACTION_STATUS_INERROR
    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        leased.execute("SELECT 1")
    leased.rollback()
    assert lent(pool) == 0 and leased.execute("SELECT 1").fetchone() == (1,)


def test_an_error_in_autocommit_gives_it_back(pool, auto):
    with pytest.raises(psycopg2.errors.DivisionByZero):
        auto.execute("SELECT 1/0")
    assert lent(pool) == 0


def test_with_blocks_commit_and_roll_back(pool, leased):
    for autocommit in (False, True):
        leased.autocommit = autocommit
        with leased:
            assert not leased.is_leased
            leased.execute("CREATE TABLE leased_block (a int)")
            with pytest.raises(psycopg2.ProgrammingError):
                leased.__enter__()
            assert lent(pool) == 1
        assert lent(pool) == 0
        with pytest.raises(ZeroDivisionError), leased:
            leased.execute("DROP TABLE leased_block")
            raise ZeroDivisionError
        assert lent(pool) == 0
        with leased:
            assert leased.execute("DROP TABLE leased_block").statusmessage == "DROP TABLE"
    assert lent(pool) == 0


def test_transaction_blocks(pool, leased):
    with leased.transaction() as outer, leased.transaction():
        assert outer.connection.execute("SELECT 1").fetchone() == leased.execute("SELECT 1").fetchone()
    assert lent(pool) == 0
    with leased.transaction():
        with pytest.raises(psycopg2.ProgrammingError):
            leased.commit()
        raise greenpg.Rollback
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), leased.transaction(readonly=True):
        leased.execute("CREATE TABLE x (a int)")
    assert lent(pool) == 0


def test_pipelines(pool, leased):
    with leased.pipeline() as p:
        first = p.execute("SELECT 1")
        second = leased.execute("SELECT generate_series(1, 3)")
    leased.commit()
    assert lent(pool) == 0 and first.fetchone() == (1,) and second.fetchall() == [(1,), (2,), (3,)]


def test_two_phases(pool, leased):
    xid = leased.xid(1, f"leased-{random.random()}", "b")
    leased.tpc_begin(xid)
    leased.execute("SELECT 1")
    leased.tpc_prepare()
    assert lent(pool) == 1
    leased.tpc_commit()
    assert lent(pool) == 0
    assert not [x for x in leased.tpc_recover() if x.gtrid == xid.gtrid]


# -- what stays on this side


def test_rows_stay_readable_whatever_becomes_of_the_connection(pool, leased):
    cur = leased.execute("SELECT generate_series(1, 5)")
    other = leased.execute("SELECT 'x'")
    assert cur.fetchone() == (1,)
    leased.commit()
    with pool.connection() as real:
        real.close()
    assert cur.rownumber == 1 and cur.fetchmany(2) == [(2,), (3,)] and cur.fetchmany() == [(4,)]
    cur.scroll(-1)
    assert list(cur) == [(4,), (5,)] and cur.fetchone() is None and cur.fetchall() == []
    assert cur.rowcount == 5 and cur.description[0].name == "generate_series"
    assert other.fetchone_dict() == {"?column?": "x"}
    with pytest.raises(psycopg2.ProgrammingError, match="out of bounds"):
        cur.scroll(9)


def test_rows_of_all_kinds_of_cursors(auto):
    for factory, row in (
        (psycopg2.extras.DictCursor, ["a", 1]),
        (psycopg2.extras.RealDictCursor, {"name": "a", "n": 1}),
        (psycopg2.extras.NamedTupleCursor, ("a", 1)),
    ):
        cur = auto.cursor(cursor_factory=factory)
        cur.execute("SELECT 'a' AS name, n FROM generate_series(1, 3) AS n")
        assert cur.fetchone() == row
        assert len(list(cur)) == 2
    auto.cursor_factory = psycopg2.extras.DictCursor
    assert auto.execute("SELECT 1 AS a").fetchone()["a"] == 1


def test_a_cursor_class_of_the_programs_own(auto):
    class Own(extensions.cursor):
        def execute(self, query, vars=None):
            super().execute(query + " + 1", vars)

        def twice(self):
            return 2 * self.fetchone()[0]

    cur = auto.cursor(cursor_factory=Own)
    cur.execute("SELECT %s", (1,))
    assert cur.fetchone() == (2,)
    with auto.transaction():
        cur.execute("SELECT 1")
        assert cur.twice() == 4
    with pytest.raises(AttributeError, match="thrice"):
        cur.thrice  # noqa: B018


def test_rows_that_cannot_be_read_raise_when_they_are_read(auto):
    cur = auto.execute("SELECT d FROM (VALUES ('2000-01-01'::date), ('5874897-01-01')) AS t (d)")
    assert cur.fetchone()[0].year == 2000
    with pytest.raises(ValueError, match="out of range"):
        cur.fetchone()
    cur.execute("SELECT 1")
    assert cur.fetchone() == (1,)


def test_results_of_executemany(pool, leased):
    cur = leased.cursor()
    cur.execute("CREATE TEMP TABLE t (a int) ON COMMIT DROP")
    cur.executemany("INSERT INTO t VALUES (%s) RETURNING a", [(1,), (2,), (3,)], returning=True)
    leased.commit()
    assert lent(pool) == 0
    assert [cur.fetchone() for _ in cur.results()] == [(1,), (2,), (3,)]
    assert cur.nextset() is None


def test_nothing_to_fetch(auto):
    cur = auto.cursor()
    for _ in range(2):
        with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
            cur.fetchone()
        cur.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert [notice.strip() for notice in auto.notices] == ["NOTICE:  hello"] * 2


def test_a_big_result_is_read_in_turns(auto):
    cur = auto.execute("SELECT generate_series(1, 50000)")
    assert sum(row[0] for row in cur) == 1250025000


# -- cursors at the server


def test_named_cursors_have_the_connection_until_the_end_of_the_transaction(pool, leased):
    cur = leased.cursor("named")
    cur.itersize = 2
    cur.execute("SELECT generate_series(1, 5)")
    assert cur.fetchone() == (1,) and list(cur) == [(2,), (3,), (4,), (5,)]
    leased.commit()
    assert lent(pool) == 0
    with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
        cur.fetchone()
    cur.close()


def test_cursors_with_hold_have_the_connection_until_they_are_closed(pool, auto):
    with auto.cursor("held", withhold=True) as cur:
        cur.execute("SELECT generate_series(1, 5)")
        assert auto.is_stuck and cur.fetchmany(2) == [(1,), (2,)]
        assert auto.execute("SELECT count(*) FROM pg_cursors").fetchone() == (1,)
        assert list(cur) == [(3,), (4,), (5,)]
    assert lent(pool) == 0
    assert auto.execute("SELECT count(*) FROM pg_cursors").fetchone() == (0,)


# -- settings


def test_settings_are_applied_to_each_lease_and_taken_back(pool, leased):
    leased.isolation_level = "serializable"
    leased.readonly = True
    leased.statement_deadline = 5
    assert leased.isolation_level == extensions.ISOLATION_LEVEL_SERIALIZABLE and leased.readonly is True
    assert lent(pool) == 0
    with leased:
        settings = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        assert leased.execute(settings).fetchone() == ("serializable", "on")
        assert leased._lease.conn.statement_deadline == 5
    with pool.connection() as real:
        assert real.execute(settings).fetchone() == ("read committed", "off")
        assert real.isolation_level is None and real.statement_deadline is None
    leased.set_session(isolation_level="default", readonly=False)
    assert leased.isolation_level is None
    for wrong in ({"isolation_level": "x"}, {"isolation_level": 9}, {"readonly": "x"}):
        with pytest.raises(ValueError, match="isolation_level|string accepted"):
            leased.set_session(**wrong)
    leased.execute("SELECT 1")
    with pytest.raises(psycopg2.ProgrammingError):
        leased.autocommit = True
    leased.rollback()
    leased.set_isolation_level(extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    assert leased.autocommit


def test_a_setting_that_a_rollback_takes_back_is_not_left_to_the_next_borrower(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5, kwargs={"autocommit": True})
    conn = greenpg.LeasedConnection(pool)
    conn.readonly = True
    conn.execute("BEGIN")
    conn.readonly = None  # psycopg2 tells the server, which forgets it in the rollback
    conn.execute("ROLLBACK")
    assert not conn.is_leased
    assert pool.fetchval("SHOW default_transaction_read_only") == "off"


def test_the_client_encoding(pool, auto):
    auto.set_client_encoding("latin-1")
    assert auto.encoding == "LATIN1"
    assert auto.execute("SHOW client_encoding").fetchone() == ("LATIN1",)
    assert pool.fetchval("SHOW client_encoding") == "UTF8"
    auto.reset()
    assert auto.encoding == "UTF8"


def test_what_the_pools_connections_are_like_is_seen_before_the_first_statement(make_pool):
    pool = make_pool(min_size=1, kwargs={"autocommit": True})
    with greenpg.LeasedConnection(pool) as conn:
        assert conn.autocommit and conn.info.server_version == conn.server_version > 0
        assert conn.info.dbname and "dbname" in conn.get_dsn_parameters() and conn.get_parameter_status("TimeZone")


# -- state of the session

STATE = [
    "SET work_mem = '5MB'",
    "/* a */ set session work_mem TO '5MB'",
    "LISTEN leased",
    "PREPARE p AS SELECT 1",
    "CREATE TEMP TABLE s (a int)",
    "SELECT 1 AS a INTO TEMPORARY s",
    "SELECT pg_advisory_lock(4711)",
    "SELECT pg_catalog.set_config('work_mem', '5MB', false)",
    "SELECT 1; SET work_mem = '5MB'; SELECT 2",
    "RESET work_mem",
    "DISCARD ALL",
]
NO_STATE = [
    "SET LOCAL work_mem = '5MB'",
    "SET TRANSACTION READ ONLY",
    "CREATE TEMP TABLE s (a int) ON COMMIT DROP",
    "SELECT pg_advisory_xact_lock(4711)",
    "SELECT set_config('work_mem', '5MB', true)",
    "SELECT 'SET x; pg_advisory_lock(', 1 AS temp /* SET x */",
    "DO $$ BEGIN PERFORM 1; /* ; */ END $$; SELECT 1",
]


@pytest.mark.parametrize("statement", STATE)
def test_state_makes_the_lease_last_and_goes_no_further(make_pool, statement):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    conn = greenpg.LeasedConnection(pool)
    conn.autocommit = True
    conn.execute(statement)
    pid = conn.get_backend_pid()
    assert conn.is_stuck and conn.execute("SELECT pg_backend_pid()").fetchone() == (pid,)
    conn.close()
    assert pool.fetchone("SELECT pg_backend_pid(), current_setting('work_mem')") == (pid, "4MB")
    left = """SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
        to_regclass('s')"""
    assert pool.fetchone(left) == (0, 0, 0, None)


@pytest.mark.parametrize("statement", NO_STATE)
def test_what_ends_with_the_transaction_ends_the_lease(pool, leased, statement):
    leased.execute(statement)
    leased.commit()
    assert lent(pool) == 0


def test_parameters_are_not_taken_for_statements(pool, auto):
    auto.execute("SELECT %s", ("pg_advisory_lock(1)",))
    auto.execute(sql.SQL("SELECT {}").format(sql.Literal("; SET x")))
    assert lent(pool) == 0
    auto.cursor().callproc("pg_advisory_lock", (4712,))
    assert auto.is_stuck


def test_a_lock_is_seen_though_its_statement_fails(pool, auto):
    with pytest.raises(psycopg2.errors.DivisionByZero):
        auto.execute("SELECT pg_advisory_lock(4713), 1 / (random() * 0)::int")
    assert auto.is_stuck


def test_the_text_alone():
    assert leaves_state("DECLARE c CURSOR /* */ WITH /* */ HOLD FOR SELECT 1", "DECLARE CURSOR")
    assert not leaves_state("DECLARE c CURSOR FOR SELECT 1", "DECLARE CURSOR")
    assert leaves_state(b"CREATE VIEW pg_temp.v AS SELECT 1", "CREATE VIEW")
    assert not leaves_state("UPDATE t SET temp = 1", "UPDATE 1")
    assert not leaves_state("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION")
    assert leaves_state("SELECT set_config(%s, (SELECT %s), %s)", "SELECT 1")
    assert not leaves_state("SELECT set_config(%s, lower(%s), true)", "SELECT 1")


def test_stick_and_unstick(pool, auto):
    auto.stick()
    pid = auto.get_backend_pid()
    assert {auto.execute("SELECT pg_backend_pid()").fetchone()[0] for _ in range(3)} == {pid}
    auto.unstick()
    assert not auto.is_leased and all_back(pool)
    auto.unstick()


def test_sticky_blocks_give_the_connection_itself(make_pool):
    pool = make_pool(min_size=1, max_size=1, timeout=5)
    conn = greenpg.LeasedConnection(pool)
    with conn.sticky() as real:
        assert isinstance(real, greenpg.Connection)
        real.execute("SET work_mem = '6MB'")
        real.commit()
        assert conn.execute("SHOW work_mem").fetchone() == ("6MB",)
        conn.commit()
    assert pool.fetchval("SHOW work_mem") == "4MB"
    with conn.sticky():
        conn.execute("SELECT 1")
    assert conn.is_leased  # its transaction is still open
    conn.rollback()
    assert all_back(pool)


def test_what_configure_has_set_is_there_after_a_reset(make_pool):
    def configure(conn):
        conn.execute("SET work_mem = '7MB'")
        conn.commit()

    pool = make_pool(min_size=1, max_size=1, timeout=5, configure=configure)
    conn = greenpg.LeasedConnection(pool)
    conn.execute("SET work_mem = '8MB'")
    conn.close()
    assert pool.fetchval("SHOW work_mem") == "7MB"


def test_notifications(pool, auto):
    with pytest.raises(psycopg2.ProgrammingError, match="LISTEN"):
        auto.wait_notify(timeout=0)
    auto.execute("LISTEN leased")
    pool.execute("NOTIFY leased, 'one'")
    pool.execute("NOTIFY leased, 'two'")
    assert auto.wait_notify(timeout=5).payload == "one"
    wait_until(lambda: auto.execute("SELECT 1") and auto.notifies)
    assert [notify.payload for notify in auto.notifies] == ["two"]
    assert auto.wait_notify(timeout=5).payload == "two"


def test_behind_a_pooler_state_is_refused(make_pool):
    pool = make_pool(min_size=1, pooler="transaction")
    conn = greenpg.LeasedConnection(pool)
    with pytest.raises(psycopg2.NotSupportedError, match="not behind a pooler"):
        conn.execute("SET work_mem = '5MB'")
    assert lent(pool) == 0


# -- COPY, large objects, extras


def test_copy(pool, auto):
    with auto, auto.cursor() as cur:
        cur.execute("CREATE TEMP TABLE c (a int, b text) ON COMMIT DROP")
        with cur.copy("COPY c FROM STDIN") as copy:
            copy.write_row((1, "x"))
        cur.copy_from(io.StringIO("2\ty\n"), "c")
        file = io.StringIO()
        cur.copy_expert("COPY c TO STDOUT", file)
        psycopg2.extras.execute_values(cur, "INSERT INTO c VALUES %s", [(3, "z"), (4, "z")])
        cur.execute("SELECT count(*) FROM c")
        assert cur.fetchone() == (4,) and file.getvalue() == "1\tx\n2\ty\n"
    with auto.cursor() as cur, cur.copy("COPY (SELECT 1) TO STDOUT") as copy:
        assert lent(pool) == 1 and list(copy.rows()) == [("1",)]
    assert lent(pool) == 0


def test_large_objects(pool, leased):
    large = leased.lobject(0, "wb")
    large.write(b"data")
    leased.commit()
    assert lent(pool) == 0
    with pool.connection(), pytest.raises(psycopg2.ProgrammingError, match="valid anymore"):
        large.write(b"more")
    with leased:
        leased.lobject(large.oid).unlink()


def test_mogrify_and_prepared(pool, auto):
    assert auto.cursor().mogrify("SELECT %s", ("x",)) == b"SELECT 'x'"
    for _ in range(2):
        assert auto.execute("SELECT %s + 1", (1,), prepare=True).fetchone() == (2,)
    assert lent(pool) == 0


# -- the end, and what goes wrong


def test_close(pool, leased, caplog):
    cur = leased.execute("SELECT 1")
    leased.close()
    assert not caplog.records  # psycopg2's own rolls back without a word, too
    leased.close()
    assert leased.closed == 1 and cur.closed and lent(pool) == 0
    for use in (leased.commit, leased.cursor, lambda: cur.execute("SELECT 1"), cur.fetchone, leased.__enter__):
        with pytest.raises(psycopg2.InterfaceError, match="already closed"):
            use()


def test_a_connection_that_is_lost_in_a_transaction_is_lost(pool, leased, admin):
    leased.execute("SELECT 1")
    admin.cursor().execute("SELECT pg_terminate_backend(%s)", (leased.get_backend_pid(),))
    with pytest.raises(psycopg2.Error):
        leased.execute("SELECT 1")
    assert leased.closed == 2 and lent(pool) == 0
    for use in (lambda: leased.execute("SELECT 1"), leased.commit):
        with pytest.raises(psycopg2.InterfaceError, match="already closed"):
            use()
    assert pool.fetchval("SELECT 1") == 1


def test_a_connection_that_is_lost_without_one_is_replaced(pool, auto, admin):
    admin.cursor().execute("SELECT pg_terminate_backend(%s)", (auto.execute("SELECT pg_backend_pid()").fetchone()[0],))
    with pytest.raises(psycopg2.OperationalError):
        auto.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert not auto.closed and auto.execute("SELECT 1").fetchone() == (1,)


def test_one_task_at_a_time(leased):
    task = Task(lambda: leased.execute("SELECT pg_sleep(0.3)"))
    wait_until(lambda: leased.isexecuting() or leased.get_transaction_status() == 1)
    with pytest.raises(errors.ConnectionInUse):
        leased.execute("SELECT 1")
    task.result()


def test_close_throws_another_task_out(pool, leased):
    task = Task(lambda: leased.execute("SELECT pg_sleep(20)"))
    wait_until(lambda: leased.get_transaction_status() == 1)
    leased.close()
    with pytest.raises(psycopg2.OperationalError):
        task.result()
    assert all_back(pool)


def test_no_connection_to_be_had(make_pool):
    pool = make_pool(min_size=1, max_size=1)
    conn = greenpg.LeasedConnection(pool, timeout=0.05)
    with pool.connection():
        with pytest.raises(errors.PoolTimeout) as info:
            conn.execute("SELECT 1")
        assert errors.safe_to_retry(info.value)
    assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.close()
    with pytest.raises(TypeError, match="ConnectionPool"):
        greenpg.LeasedConnection("postgresql://")
    with pytest.raises(ValueError, match="timeout"):
        greenpg.LeasedConnection(pool, timeout=-1)


def test_garbage_gives_its_lease_back(pool):
    conn = greenpg.LeasedConnection(pool)
    conn.execute("SELECT 1")
    assert lent(pool) == 1
    del conn
    gc.collect()
    assert all_back(pool)


@pytest.mark.only_hub("gevent", "threads")  # a task of eventlet's spawn_n() ends unseen
def test_a_task_that_ends_loses_its_lease(pool):
    kept = []

    def forgetful():
        kept.append(greenpg.LeasedConnection(pool))
        kept[0].execute("SELECT 1")

    Task(forgetful).result()
    assert all_back(pool)
    with pytest.raises(psycopg2.InterfaceError, match="already closed"):
        kept[0].execute("SELECT 1")


@pytest.mark.only_hub("gevent")
def test_in_a_forked_child(pool, leased):
    at_rest = greenpg.LeasedConnection(pool)
    leased.execute("SELECT 1")
    child = os.fork()
    if not child:
        code = 1
        try:
            assert at_rest.execute("SELECT 1").fetchone() == (1,)
            try:
                leased.execute("SELECT 1")
            except psycopg2.InterfaceError:
                code = 0
        finally:
            os._exit(code)
    wait_until(lambda: (ended := os.waitpid(child, os.WNOHANG)) != (0, 0) and os.waitstatus_to_exitcode(ended[1]) == 0)
    assert leased.execute("SELECT 1").fetchone() == (1,)


# -- many


def test_many_tasks_share_few_connections(make_pool, admin):
    pool = make_pool(min_size=1, max_size=5, timeout=30)
    count = 1000 if hub().name != "threads" else 100
    admin.cursor().execute("DROP TABLE IF EXISTS leased_many; CREATE TABLE leased_many (task int, step int)")

    def serve(number):
        conn = greenpg.LeasedConnection(pool)
        conn.autocommit = number % 2 == 0
        cur = conn.cursor()
        for step in range(2):
            cur.execute("INSERT INTO leased_many VALUES (%s, %s) RETURNING task", (number, step))
            conn.commit()
            hub().sleep(0.01)  # waits for HTTP
            assert cur.fetchone() == (number,)
        conn.close()

    run_all([lambda number=number: serve(number) for number in range(count)])
    with admin.cursor() as cur:
        cur.execute("SELECT count(*), count(DISTINCT task) FROM leased_many")
        assert cur.fetchone() == (2 * count, count)
        cur.execute("DROP TABLE leased_many")
    assert lent(pool) == 0 and pool.get_stats()["pool_size"] <= 5


@pytest.mark.only_hub("gevent", "eventlet")
def test_kills_at_any_point_cost_nothing(make_pool):
    pool = make_pool(min_size=1, max_size=3, timeout=30)
    rng = random.Random(21)

    def serve(seed):
        mine = random.Random(seed)
        conn = greenpg.LeasedConnection(pool)
        conn.autocommit = mine.random() < 0.5
        while True:
            kind = mine.randrange(7)
            if kind == 0:
                with conn:
                    conn.execute("SELECT pg_sleep(0.002)")
            elif kind == 1:
                with conn.cursor(f"c{seed}", withhold=True) as cur:
                    cur.execute("SELECT generate_series(1, 10)")
                    cur.fetchone()
            elif kind == 2:
                conn.execute("SET work_mem = '5MB'")
                conn.commit()
                conn.unstick()
            elif kind == 3:
                conn.execute("SELECT generate_series(1, 3000)").fetchone()
            elif kind == 4:
                with conn.transaction():
                    conn.execute("SELECT 1")
            elif kind == 5:
                conn.isolation_level = mine.choice([None, "SERIALIZABLE"]) if not conn.autocommit else None
            else:
                conn.execute("SELECT %s", (seed,))
            if not conn.autocommit:
                conn.commit()
            conn.close()
            conn = greenpg.LeasedConnection(pool)
            conn.autocommit = mine.random() < 0.5

    tasks = [Task(serve, seed) for seed in range(30)]
    for task in tasks:
        hub().sleep(rng.random() * 0.02)
        task.throw(Killed())
    for task in tasks:
        task.join()
        assert isinstance(task.error, Killed), task.error
        task.error = None
    gc.collect()
    assert all_back(pool)
    assert pool.fetchone("SELECT current_setting('work_mem'), current_setting('transaction_isolation')") == (
        "4MB",
        "read committed",
    )
    assert pool.get_stats()["pool_size"] <= 3


# -- as psycopg2's own, in ordinary use


class Ordinary:
    """One connection's side of random programs; what can be seen after each step is compared."""

    def __init__(self, conn, table):
        self.conn = conn
        self.table = table
        self.cursors = [conn.cursor(), conn.cursor(cursor_factory=psycopg2.extras.DictCursor)]

    def do(self, step, number, argument):
        cur = self.cursors[number]
        try:
            value = getattr(self, step)(cur, argument)
        except psycopg2.Error as error:
            value = type(error).__mro__[0].__name__, error.pgcode
        except (StopIteration, IndexError, ValueError) as error:
            value = type(error).__name__
        return value, self.see()

    def see(self):
        conn = self.conn
        seen = [conn.closed, conn.status, conn.get_transaction_status(), conn.autocommit, conn.isolation_level]
        seen += [conn.readonly, conn.encoding, len(conn.notices)]
        for cur in self.cursors:
            query = cur.query and cur.query.replace(self.table.encode(), b"TABLE")
            seen += [cur.rowcount, cur.statusmessage, query, cur.rownumber, cur.closed, cur.description is None]
            seen.append(cur.description and [column[:2] for column in cur.description])
        return seen

    def select(self, cur, argument):
        return cur.execute("SELECT n, 'x' AS x FROM generate_series(1, %s) AS n", (argument,))

    def insert(self, cur, argument):
        return cur.execute(f"INSERT INTO {self.table} VALUES (%s, 'v') RETURNING id", (argument,))

    def update(self, cur, argument):
        return cur.execute(f"UPDATE {self.table} SET v = 'temp' WHERE id < %(id)s", {"id": argument})

    def count(self, cur, argument):
        cur.execute(f"SELECT count(*), sum(id)::int FROM {self.table}")
        return tuple(cur.fetchone())

    def many(self, cur, argument):
        return cur.executemany(f"INSERT INTO {self.table} VALUES (%s, 'm')", [(argument,), (argument + 10,)])

    def values(self, cur, argument):
        rows = [(argument + n, "e") for n in range(3)]
        return psycopg2.extras.execute_values(cur, f"INSERT INTO {self.table} VALUES %s RETURNING id", rows, fetch=True)

    def fail(self, cur, argument):
        return cur.execute("SELECT 1/%s", (argument % 2,))

    def notice(self, cur, argument):
        return cur.execute("DO $$ BEGIN RAISE NOTICE 'n'; END $$")

    def nothing(self, cur, argument):
        return cur.execute("")

    def fetchone(self, cur, argument):
        row = cur.fetchone()
        return row and tuple(row)

    def fetchmany(self, cur, argument):
        return [tuple(row) for row in cur.fetchmany(argument % 4)]

    def fetchall(self, cur, argument):
        return [tuple(row) for row in cur.fetchall()]

    def next(self, cur, argument):
        return tuple(next(cur))

    def scroll(self, cur, argument):
        if cur.description is not None:
            cur.scroll(argument % 2)  # not back to rows that were read before the lease ended

    def commit(self, cur, argument):
        return self.conn.commit()

    def rollback(self, cur, argument):
        return self.conn.rollback()

    def begin(self, cur, argument):
        return cur.execute("BEGIN")

    def end(self, cur, argument):
        return cur.execute("COMMIT")

    def savepoint(self, cur, argument):
        return cur.execute("SAVEPOINT s")

    def back(self, cur, argument):
        return cur.execute("ROLLBACK TO s")

    def block(self, cur, argument):
        with self.conn:
            self.insert(cur, argument)
            if argument % 3 == 0:
                raise IndexError

    def autocommit(self, cur, argument):
        # psycopg2 forgets to tell the server of what was set before it.
        self.conn.set_session("default", "default", "default")
        self.conn.autocommit = bool(argument % 2)

    def isolation(self, cur, argument):
        self.conn.set_session(isolation_level=[None, "SERIALIZABLE", "DEFAULT"][argument % 3])

    def readonly(self, cur, argument):
        self.conn.readonly = [None, False, True][argument % 3]

    def local(self, cur, argument):
        return cur.execute("SET LOCAL work_mem = '5MB'")

    def show(self, cur, argument):
        cur.execute("SELECT current_setting('work_mem'), current_setting('transaction_isolation')")
        return tuple(cur.fetchone())

    def copy(self, cur, argument):
        return cur.copy_from(io.StringIO(f"{argument + 50}\tc\n"), self.table)

    def copied(self, cur, argument):
        cur.copy_expert(f"COPY (SELECT id FROM {self.table} ORDER BY id) TO STDOUT", file := io.StringIO())
        return file.getvalue()

    def call(self, cur, argument):
        cur.callproc("int4larger", (argument, 3))
        return tuple(cur.fetchone())

    def named(self, cur, argument):
        with self.conn.cursor("named") as named:
            named.execute("SELECT generate_series(1, 5)")
            return named.fetchmany(2), list(named)

    def held(self, cur, argument):
        with self.conn.cursor("held", withhold=True) as held:
            held.execute("SELECT generate_series(1, 5)")
            return held.fetchmany(2), list(held)

    def rolled_back(self, cur, argument):
        with self.conn.cursor() as other:
            other.execute("SELECT 1")
        self.conn.rollback()
        return cur.fetchone() is None

    def again(self, cur, argument):
        number = self.cursors.index(cur)
        cur.close()
        self.cursors[number] = self.conn.cursor()


STEPS = [name for name in vars(Ordinary) if not name.startswith("_") and name not in ("do", "see")]


def test_ordinary_use_is_psycopg2s(dsn, pool, admin):
    for table in ("leased_a", "leased_b"):
        admin.cursor().execute(f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (id int PRIMARY KEY, v text)")
    for seed in range(25):
        rng = random.Random(seed)
        plain, leased = greenpg.connect(dsn), greenpg.LeasedConnection(pool)
        sides = Ordinary(plain, "leased_a"), Ordinary(leased, "leased_b")
        done = []
        for _ in range(25):
            done.append((rng.choice(STEPS), rng.randrange(2), rng.randrange(12)))
            theirs, ours = (side.do(*done[-1]) for side in sides)
            assert ours == theirs, f"seed {seed}: {done}"
        plain.close()
        leased.close()
        assert all_back(pool)
        for table in ("leased_a", "leased_b"):
            admin.cursor().execute(f"TRUNCATE {table}")
    admin.cursor().execute("DROP TABLE leased_a, leased_b")
