"""The connect engine: timeouts per host, name look-ups, several hosts, network defaults."""

import contextlib
import os
import socket
import time

import psycopg2
import pytest
from kit import Task, wait_until
from proxy import Proxy
from psycopg2 import extensions

import greenpg
from greenpg.connection.connect import client_check, connecting, look_up
from greenpg.connection.connect import watch as watch_module
from greenpg.connection.connect.route import Host, find_route
from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def parameters(server):
    """Of the server's TCP port."""
    parameters = extensions.parse_dsn(server.tcp_dsn)
    return {key: parameters[key] for key in ("host", "port", "user", "dbname")}


@pytest.fixture
def silent_port():
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def full_port():
    """A port that drops what comes: its backlog is full, so that Linux doesn't answer a SYN any more."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def names(monkeypatch):
    """Names that resolve to what the test says, on whatever hub."""
    table = {}
    resolve = hub().natives().resolve

    def resolve_from_table(name, port):
        if name not in table:
            return resolve(name, port)
        answer = table[name]
        if callable(answer):
            answer = answer()
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]

    monkeypatch.setattr(hub().natives(), "resolve", resolve_from_table)
    return table


def works(conn):
    with conn.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)
    conn.close()
    return True


# -- connect_timeout


@pytest.mark.parametrize("how", ["keyword", "dsn", "uri", "environment"])
def test_connect_timeout_on_a_port_that_never_answers(silent_port, how, monkeypatch):
    start = time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match=r"127\.0\.0\.1.*failed: timeout expired"):
        if how == "keyword":
            greenpg.connect(host="127.0.0.1", port=silent_port, dbname="x", user="x", connect_timeout=1)
        elif how == "dsn":
            psycopg2.connect(f"host=127.0.0.1 port={silent_port} dbname=x user=x connect_timeout=1")
        elif how == "uri":
            psycopg2.connect(f"postgresql://x@127.0.0.1:{silent_port}/x?connect_timeout=1")
        else:
            monkeypatch.setenv("PGCONNECT_TIMEOUT", "1")
            psycopg2.connect(host="127.0.0.1", port=silent_port, dbname="x", user="x")
    assert time.monotonic() - start >= 1


def test_connect_timeout_on_an_address_that_drops_packets(full_port):
    start = time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
        greenpg.connect(host="127.0.0.1", port=full_port, dbname="x", user="x", connect_timeout=1)
    assert time.monotonic() - start >= 1


def test_total_connect_timeout(silent_port):
    start = time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
        greenpg.connect(
            host="127.0.0.1,127.0.0.1",
            port=silent_port,
            dbname="x",
            user="x",
            connect_timeout=30,
            total_connect_timeout=0.3,
        )
    assert time.monotonic() - start >= 0.3
    for senseless in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="total_connect_timeout must be a positive number"):
            greenpg.connect("host=x", total_connect_timeout=senseless)


def test_connect_timeout_does_not_strike_a_slow_server_that_answers_in_time(parameters):
    with Proxy(parameters["host"], parameters["port"], delay=0.1) as proxy:
        assert works(greenpg.connect(**parameters | {"port": proxy.port, "connect_timeout": 2, "sslmode": "disable"}))


# -- several hosts


def test_dead_first_host_and_live_second(parameters, silent_port, full_port):
    port = f"{silent_port},{full_port},1,{parameters['port']}"
    start = time.monotonic()
    conn = greenpg.connect(
        **parameters | {"host": "127.0.0.1,127.0.0.1,127.0.0.1,127.0.0.1", "port": port}, connect_timeout=1
    )
    assert time.monotonic() - start >= 2
    assert conn.info.port == int(parameters["port"])
    assert works(conn)


def test_error_tells_what_was_tried_host_by_host(silent_port):
    with pytest.raises(psycopg2.OperationalError) as caught:
        greenpg.connect(
            host="127.0.0.1,127.0.0.2,no-such-host.invalid,/nowhere",
            port=f"{silent_port},1,1,1",
            dbname="x",
            user="x",
            password="hunter2",
            connect_timeout=1,
        )
    text = str(caught.value)
    assert 'could not translate host name "no-such-host.invalid" to address' in text
    assert f'server at "127.0.0.1", port {silent_port} failed: timeout expired' in text
    assert '"127.0.0.2", port 1 failed: Connection refused' in text
    assert '"/nowhere/.s.PGSQL.1" failed: No such file or directory' in text
    assert "hunter2" not in text


def test_authentication_failure_ends_the_search(server, parameters):
    """As libpq documents: the remaining hosts aren't tried."""
    with pytest.raises(psycopg2.OperationalError, match='role "nobody_of_that_name" does not exist') as caught:
        greenpg.connect(**parameters | {"host": "127.0.0.1,127.0.0.2", "user": "nobody_of_that_name"})
    assert "127.0.0.2" not in str(caught.value)


