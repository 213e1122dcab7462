"""`use_primary()`: what is read within it is the primary's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_pinned: ContextVar[bool] = ContextVar("greenpg_is_pinned", default=False)


def is_pinned() -> bool:
    """Whether the running task is in such a block."""
    return _is_pinned.get()


@contextmanager
def use_primary() -> Iterator[None]:
    """`with use_primary():`, or `@use_primary()` on a view: the running task reads nothing from replicas. Doesn't
    suspend."""
    before = _is_pinned.set(True)
    try:
        yield
    finally:
        _is_pinned.reset(before)
