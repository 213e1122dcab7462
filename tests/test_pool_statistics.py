"""The pool's counters are psycopg_pool's, and count when they do: tests/pool_statistics.py."""

import pytest
from kit import Task
from pool_statistics import SITUATIONS, Counted

import greenpg
from greenpg.errors import PoolClosed, PoolTimeout, TooManyRequests

#: What psycopg_pool 3.3.3 said (psycopg 3.3.9), of what isn't zero; times are 1.
THEIRS = {
    "nothing": {"connections_num": 1, "connections_ms": 1, "pool_size": 1, "pool_available": 1},
    "lent_three_times": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 3,
        "usage_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "waited_for_a_new_one": {
        "connections_num": 2,
        "connections_ms": 1,
        "requests_num": 2,
        "requests_queued": 1,
        "requests_wait_ms": 1,
        "pool_size": 2,
        "pool_available": 2,
    },
    "lent_out": {"connections_num": 1, "connections_ms": 1, "requests_num": 1, "pool_size": 1},
    "waited_in_line": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 2,
        "requests_queued": 1,
        "requests_wait_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "waits_in_line": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 2,
        "requests_queued": 1,
        "pool_size": 1,
        "requests_waiting": 1,
    },
    "timed_out": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 2,
        "requests_queued": 1,
        "requests_errors": 1,
        "requests_wait_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "had_no_time_to_wait": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 2,
        "pool_size": 1,
        "pool_available": 1,
    },
    "too_many_waited": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 3,
        "requests_queued": 1,
        "requests_errors": 1,
        "requests_wait_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "was_closed": {"connections_num": 1, "connections_ms": 1, "requests_num": 1, "pool_size": 1},
    "came_back_closed": {
        "connections_num": 2,
        "connections_ms": 1,
        "requests_num": 1,
        "returns_bad": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "came_back_in_a_transaction": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "came_back_in_error": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "block_failed": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 1,
        "usage_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "reset_failed": {
        "connections_num": 2,
        "connections_ms": 1,
        "requests_num": 1,
        "usage_ms": 1,
        "returns_bad": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "check_found_a_dead_one": {
        "connections_num": 3,
        "connections_ms": 1,
        "connections_lost": 1,
        "pool_size": 2,
        "pool_available": 2,
    },
    "check_found_all_well": {"connections_num": 2, "connections_ms": 1, "pool_size": 2, "pool_available": 1},
    "lending_checked": {
        "connections_num": 1,
        "connections_ms": 1,
        "requests_num": 1,
        "usage_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "lending_found_a_dead_one": {
        "connections_num": 3,
        "connections_ms": 1,
        "requests_num": 1,
        "connections_lost": 1,
        "requests_queued": 1,
        "requests_wait_ms": 1,
        "usage_ms": 1,
        "pool_size": 2,
        "pool_available": 2,
    },
    "expired": {
        "connections_num": 2,
        "connections_ms": 1,
        "requests_num": 1,
        "usage_ms": 1,
        "pool_size": 1,
        "pool_available": 1,
    },
    "drained": {"connections_num": 2, "connections_ms": 1, "pool_size": 1, "pool_available": 1},
    "could_not_connect": {
        "requests_num": 1,
        "requests_queued": 1,
        "connections_num": 2,
        "connections_errors": 2,
        "requests_errors": 1,
        "requests_wait_ms": 1,
        "pool_size": 2,
    },
    "popped": {"pool_size": 1, "pool_available": 1},
}

#: Where greenpg differs, by intention.
_KEPT_BY_GETCONN = {"usage_ms": 1}  # "the time outside the pool": psycopg_pool counts that of connection() only
_NOTHING_GROWS = {"pool_size": 1}  # psycopg_pool opens another one while a check has the first
OURS = {
    **dict.fromkeys(
        (
            "waited_for_a_new_one",
            "waited_in_line",
            "timed_out",
            "too_many_waited",
            "came_back_closed",
            "came_back_in_a_transaction",
            "came_back_in_error",
        ),
        _KEPT_BY_GETCONN,
    ),
    "had_no_time_to_wait": _KEPT_BY_GETCONN | {"requests_errors": 1},  # it has got a PoolTimeout
    "was_closed": {"pool_size": 0},  # they are closed
    "check_found_a_dead_one": _NOTHING_GROWS | {"connections_num": 2, "pool_available": 1},
    "check_found_all_well": _NOTHING_GROWS | {"connections_num": 1},
    "lending_found_a_dead_one": _NOTHING_GROWS | {"connections_num": 2, "pool_available": 1},
    "could_not_connect": {"pool_size": 0},  # there is none
}
_OWN = {
    "connections_evicted",
    "connections_leaked",
    "deadlocks",
    "pool_lent",
    "requests_timeouts",
    "statements_multiplexed",
}
_OF_CHANCE = {"could_not_connect": {"connections_num", "connections_errors"}}  # how often it was tried


@pytest.mark.parametrize("situation", SITUATIONS)
def test_as_psycopg_pool(dsn, situation):
    def make(conninfo, **options):
        return greenpg.ConnectionPool(conninfo, open=True, **options)

    make.check = greenpg.ConnectionPool.check_connection
    counted = Counted(make, (PoolTimeout, PoolClosed, TooManyRequests), lambda function: Task(function).join, dsn)
    seen = counted.of(situation)
    expected = THEIRS[situation] | OURS.get(situation, {})
    chance = _OF_CHANCE.get(situation, set())
    assert chance <= seen.keys()
    left_out = _OWN | {"pool_min", "pool_max"} | chance
    assert {name: seen.get(name, 0) for name in (seen.keys() | expected.keys()) - left_out} == {
        name: expected.get(name, 0) for name in (seen.keys() | expected.keys()) - left_out
    }


def test_the_names_are_theirs(make_pool):
    """Those of the documentation: all are there from the beginning, and what is more has been thought of."""
    names = make_pool(min_size=0, max_size=1).get_stats().keys()
    assert names - _OWN == {
        *("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting", "usage_ms", "requests_num"),
        *("requests_queued", "requests_wait_ms", "requests_errors", "returns_bad", "connections_num"),
        *("connections_ms", "connections_errors", "connections_lost"),
    }
    assert names >= _OWN