def test_target_session_attrs(parameters, server):
    conn = greenpg.connect(**parameters | {"host": "127.0.0.1,127.0.0.1"}, target_session_attrs="read-write")
    assert works(conn)
    with pytest.raises(psycopg2.OperationalError, match="server is not in hot standby mode"):
        greenpg.connect(**parameters, target_session_attrs="standby")
    assert works(greenpg.connect(**parameters, target_session_attrs="prefer-standby"))


def test_load_balance_hosts(parameters, names):
    names["many.example"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    seen = set()
    for _ in range(30):
        with contextlib.suppress(psycopg2.OperationalError):
            conn = greenpg.connect(**parameters | {"host": "many.example"}, load_balance_hosts="random")
            seen.add(conn.info.dsn_parameters["hostaddr"])
            assert works(conn)
    assert seen, "one of the addresses is the server's"


# -- names


def test_names_are_looked_up_by_the_hub_and_kept_as_host(parameters, names):
    names["db.example"] = ["127.0.0.1"]
    conn = greenpg.connect(**parameters | {"host": "db.example"})
    assert conn.info.host == "db.example"
    assert conn.info.dsn_parameters["hostaddr"] == "127.0.0.1"
    assert conn.dsn == extensions.make_dsn(**parameters | {"host": "db.example"}), "the caller's, not ours"
    assert works(conn)


def test_all_addresses_of_a_name_are_tried(parameters, names):
    names["db.example"] = ["127.0.0.9", "127.0.0.1"]
    conn = greenpg.connect(**parameters | {"host": "db.example"})
    assert works(conn)


def test_pgpass_is_looked_up_by_name(names, tmp_path):
    from greenpg.embedded import Server

    with Server(password="hunter2", port=0) as secured:
        names["db.example"] = ["127.0.0.1"]
        passfile = tmp_path / "pgpass"
        passfile.write_text("db.example:*:*:*:hunter2\n")
        passfile.chmod(0o600)
        parameters = extensions.parse_dsn(secured.tcp_dsn) | {"host": "db.example", "passfile": str(passfile)}
        del parameters["password"]
        assert works(greenpg.connect(**parameters))


@green_only
def test_name_server_that_does_not_answer(names, dsn):
    """Other tasks go on (the guard watches), and connect_timeout holds."""
    answer = hub().event()
    names["slow.example"] = lambda: (hub().run_in_thread(answer_later, hub()._natives), ["127.0.0.1"])[1]

    def answer_later(natives):
        natives.sleep(1.5)

    task = Task(lambda: greenpg.connect(host="slow.example", user="x", connect_timeout=1))
    for _ in range(5):
        assert works(greenpg.connect(dsn))
    task.join()
    assert isinstance(task.error, psycopg2.OperationalError)
    assert 'could not translate host name "slow.example" to address: timeout expired' in str(task.error)
    hub().sleep(0.6)
    assert not answer.wait(0)


def test_name_that_does_not_exist(names):
    with pytest.raises(psycopg2.OperationalError, match='could not translate host name "no-such-host.invalid"'):
        psycopg2.connect(host="no-such-host.invalid", dbname="x", user="x")


def test_localhost(parameters):
    assert works(greenpg.connect(**parameters | {"host": "localhost"}))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(parameters):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            port = listener.getsockname()[1]
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with pytest.raises(psycopg2.OperationalError, match=r'"::1", port \d+ failed: Connection refused'):
        greenpg.connect(host="::1", port=port, user="x", dbname="x")


# -- where the route comes from


def test_environment(parameters, monkeypatch, names):
    names["db.example"] = ["127.0.0.1"]
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGPORT", parameters["port"])
    monkeypatch.setenv("PGUSER", parameters["user"])
    monkeypatch.setenv("PGDATABASE", parameters["dbname"])
    conn = psycopg2.connect("")
    assert conn.info.host == "db.example"
    assert works(conn)


def test_service_file(parameters, monkeypatch, tmp_path, names):
    names["db.example"] = ["127.0.0.1"]
    service_file = tmp_path / "services.conf"
    service_file.write_text(
        f"[mine]\nhost=db.example\nport={parameters['port']}\nuser={parameters['user']}\n"
        f"dbname={parameters['dbname']}\nconnect_timeout=7\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(service_file))
    assert find_route("service=mine").timeout == 7
    conn = psycopg2.connect("service=mine")
    assert conn.info.host == "db.example"
    assert works(conn)


def test_unix_socket_is_left_as_it_is(dsn):
    route = find_route(dsn)
    assert [host.is_unix for host in route.hosts] == [True]
    assert route.dsn_to(route.hosts) == dsn


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("host=a,b port=1,2", [Host("a", "", "1"), Host("b", "", "2")]),
        ("host=a,b port=1", [Host("a", "", "1"), Host("b", "", "1")]),
        ("host=a hostaddr=1.2.3.4", [Host("a", "1.2.3.4", "5432")]),
        ("hostaddr=1.2.3.4,1.2.3.5", [Host("", "1.2.3.4", "5432"), Host("", "1.2.3.5", "5432")]),
        ("postgresql://u@a:1,[::1]:2/db", [Host("a", "", "1"), Host("::1", "", "2")]),
        ("host=/tmp", [Host("/tmp", "", "5432")]),
        ("host=a,b port=1,2,3", []),
    ],
)
def test_routes(dsn, hosts, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    assert find_route(dsn).hosts == hosts


def test_mismatched_lists_are_left_to_libpq():
    with pytest.raises(psycopg2.OperationalError, match="could not match 3 port numbers to 2 hosts"):
        psycopg2.connect("host=a,b port=1,2,3")
    with pytest.raises(psycopg2.OperationalError, match="invalid integer value"):
        psycopg2.connect("host=127.0.0.1 port=1 connect_timeout=soon")


# -- network defaults


def socket_option(conn, level, option):
    with socket.socket(fileno=os.dup(conn.fileno())) as duplicate:
        return duplicate.getsockopt(level, option)


def test_network_defaults(parameters):
    conn = greenpg.connect(**parameters)
    assert socket_option(conn, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert socket_option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    assert socket_option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
    assert socket_option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
    assert socket_option(conn, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60000
    conn.close()
    conn = greenpg.connect(**parameters, keepalives_idle=77, tcp_user_timeout=5000)
    assert socket_option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    assert socket_option(conn, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
    conn.close()
    conn = greenpg.connect(**parameters, keepalives=0)
    assert not socket_option(conn, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    conn.close()


def test_password_is_masked_in_dsn(parameters):
    conn = greenpg.connect(**parameters, password="hunter2")
    assert "hunter2" not in conn.dsn
    assert "password=xxx" in conn.dsn
    conn.close()


def test_nothing_is_left_behind(silent_port):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(psycopg2.OperationalError):
            greenpg.connect(host="127.0.0.1", port=silent_port, dbname="x", user="x", total_connect_timeout=0.05)
    assert not watch_module._watches
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# -- client_connection_check_interval


def check_interval(conn):
    with conn.cursor() as cur:
        cur.execute("SHOW client_connection_check_interval")
        return cur.fetchone()[0]


@pytest.fixture
def unknown_server(monkeypatch):
    monkeypatch.setattr(client_check, "_refusing", set())
    monkeypatch.setattr(client_check, "_taking", set())


def test_the_server_looks_whether_the_client_is_there(dsn, unknown_server):
    conn = greenpg.connect(dsn, application_name="checked", options="-c work_mem=5MB")
    assert check_interval(conn) == "3s"
    conn.cursor().execute("SET client_connection_check_interval = 0; RESET ALL")
    assert check_interval(conn) == "3s"
    assert conn.execute("SHOW work_mem").fetchone() == ("5MB",)
    conn.close()


def test_what_the_user_says_of_the_check_stands(dsn, monkeypatch):
    options = "-c client_connection_check_interval=3s"
    for conn in (greenpg.connect(dsn, options=options), psycopg2.connect(dsn, options=options)):
        assert check_interval(conn) == "3s"
        conn.close()
    monkeypatch.setenv("PGOPTIONS", "-c client_connection_check_interval=0")
    conn = greenpg.connect(dsn)
    assert check_interval(conn) == "0"
    conn.close()


def test_an_asynchronous_connection_has_it_where_it_is_known_to_be_taken(dsn, unknown_server):
    for expected in ("0", "3s"):
        conn = greenpg.connect(dsn, async_=True)
        greenpg.wait(conn)
        cur = conn.cursor()
        cur.execute("SHOW client_connection_check_interval")
        greenpg.wait(conn)
        assert cur.fetchone() == (expected,)
        conn.close()
        greenpg.connect(dsn).close()


def test_a_server_that_refuses_it_is_not_asked_again(dsn, unknown_server, monkeypatch):
    """One before PostgreSQL 14 says what this one says of a setting that doesn't exist."""
    monkeypatch.setattr(client_check, "SETTING", "no_such_setting")
    tried = []
    monkeypatch.setattr(
        connecting,
        "options_with_check",
        lambda route: tried.append(client_check.options_with_check(route)) or tried[-1],
    )
    for _ in range(2):
        conn = greenpg.connect(dsn)
        assert check_interval(conn) == "0"
        conn.close()
    assert tried == ["-c no_such_setting=3s", None]


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("FATAL:  unsupported startup parameter: options", True),  # PgBouncer
        ("FATAL:  unsupported startup parameter in options: client_connection_check_interval", True),
        ("FATAL:  Feature not supported: RDS Proxy currently doesn't support command-line options.", True),
        ('FATAL:  unrecognized configuration parameter "client_connection_check_interval"', True),
        ('FATAL:  role "nobody" does not exist', False),
        ("timeout expired", False),
    ],
)
def test_refusals_as_servers_and_poolers_say_them(message, refused, unknown_server):
    route = find_route("host=nowhere dbname=app")
    assert client_check.is_refusal(route, message) == refused
    assert (client_check.options_with_check(route) is None) == refused


# -- names that hang


@pytest.fixture
def hanging(names):
    """A function that lets names hang until the test is over."""
    ended = []
    sleep = hub().natives().sleep

    def hang():
        while not ended:
            sleep(0.01)
        raise OSError("name server does not answer")

    def let_hang(*hung):
        names.update(dict.fromkeys(hung, hang))

    yield let_hang
    ended.append(True)
    wait_until(lambda: not any(look_up._under_way.values()))


def test_a_name_that_hangs_takes_no_time_from_the_next(parameters, names, hanging):
    hanging("nowhere.example")
    names["db.example"] = ["127.0.0.1"]
    started = time.monotonic()
    others = parameters_without_host(parameters)
    conn = greenpg.connect(host="nowhere.example,db.example", **others, connect_timeout=1)
    assert 0.9 < time.monotonic() - started < 5
    assert conn.info.host == "db.example"
    conn.close()


def test_a_later_name_that_hangs_is_not_waited_for(parameters, names, hanging):
    hanging("nowhere.example")
    names["db.example"] = ["127.0.0.1"]
    started = time.monotonic()
    conn = greenpg.connect(host="db.example,nowhere.example", **parameters_without_host(parameters))
    assert time.monotonic() - started < 3
    conn.close()


@pytest.mark.may_block  # many native threads are begun
def test_abandoned_look_ups_starve_nobody(parameters, names, hanging):
    hung = [f"nowhere{n}.example" for n in range(40)]
    hanging(*hung)
    names["db.example"] = ["127.0.0.1"]
    others = parameters_without_host(parameters)

    def fails(name):
        with pytest.raises(psycopg2.OperationalError, match=f'"{name}" to address: timeout expired'):
            greenpg.connect(host=name, **others, connect_timeout=1)

    tasks = [Task(fails, name) for name in hung]
    hub().sleep(0.2)
    started = time.monotonic()
    greenpg.connect(host="db.example", **others, connect_timeout=2).close()
    assert time.monotonic() - started < 2
    for task in tasks:
        task.result()


def test_who_looks_the_same_name_up_shares_the_look_up(names, hanging):
    hanging("nowhere.example")

    def fails():
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            greenpg.connect(host="nowhere.example", connect_timeout=2)

    tasks = [Task(fails) for _ in range(10)]
    wait_until(lambda: look_up._under_way.get("nowhere.example"))
    assert len(look_up._under_way["nowhere.example"]) == 1
    for task in tasks:
        task.result()


def test_what_comes_late_is_used_when_the_others_fail(parameters, names):
    def slowly():
        hub().natives().sleep(1.5)
        return ["127.0.0.1"]

    names["slow.example"] = slowly
    names["dead.example"] = ["127.0.0.9"]  # where the server doesn't listen
    conn = greenpg.connect(
        host="dead.example,slow.example", **parameters_without_host(parameters), total_connect_timeout=10
    )
    assert conn.info.host == "slow.example"
    conn.close()


def test_all_names_are_given_to_libpq_where_it_chooses(names):
    names["one.example"] = ["127.0.0.1"]

    def slowly():
        hub().natives().sleep(0.5)
        return ["127.0.0.2"]

    names["two.example"] = slowly
    for options, expected in (("", 1), (" target_session_attrs=prefer-standby", 2), (" load_balance_hosts=random", 2)):
        found = look_up.Names(find_route(f"host=one.example,two.example{options}"), None).next_hosts()
        assert len(found) == expected


def parameters_without_host(parameters):
    return {name: value for name, value in parameters.items() if name != "host"}
