"""What is monkey-patched, what was taken before that, and whether psycopg2 waits in the same way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import psycopg2 as _psycopg2
from psycopg2 import extensions

from .. import hubs
from ..connection import installing
from ..connection.patching import is_patched
from .findings import ERROR, WARNING, Finding

psycopg2: Any = _psycopg2

#: What each library's own "patch everything" patches, as far as a program with a database needs it.
_EXPECTED = {
    "gevent": ("socket", "select", "ssl", "threading", "time", "queue", "subprocess", "os", "signal"),
    "eventlet": ("socket", "select", "thread", "time", "os"),
}
_CALL = {"gevent": "gevent.monkey.patch_all()", "eventlet": "eventlet.monkey_patch()"}
#: eventlet's copies of modules.
_COPIES = ("__original_module_", "__patched_module_")
#: Whose own business unpatched functions are.
_NOT_THE_PROGRAMS = sys.stdlib_module_names | {"gevent", "eventlet", "greenlet", "greenpg", "zope", "dns", "_pytest"}


def patched_modules(library: str) -> frozenset[str]:
    """The standard modules that gevent or eventlet has patched."""
    if library == "gevent":
        monkey = sys.modules.get("gevent.monkey")
        return frozenset(name for name in _EXPECTED[library] if monkey and monkey.is_module_patched(name))
    patcher = sys.modules.get("eventlet.patcher")
    return frozenset(name for name in _EXPECTED[library] if patcher and patcher.is_monkey_patched(name))


def has_two_loops() -> bool:
    """The program is monkey-patched by both libraries: nothing that waits can be relied on."""
    return all(map(patched_modules, _EXPECTED))


def check_patches(facts: dict[str, Any]) -> Iterator[Finding]:
    """The monkey-patching, and `greenpg.patch()`. Doesn't suspend."""
    if not has_two_loops():
        installing.settle()  # as the next connection would: the monkey-patching may have come after patch()
    patched = {library: names for library in _EXPECTED if (names := patched_modules(library))}
    facts["monkey_patched"] = {library: sorted(names) for library, names in patched.items()} or "nothing"
    facts["greenpg_patched_for"] = hubs.hub().name if is_patched() else "nothing"
    if len(patched) > 1:
        yield Finding(
            "two_loops",
            ERROR,
            "the program is monkey-patched by gevent and by eventlet",
            "Each has an event loop of its own; a task that waits in one stops all tasks of the other.",
            "Decide for one of them, and look who calls the other: " + " or ".join(_CALL.values()) + ".",
        )
    for library, names in patched.items():
        if missing := [name for name in _EXPECTED[library] if name not in names]:
            yield Finding(
                "partly_patched",
                ERROR if {"socket", "threading", "thread"} & set(missing) else WARNING,
                f"{library} has not patched {', '.join(missing)}",
                "What waits in these modules stops every task of the program.",
                f"Call {_CALL[library]} without arguments, before anything else is imported.",
            )
        if len(patched) == 1 and (taken := list(_taken_before(library))):
            yield Finding(
                "taken_before_patching",
                ERROR,
                f"taken before {library} patched it: {', '.join(taken[:8])}{' ...' if len(taken) > 8 else ''}",
                "These names are the blocking originals for ever: their waits stop every task, their locks may never "
                "be released.",
                f"Call {_CALL[library]} in the first lines of the program, before the imports of the modules named. "
                "Under gunicorn with preload_app that is the top of its configuration file.",
            )
    yield from _check_psycopg2(sorted(patched))


def _check_psycopg2(libraries: list[str]) -> Iterator[Finding]:
    callback = extensions.get_wait_callback()
    hub = hubs.hub().name
    if is_patched():
        if libraries and hub not in libraries:
            yield Finding(
                "wrong_hub",
                ERROR,
                f"greenpg is patched for {hub}, but the program is monkey-patched for {' and '.join(libraries)}",
                f"Queries wait by {hub}, and stop every task of {libraries[0]}.",
                f"Call greenpg.patch() without an argument, after {_CALL[libraries[0]]}.",
            )
        elif not libraries and hub != "threads":
            yield Finding(
                "not_monkey_patched",
                ERROR,
                f"greenpg is patched for {hub}, but nothing is monkey-patched",
                "Only queries let other tasks run; every other wait stops the program.",
                f"Call {_CALL[hub]} before anything else is imported.",
            )
    elif callback is not None:
        yield Finding(
            "other_wait_callback",
            WARNING,
            f"psycopg2 waits by {_name(callback)}, not by greenpg",
            "Two tasks on one connection can stop the process, a kill or timeout closes the connection, COPY and large "
            "objects are refused.",
            "Call greenpg.patch() in its place.",
        )
    elif libraries:
        yield Finding(
            "not_patched",
            ERROR,
            f"the program is monkey-patched for {libraries[0]}, but psycopg2 isn't: greenpg.patch() was not called",
            "Every query stops every other task until the server has answered.",
            "Call greenpg.patch() once, after the monkey-patching and in the process that does the work (under "
            "gunicorn: `-k greenpg.integrations.gunicorn.GreenpgWorker`).",
        )


def _name(callback: Any) -> str:
    return f"{getattr(callback, '__module__', None)}.{getattr(callback, '__qualname__', callback)}"


# -- what was taken before


def _taken_before(library: str) -> Iterator[str]:
    originals = _originals_of_gevent() if library == "gevent" else _originals_of_eventlet()
    for module_name, module in list(sys.modules.items()):
        top = module_name.partition(".")[0]
        if top in _NOT_THE_PROGRAMS or top.startswith(_COPIES) or not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if (original := originals.get(id(value))) is not None:
                yield f"{original} as {module_name}.{name}"


def _originals_of_gevent() -> dict[int, str]:
    """What is left of the originals, by id, with their names."""
    originals: dict[int, str] = {}
    monkey: Any = sys.modules["gevent.monkey"]
    for module_name, items in monkey.saved.items():
        module = sys.modules.get(module_name)
        for name, value in items.items():
            if callable(value) and getattr(module, name, None) is not value:
                originals[id(value)] = f"{module_name}.{name}"
    return originals


def _originals_of_eventlet() -> dict[int, str]:
    """eventlet keeps no list: the builtins by copies of their modules, the socket class by the one under it."""
    patcher: Any = sys.modules["eventlet.patcher"]
    names = {
        "time": ("sleep",),
        "select": ("select", "poll"),
        "_thread": ("start_new_thread", "allocate_lock", "LockType"),
    }
    patched = patched_modules("eventlet")
    originals: dict[int, str] = {}
    for module_name, functions in names.items():
        if module_name.strip("_") in patched:
            copy = patcher.original(module_name)
            originals |= {id(getattr(copy, name)): f"{module_name}.{name}" for name in functions if hasattr(copy, name)}
    if "socket" in patched:
        import _socket

        for subclass in _socket.socket.__subclasses__():
            if subclass.__module__ == "socket" and subclass.__name__ == "socket":
                originals[id(subclass)] = "socket.socket"
    return originals
