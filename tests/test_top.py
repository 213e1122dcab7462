"""`greenpg top`: the Unix socket, the terminal's view, and the web page, in headless Chromium if it is there."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
from kit import Task, wait_until

import greenpg
from greenpg.hubs import hub
from greenpg.top import TopApp
from greenpg.top.history import percentiles
from greenpg.top.socket_server import TopClient
from greenpg.top.terminal import frame
from greenpg.top.view import View

TOKEN = "a-token-of-some-length"
ROOT = Path(__file__).parents[1]


def look(view, **options):
    return view.look(**options)["pools"]


def test_who_holds_what(make_pool, dsn):
    pool = make_pool(min_size=1, max_size=2, name="shop")
    view = View((pool,))
    done = hub().event()

    def a_function_that_holds():
        with pool.connection():
            done.wait(time.monotonic() + 30)

    with pool.connection() as conn:
        pid = conn.info.backend_pid
        wait_until(lambda: look(view, server=False)[0]["used"] == 1)
        task = Task(a_function_that_holds)
        wait_until(lambda: pool.get_stats()["pool_lent"] == 2)
        waiting = Task(pool.fetchval, "SELECT 42")
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
        (shown,) = look(view, stacks=True)
        assert (shown["name"], shown["used"], shown["idle"], shown["waiting"]) == ("shop", 2, 0, 1)
        longest, other = shown["holders"]
        assert longest["pid"] == pid and longest["seconds"] >= other["seconds"]
        assert "a_function_that_holds" in other["stack"]
        assert look(view)[0]["holders"][1]["stack"] is None, "only if asked for"
    assert waiting.result() == 42
    done.set()
    task.join()
    assert look(view)[0]["holders"] == []
    json.dumps(view.look())


def test_the_servers_view(make_pool, admin):
    pool = make_pool(min_size=2, max_size=2, name="shop")
    admin.cursor().execute(
        "DROP TABLE IF EXISTS top_locks; CREATE TABLE top_locks (n int); INSERT INTO top_locks VALUES (1)"
    )
    with pool.connection() as first, pool.connection() as second:
        first.execute("UPDATE top_locks SET n = 2")
        task = Task(second.execute, "UPDATE top_locks SET n = 3")
        view, secret = View((pool,), statements=True), View((pool,))

        def blocked():
            (server,) = view.look()["servers"]
            return next((session for session in server["sessions"] if session["blocked_by"]), None)

        wait_until(blocked)
        session = blocked()
        assert session["pid"] == second.info.backend_pid
        assert session["blocked_by"] == [first.info.backend_pid]
        assert session["statement"] == "UPDATE top_locks SET n = 3" and session["wait_type"] == "Lock"
        (server,) = secret.look()["servers"]
        assert server["pools"] == ["shop"] and server["error"] is None
        assert [s["pid"] for s in server["sessions"][:2]] == [c.info.backend_pid for c in (first, second)], "who blocks"
        assert all(session["statement"] is None for session in server["sessions"]), "no text unless asked for"
        first.rollback()
        task.join()
    admin.cursor().execute("DROP TABLE top_locks")


def test_a_server_that_does_not_answer(make_pool):
    pool = make_pool("host=127.0.0.1 port=1 user=app password=hunter2", min_size=0, max_size=1)
    data = View((pool,)).look()
    (server,) = data["servers"]
    assert "port 1 failed" in server["error"] and server["sessions"] == []
    assert "hunter2" not in json.dumps(data)


def test_history(make_pool):
    pool = make_pool(min_size=1, max_size=1, name="shop")
    view = View((pool,))
    look(view)
    until = time.monotonic() + 30
    while not (history := look(view)[0]["history"]) or not history[-1]["hold_ms"]:
        pool.execute("SELECT pg_sleep(0.01)")
        assert time.monotonic() < until
    sample = history[-1]
    assert sample["per_second"] > 0 and sample["used"] + sample["idle"] == 1
    assert 10 <= sample["hold_ms"]["p50"] <= sample["hold_ms"]["p99"]


def test_percentiles():
    assert percentiles({"1": 0, "10": 0, "inf": 0}) is None
    assert percentiles({"1": 0, "10": 100, "inf": 0}) == {"p50": 5.5, "p95": 9.55, "p99": 9.91}
    assert percentiles({"1": 50, "10": 0, "inf": 50}) == {"p50": 1.0, "p95": 10.0, "p99": 10.0}


# -- the socket


def test_the_socket(make_pool, tmp_path):
    pool = make_pool(min_size=1, max_size=1, name="shop")
    path = tmp_path / "top.sock"
    with greenpg.serve_top(path, pool) as server:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        assert [entry.name for entry in tmp_path.iterdir()] == ["top.sock"], "nothing else is left"
        client = TopClient(path)
        assert client.look()["pools"][0]["name"] == "shop"
        assert client.look(stacks=True)["program"]["pid"] == os.getpid()
        with pytest.raises(RuntimeError, match="another program serves"):
            greenpg.serve_top(path)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(path))
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(100) == b"", "it is sent away"
        assert client.look()["pools"]
        client.close()
        server.close()
        server.close()
    assert not path.exists()


def test_a_socket_that_was_left(tmp_path):
    path = tmp_path / "top.sock"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    with greenpg.serve_top(path):
        TopClient(path).close()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RuntimeError, match="is no socket"):
        greenpg.serve_top(file)
    assert file.read_text() == "mine"
    with pytest.raises(FileNotFoundError):
        greenpg.serve_top(tmp_path / "nowhere" / "top.sock")


PROGRAM = """
import sys, threading
import greenpg
greenpg.patch("threads")
pool = greenpg.ConnectionPool(sys.argv[1], min_size=1, max_size=2, name="shop")
server = greenpg.serve_top()
with pool.connection():
    print(server.path, flush=True)
    sys.stdin.read()
