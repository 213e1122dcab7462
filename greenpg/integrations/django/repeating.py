"""`run_in_transaction()`: Django's `atomic()`, repeated when the server says that it should be."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

import psycopg2.errors
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, transaction

from ...hubs import hub

logger = logging.getLogger("greenpg.django")

T = TypeVar("T")

_REPEATABLE = (psycopg2.errors.SerializationFailure, psycopg2.errors.DeadlockDetected)
_FIRST_DELAY = 0.005
_LONGEST_DELAY = 1.0


def run_in_transaction(function: Callable[[], T], *, using: str | None = None, attempts: int = 5) -> T:
    """`function()` in an outermost `atomic()` block, repeated if that fails by a serialization failure or deadlock.

    Returns its result. After `attempts` (default 5) failures of that kind, with growing, jittered pauses of 5 ms to 1 s
    in between, in which the connection is others', the last one is raised (`django.db.OperationalError`). Everything
    else is raised at once. `on_commit()` callbacks run once, after the attempt that was committed. RuntimeError inside
    an atomic block, where there is nothing that could be repeated; ValueError for less than one attempt. Suspends.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    alias = DEFAULT_DB_ALIAS if using is None else using
    delay = _FIRST_DELAY
    for attempt in range(1, attempts + 1):
        try:
            with transaction.atomic(using=alias, durable=True):
                return function()
        except OperationalError as error:
            if attempt == attempts or not isinstance(error.__cause__, _REPEATABLE):
                raise
            logger.info("attempt %d of %d failed: %s", attempt, attempts, type(error.__cause__).__name__)
        wrapper = connections[alias]
        if getattr(wrapper, "pool", None) is not None and not wrapper.in_atomic_block:  # as it is within a TestCase
            wrapper.close()
        hub().sleep(delay * random.uniform(0.5, 1.5))
        delay = min(delay * 2, _LONGEST_DELAY)
    raise AssertionError("unreachable")
