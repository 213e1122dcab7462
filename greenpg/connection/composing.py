"""Puts greenpg's classes under those that a caller names.

A `connection_factory` or `cursor_factory` becomes a class with the caller's methods on top and greenpg's just above
psycopg2's C class, where `super()` finds them. Neither greenpg class has slots, so the layouts agree.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=256)  # bounded: some programs make factories by the request
def compose(factory: Any, green: type) -> Any:
    """The factory with the green class under it, or the factory itself where it isn't a class that can carry it."""
    psycopg2_class = green.__mro__[-2]  # above it is only object
    if not isinstance(factory, type) or issubclass(factory, green) or not issubclass(factory, psycopg2_class):
        return factory
    if issubclass(green, factory):
        return green
    namespace = {"__qualname__": factory.__qualname__, "__doc__": factory.__doc__}
    if hasattr(factory, "__module__"):  # not if it was made by exec()
        namespace["__module__"] = factory.__module__
    return type(factory.__name__, (factory, green), namespace)


@lru_cache(maxsize=256)
def stacked(on_top: tuple[type, ...], green: type) -> Any:
    """The green class with others of greenpg's on top of it, the first one uppermost."""
    if not on_top:
        return green
    namespace = {"__module__": green.__module__, "__qualname__": green.__qualname__, "__doc__": green.__doc__}
    return type(green.__name__, (*on_top, green), namespace)


def adopt(made: Any, green: type) -> None:
    """Give what a function has made the class that `compose()` would have, unless its class is C or has slots."""
    factory: Any = type(made)
    composed = compose(factory, green)
    if composed is not factory and issubclass(composed, factory):
        try:
            made.__class__ = composed
        except TypeError:
            pass
