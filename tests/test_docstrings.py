"""Every public name says what it is, and every call whether it suspends."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import greenpg
from greenpg import errors

pytestmark = pytest.mark.only_hub("threads")

#: Public modules beside `greenpg` and `greenpg.errors`: what they name in `__all__`, or else all that they define.
MODULES = ["greenpg.embedded", "greenpg.top", "greenpg.integrations", "greenpg.compat"]

#: Modules there that are for the others in their room.
INTERNAL = {"greenpg.integrations.operations", "greenpg.integrations.unit"}

#: The library's own words for it. "As `other()`" refers to another call's docstring.
SAYS = re.compile(r"[Ss]uspend|[Bb]locks|[Aa]s `[\w.]+\(\)`|[Tt]he same as `|does as `|raises as `|See `|[Ll]ike `")

#: Classes whose methods a server calls, nobody else.
FOR_SERVERS = {"greenpg.integrations.gunicorn.GreenpgWorker"}

OF_A_CLASS = re.compile(r"[Ii]ts methods (?:don't |may )?suspend|they\s+suspend|those named `do_...` suspend")


def modules():
    for name in MODULES:
        module = importlib.import_module(name)
        yield module
        if name in ("greenpg.integrations", "greenpg.compat"):
            for found in pkgutil.iter_modules(module.__path__, f"{name}."):
                if found.name not in INTERNAL:
                    yield importlib.import_module(found.name)


def public_objects():
    """(name, object)"""
    for name in [*greenpg.__all__]:
        yield f"greenpg.{name}", getattr(greenpg, name)
    for name in set(errors.__all__) - {*errors.sqlstate.__all__}:
        yield f"greenpg.errors.{name}", getattr(errors, name)
    for module in modules():
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        for name in names:
            if name != "GreenpgEventletWorker":  # gunicorn has none any more
                yield f"{module.__name__}.{name}", getattr(module, name)


def members(name, public):
    """The public methods and properties that greenpg itself defines in the class, and in its bases."""
    found = {}
    for base in reversed(public.__mro__):
        if base.__module__.startswith("greenpg"):
            found.update((key, value) for key, value in vars(base).items() if not key.startswith("_"))
    for key, value in found.items():
        yield f"{name}.{key}", value


def documented():
    """(name, object, whether it has to say if it suspends): a class may say it for its methods."""
    for name, public in public_objects():
        if inspect.isclass(public):
            yield name, public, False
            says_for_all = OF_A_CLASS.search(public.__doc__ or "")
            for key, value in () if name in FOR_SERVERS else members(name, public):
                function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                if isinstance(function, property):
                    yield key, function, False
                elif inspect.isfunction(function):
                    yield key, function, not says_for_all
        elif inspect.isfunction(public):
            yield name, public, True


def test_every_public_name_has_a_docstring():
    assert [name for name, value, _ in documented() if not (value.__doc__ or "").strip()] == []


def test_every_call_says_whether_it_suspends():
    silent = [name for name, value, is_call in documented() if is_call and not SAYS.search(value.__doc__ or "")]
    assert silent == []
