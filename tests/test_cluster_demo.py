"""examples/cluster: a real Patroni cluster whose primary dies under load, and the page that shows it, in Chromium."""

from __future__ import annotations

import http.client
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from kit import wait_until
from test_cli import ENVIRONMENT, ROOT, RunningServer

EXAMPLE = ROOT / "examples" / "cluster"
missing = runpy.run_path(str(EXAMPLE / "installing.py"))["what_is_missing"]()

pytestmark = pytest.mark.only_hub("threads")
needs_patroni = pytest.mark.skipif(missing is not None, reason=str(missing))
needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium isn't installed")


class Demo(RunningServer):
    def state(self):
        """What the page shows."""
        return self.get_json("/state")

    def post(self, path, **headers):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("POST", path, headers=headers)
            return connection.getresponse().status

    def press(self, button):
        return self.post(f"/do/{button}", **{"X-Demo": "1"})

    @property
    def port(self):
        return int(re.search(r"127\.0\.0\.1:(\d+)", self.output.read_text())[1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    command = [sys.executable, EXAMPLE / "demo.py", "--port", "0", "--nodes", "2"]
    temporary = Path(tempfile.mkdtemp(prefix="greenpg-"))
    temporary.chmod(0o755)  # PostgreSQL doesn't run as root
    try:
        environment = ENVIRONMENT | {"TMPDIR": os.fspath(temporary)}
        running = Demo(command, tmp_path_factory.mktemp("demo") / "output", env=environment)
        yield running
        assert running.stop() == 0  # which looks for processes that are left
        assert not list(temporary.iterdir())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def said(demo, text):
    return any(text in event["text"] for event in demo.state()["events"])


@needs_patroni
@needs_chromium
def test_the_page_in_a_browser(demo, tmp_path):
    wait_until(lambda: demo.state()["totals"].get("writes", 0) > 20, timeout=20)
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        [*browser, "--virtual-time-budget=4000", "--dump-dom", f"http://127.0.0.1:{demo.port}/"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    dom = done.stdout
    assert re.search(r'<section class="card node primary".*?<h2>pg1</h2><span class="badge" title="">primary', dom), (
        dom[-3000:] + done.stderr[-1000:]
    )
    assert re.search(r'<h2>pg2</h2><span class="badge" title="">replica', dom)
    assert "streaming, synchronous" in dom
    assert re.search(r"<b>[\d,]+</b><span>writes acknowledged", dom)
    assert re.search(r'good"><b>0</b><span>of them lost', dom)
    assert '<body class="gone"' not in dom and "writing and reading" in dom


@needs_patroni
def test_primary_dies_and_nothing_is_lost(demo):
    """PostgreSQL is killed, and Patroni makes the synchronous replica the primary. The program goes on by itself."""
    wait_until(lambda: [node["role"] for node in demo.state()["nodes"]] == ["primary", "replica"], timeout=20)
    assert demo.press("crash/primary") == 200
    wait_until(lambda: said(demo, "writes again"), timeout=60)
    wait_until(lambda: [node["role"] for node in demo.state()["nodes"]] == ["replica", "primary"], timeout=60)
    wait_until(lambda: {"pg1", "pg2"} <= demo.state()["totals"].keys(), timeout=60)  # reads go to the replica
    state = demo.state()
    totals = state["totals"]
    assert not totals.keys() & {"lost", "stale", "wrong"}, totals
    assert totals.get("doubts") == totals.get("settled")
    assert state["connections"] >= 4
    assert totals["writes"] > 20


@needs_patroni
def test_buttons_that_can_do_nothing(demo):
    assert demo.post("/do/kill/pg1") == 403, "from another page"
    assert demo.press("bring_back/pg2") == 409
    assert demo.press("kill/pg9") == 409
    assert demo.press("explode/pg1") == 409
    assert demo.get("/nothing").status == 404


def test_without_etcd():
    done = subprocess.run(
        [sys.executable, EXAMPLE / "demo.py", "--port", "0"],
        env=ENVIRONMENT | {"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "the cluster needs etcd: apt-get install etcd-server haproxy\n"
