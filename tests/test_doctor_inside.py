"""`greenpg.doctor()` within a running program, on each hub; test_doctor.py has the programs that are set up wrongly."""

from __future__ import annotations

import time

import pytest
from kit import Task

import greenpg
from greenpg.hubs import hub

PATCHING = {
    "not_patched",
    "wrong_hub",
    "not_monkey_patched",
    "two_loops",
    "other_wait_callback",
    "wait_callback_replaced",
}


def codes(report):
    return {finding.code for finding in report.findings}


def test_a_program_at_work(make_pool, hub_name, dsn):
    pool = make_pool(min_size=1, max_size=2, name="shop")
    pool.wait()
    report = greenpg.doctor(pools=[pool], seconds=0.1)
    assert not codes(report) & (PATCHING | {"loop_blocked", "too_many_connections", "server_unreachable"})
    assert report.facts["greenpg_patched_for"] == hub_name
    assert report.facts["pools"] == ["shop (1 to 2)"]
    assert "shop (1 to 2)" in greenpg.doctor(dsn, seconds=0).facts["pools"], "it finds them"
    assert pool.fetchval("SELECT 42") == 42, "it has changed nothing"


@pytest.mark.only_hub("gevent", "eventlet")
@pytest.mark.may_block
def test_a_loop_that_is_blocked():
    def compute_without_a_pause():
        hub().sleep(0.1)
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            sum(range(1000))

    task = Task(compute_without_a_pause)
    report = greenpg.doctor(pools=[], seconds=1)
    task.join()
    (finding,) = [finding for finding in report.findings if finding.code == "loop_blocked"]
    assert "(compute_without_a_pause)" in finding.what
    assert report.facts["loop_blocked_seconds"] >= 0.3
