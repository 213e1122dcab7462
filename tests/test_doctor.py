"""`greenpg doctor` on programs that are set up wrongly, each in its own way, and on some that are right.

The programs are in tests/doctor; their docstrings say what is to be found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import extensions

import greenpg
from greenpg.diagnosis.installation import check_libpq
from greenpg.embedded import Server

pytestmark = pytest.mark.only_hub("threads")

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).with_name("doctor")
GOOD_SETTINGS = {
    "max_connections": 100,
    "idle_in_transaction_session_timeout": "60s",
    "client_connection_check_interval": "3s",
    "log_min_duration_statement": "1s",
}


@pytest.fixture(scope="module")
def good_server():
    with Server(settings=GOOD_SETTINGS, port=0) as server:
        yield server


def run(*arguments, dsn="", path=(), **environment):
    """The report of `greenpg doctor`, its exit status and its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "greenpg", "doctor", "--json", *arguments],
        cwd=PROGRAMS,
        env=os.environ | {"GREENPG_DSN": dsn, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path]))} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode, done.stderr


def codes(report):
    return [finding["code"] for finding in report["findings"]]


def directives(program):
    text = program.read_text()
    found = dict(re.findall(r"^(finds|says|hides|options): (.*)$", text, re.MULTILINE))
    assert "finds" in found, f"{program} doesn't say what is to be found"
    return found


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("*[!f].py")), ids=lambda program: program.stem)
def test_a_program(program, good_server):
    wanted = directives(program)
    report, status, errors = run(
        "--app", program.stem, *wanted.get("options", "").split(), dsn=good_server.dsn, GREENPG_BEGIN=""
    )
    found = codes(report)
    assert sorted(found) == sorted(wanted["finds"].replace("nothing", "").split()), (report, errors)
    assert status == (0 if all(finding["level"] == "advice" for finding in report["findings"]) else 1)
    for finding in report["findings"]:
        assert finding["what"] and finding["why"] and finding["remedy"]
    if "says" in wanted:
        assert any(wanted["says"] in finding["what"] for finding in report["findings"]), report
    if "hides" in wanted:
        assert wanted["hides"] not in json.dumps(report) + errors
    if not found:
        assert "Traceback" not in errors and "Warning" not in errors, errors


def test_two_psycopg2s(tmp_path):
    # what pip leaves of psycopg2 when psycopg2-binary is installed over it
    package = tmp_path / "psycopg2-2.9.10.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: psycopg2\nVersion: 2.9.10\n")
    report, status, _ = run(path=[tmp_path])
    assert (codes(report), status) == (["two_psycopg2"], 1)


@pytest.mark.parametrize(
    ("version", "is_found"),
    [(160009, True), (170009, True), (170010, False), (180003, True), (180004, False), (190000, False)],
)
def test_libpq_that_loses_rests_of_tls_records(version, is_found):
    assert [finding.code for finding in check_libpq(version)] == ["libpq_tls"] * is_found


def test_the_servers_settings(server):
    """The server as PostgreSQL is delivered."""
    quick = f"{server.dsn} options='-c idle_session_timeout=5000 -c client_connection_check_interval=0'"
    report, status, _ = run("--dsn", quick, "--app", "right_threads", dsn=server.dsn)
    assert set(codes(report)) == {"idle_in_transaction", "connection_check", "slow_statements", "idle_session_timeout"}
    assert status == 1
    report, status, _ = run("--dsn", server.dsn)
    assert set(codes(report)) == {"idle_in_transaction", "slow_statements"}
    assert status == 0, "advice alone is no failure"


def test_the_limits_of_role_and_database(good_server):
    conn = greenpg.connect(good_server.dsn)
    conn.autocommit = True
    with conn.cursor() as cur:
        cur.execute("CREATE ROLE narrow LOGIN CONNECTION LIMIT 5")
        dsn = extensions.make_dsn(good_server.dsn, user="narrow")
        report, _, _ = run("--app", "right_threads", dsn=dsn)
        assert codes(report) == ["too_many_connections"]
        assert "CONNECTION LIMIT" in report["findings"][0]["what"]
        cur.execute("DROP ROLE narrow")
    conn.close()


@pytest.mark.skipif(not shutil.which("pgbouncer"), reason="pgbouncer isn't installed")
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_pgbouncer(mode, good_server):
    with tempfile.TemporaryDirectory() as folder:  # pytest's tmp_path is out of its reach when it isn't root
        _look_at_pgbouncer(mode, good_server, Path(folder))


def _look_at_pgbouncer(mode, good_server, tmp_path):
    parameters = extensions.parse_dsn(good_server.tcp_dsn)
    (tmp_path / "users").write_text('"postgres" ""\n')
    (tmp_path / "ini").write_text(
        f"[databases]\npostgres = host={parameters['host']} port={parameters['port']} user=postgres\n"
        f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {tmp_path}\nlisten_port = 6432\npool_mode = {mode}\n"
        f"auth_type = trust\nauth_file = {tmp_path}/users\nlogfile =\npidfile =\n"
    )
    if os.getuid() == 0:  # which pgbouncer refuses to be
        shutil.chown(tmp_path, "nobody")
    command = ["pgbouncer", *(["-u", "nobody"] if os.getuid() == 0 else []), "-q", str(tmp_path / "ini")]
    pgbouncer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        dsn = f"host={tmp_path} port=6432 user=postgres dbname=postgres"
        until = time.monotonic() + 20
        while True:
            try:
                psycopg2.connect(dsn).close()
                break
            except psycopg2.OperationalError:
                assert pgbouncer.poll() is None and time.monotonic() < until
                time.sleep(0.05)
        report, status, _ = run("--dsn", dsn)
    finally:
        pgbouncer.terminate()
        pgbouncer.wait(20)
    assert codes(report) == (["pooler_transactions"] if mode == "transaction" else [])
    assert status == (mode == "transaction")
    facts = next(facts for name, facts in report["facts"].items() if name.startswith("server "))
    assert facts["pooler"] == f"yes, lending for each {mode}"


def test_what_was_imported_before_the_patching(good_server):
    report, _, _ = run("--app", "right_gevent", dsn=good_server.dsn)
    assert "greenpg" not in report["facts"]["imported_before_patching"]
    report, _, _ = run("--app", "wrong_preload", "--config", "preload_conf.py", dsn=good_server.dsn)
    assert {"greenpg", "psycopg2", "wrong_preload"} <= set(report["facts"]["imported_before_patching"])


def test_wrong_arguments():
    for arguments, text in [
        (["--dsn", "nonsense nonsense"], "--dsn"),
        (["--config", "nowhere.py"], "--config: there is no file nowhere.py"),
        (["--seconds", "-1"], "--seconds"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "greenpg", "doctor", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr


def test_within_a_program(good_server):
    """`greenpg.doctor()`, and its report for people."""
    with greenpg.ConnectionPool(good_server.dsn, min_size=1, max_size=200, name="too big") as pool:
        report = greenpg.doctor(pools=[pool], workers=2)
    assert [finding.code for finding in report.findings] == ["too_many_connections"]
    assert not report.is_well
    text = str(report)
    assert "error: the program may open 400 connections (2 workers with 200)" in text
    assert "why:" in text and "do:" in text and "server version: 18" in text
    assert greenpg.doctor(pools=[]).is_well
    with pytest.raises(psycopg2.ProgrammingError):
        greenpg.doctor("nonsense nonsense")
