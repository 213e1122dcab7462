"""A few hundred of Django's own tests on the engine, monkey-patched; all of them: `make django-suite`."""

from __future__ import annotations

import subprocess

import pytest
from psycopg2.extensions import parse_dsn

pytest.importorskip("django")
import django_suite

pytestmark = [pytest.mark.only_hub("threads"), pytest.mark.timeout(400)]

LABELS = ["transactions", "transaction_hooks", "backends.base", "backends.postgresql", "select_for_update"]
LABELS += ["delete", "get_or_create", "raw_query", "bulk_create", "servers", "db_utils"]


@pytest.mark.parametrize("hub", ["gevent", "threads"])
def test_a_slice(dsn, hub):
    try:
        suite = django_suite.unpacked_suite()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Django's sdist can't be had: {error.stderr.decode()[-200:]}")
    tests, trouble = django_suite.run_batch(LABELS, django_suite.GREENPGS, hub, suite, parse_dsn(dsn), 60)
    assert not trouble
    failed = {test: reason for test, (outcome, reason) in tests.items() if outcome == "failed"}
    unexplained = {test: reason for test, reason in failed.items() if not django_suite.explained(test)}
    assert not unexplained, "\n".join(f"{test}\n{reason}" for test, reason in unexplained.items())
    assert len(django_suite.passing(tests)) > 300