"""


def watch_in_a_terminal(path, environment):
    """`greenpg top`, in a terminal of its own, with the keys s and q."""
    terminal, inner = pty.openpty()
    command = [sys.executable, "-m", "greenpg", "top", str(path), "--interval", "0.2"]
    shown = b""

    def wait_for(text):
        nonlocal shown
        until = time.monotonic() + 30
        while text not in shown:
            ready, _, _ = select.select([terminal], [], [], 0.1)
            shown += os.read(terminal, 65536) if ready else b""
            assert time.monotonic() < until, shown

    watching = subprocess.Popen(command, env=environment, stdin=inner, stdout=inner, stderr=inner)
    try:
        os.close(inner)
        wait_for(b"1 of 2 in use")
        assert b"<string>" not in shown
        os.write(terminal, b"s")
        wait_for(b"<string>")
        os.write(terminal, b"q")
        wait_for(b"\x1b[?1049l")  # the terminal has its own screen back
        assert watching.wait(30) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(terminal)
    assert b"Traceback" not in shown


@pytest.mark.only_hub("threads")
def test_the_command(dsn, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path)}

    def top(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "greenpg", "top", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )

    done = top("--once")
    assert done.returncode == 1 and "call greenpg.serve_top() in yours" in done.stderr
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, dsn],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        path = Path(program.stdout.readline().strip())
        assert path.parent == tmp_path / "greenpg" and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        done = top("--once", "--stacks")
        assert (done.returncode, done.stderr) == (0, "")
        assert "shop: 1 of 2 in use" in done.stdout and 'File "<string>", line 9' in done.stdout
        data = json.loads(top("--json", str(path)).stdout)
        assert data["pools"][0]["holders"][0]["task"] == "thread 'MainThread'"
        watch_in_a_terminal(path, environment)
    finally:
        program.stdin.close()
        program.wait(30)
        program.stdout.close()
    assert not path.exists(), "it is removed at the end"
    assert top(str(path)).returncode == 1


def test_a_frame_of_the_terminal(make_pool):
    pool = make_pool(min_size=1, max_size=1, name="shop\x1b[2J")
    with pool.connection():
        data = View((pool,)).look(stacks=True)
    data["pools"][0]["history"] = [
        {"used": n % 2, "waiting": n, "per_second": 7.0, "wait_ms": None, "hold_ms": {"p50": 1, "p95": 20, "p99": 3000}}
        for n in range(100)
    ]
    for width in (40, 80, 200):
        lines = frame(data, width)
        assert all(len(line) <= width for line in lines)
        assert not any("\x1b" in line for line in lines), "names bring no control sequences"
    text = "\n".join(lines)
    assert "1 of 1 in use" in text and "p50 1.00 ms, p95 20 ms, p99 3.0 s" in text and "█" in text


# -- the page


def ask(app, path="/", query="", method="GET", token=None):
    """(status, headers, body) of a request, with the WSGI rules checked."""
    answer = {}

    def start_response(status, headers, exc_info=None):
        answer.update(status=status, headers=dict(headers))

    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if token:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    result = validator(app)(environ, start_response) if method != "POST" else app(environ, start_response)
    body = b"".join(result)
    if hasattr(result, "close"):
        result.close()
    return answer["status"].split()[0], answer["headers"], body.decode()


def test_the_app_lets_nobody_in_without_the_token(make_pool):
    app = TopApp(make_pool(min_size=1, name="shop"), token=TOKEN)
    for query in ("", "token=", "token=wrong", f"token={TOKEN}x"):
        status, _, body = ask(app, query=query)
        assert status == "403" and "shop" not in body
        assert ask(app, "/data", query=query)[0] == "403"
    assert ask(app, "/data", token="wrong-wrong-wrong")[0] == "403"
    assert ask(app, query=f"token={TOKEN}", method="POST")[0] == "405"
    assert ask(app, "/else", query=f"token={TOKEN}")[0] == "404"
    with pytest.raises(ValueError, match="16 characters or more"):
        TopApp(token="short")


def test_the_app(make_pool):
    app = TopApp(make_pool(min_size=1, name="shop"), token=TOKEN)
    status, headers, body = ask(app, query=f"token={TOKEN}")
    assert status == "200" and headers["Content-Type"] == "text/html; charset=utf-8"
    nonce = re.search(r"script-src 'nonce-([^']+)'", headers["Content-Security-Policy"])[1]
    assert (
        body.count(nonce) == 2 and TOKEN not in body and "http://" not in body.replace("http://www.w3.org/2000/svg", "")
    )
    status, headers, body = ask(app, "/data", token=TOKEN)
    assert status == "200" and headers["Cache-Control"] == "no-store"
    assert json.loads(body)["pools"][0]["name"] == "shop"


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.only_hub("threads")
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium isn't installed")
def test_the_page_in_a_browser(make_pool, admin, tmp_path):
    pool = make_pool(min_size=2, max_size=3, name="shop <b>&amp;")
    app = TopApp(pool, token=TOKEN, statements=True)
    mounted = {"/greenpg": app}

    def application(environ, start_response):
        prefix, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = f"/{prefix}", f"/{rest}"
        return mounted[f"/{prefix}"](environ, start_response)

    server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pool.connection() as conn:
            conn.execute("SELECT 'a <i>statement</i>'")
            page = f"http://127.0.0.1:{server.server_port}/greenpg/?token={TOKEN}"
            done = subprocess.run(
                [
                    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
                    *("--virtual-time-budget=4000", "--dump-dom", page),
                ],
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    dom = done.stdout
    assert 'data-pool="shop <b>&amp;amp;"' in dom or "shop &lt;b&gt;&amp;amp;" in dom, dom[-3000:] + done.stderr[-1000:]
    assert "<b>1</b> of 3 in use, 1 idle" in dom
    assert "thread 'MainThread'" in dom and str(conn.info.backend_pid) in dom
    assert "a &lt;i&gt;statement&lt;/i&gt;" in dom, "text stays text"
    assert dom.count("<figure>") == 4 and 'class="gone"' not in dom
