"""Random programs behave on greenpg as on plain blocking psycopg2: see tests/differential."""

import pytest
from differential.comparing import Comparison
from differential.databases import two_databases
from differential.oracle import Oracle
from differential.session import Session
from differential.subject import GreenSide
from kit import Task

SEEDS = {"gevent": range(1, 1001), "eventlet": range(10_001, 10_501), "threads": range(20_001, 20_501)}


@pytest.mark.may_block
@pytest.mark.timeout(300)  # on a busy machine
def test_no_difference_from_psycopg2(server, hub_name):
    with two_databases(server.dsn, hub_name) as (theirs, ours):
        oracle = Oracle(theirs)
        session = Session(ours, GreenSide())
        try:
            comparison = Comparison(oracle, session, print)
            Task(comparison.run, SEEDS[hub_name]).result(timeout=280)
        finally:
            session.close()
            oracle.close()
    assert comparison.compared == len(SEEDS[hub_name])
    assert not comparison.found, f"{len(comparison.found)} programs differ, printed above"
