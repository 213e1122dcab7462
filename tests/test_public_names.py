"""The public names: what a program finds right after `import greenpg`, and what that import leaves alone."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import greenpg
from greenpg import errors

PROGRAM = Path(__file__).parent / "typing" / "program.py"

only_once = pytest.mark.only_hub("threads")


def run_alone(program):
    """In a Python that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@only_once
def test_importing_greenpg_changes_nothing_in_psycopg2():
    run_alone(
        """
import sys
import psycopg2.errorcodes, psycopg2.errors, psycopg2.extras, psycopg2.pool, psycopg2.sql, psycopg2.tz

def state():
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "psycopg2"}
    names = {(name, key): id(value) for name, module in modules.items() for key, value in vars(module).items()}
    classes = {value for module in modules.values() for value in vars(module).values() if isinstance(value, type)}
    return names, {c: (c.__bases__, dict(vars(c))) for c in classes}, psycopg2.extensions.get_wait_callback()

before = state()
import greenpg
from greenpg.errors import PoolTimeout, DeadlineExceeded, safe_to_retry
assert state() == before
greenpg.errors.IntegrityConstraintViolation
assert issubclass(psycopg2.errors.UniqueViolation, greenpg.errors.IntegrityConstraintViolation)
"""
    )


@only_once
@pytest.mark.parametrize(
    "how",
    [
        "from greenpg.errors import IntegrityConstraintViolation as wanted",
        "import greenpg; wanted = greenpg.errors.IntegrityConstraintViolation",
        "from greenpg.errors import *; wanted = IntegrityConstraintViolation",
        "import greenpg; wanted = greenpg.errors.SQLSTATE_CLASSES['23']",
        "import pickle; wanted = pickle.loads(b'cgreenpg.errors\\nIntegrityConstraintViolation\\n.')",
    ],
)
def test_whoever_gets_a_class_can_catch_with_it(how):
    run_alone(
        f"""
import psycopg2.errors
{how}
try:
    raise psycopg2.errors.UniqueViolation
except wanted:
    pass
"""
    )


@only_once
def test_unknown_names_are_refused():
    for module in (greenpg, greenpg.errors):
        with pytest.raises(AttributeError, match="has no attribute 'sever'"):
            _ = module.sever


@only_once
def test_embedded_is_there_after_import_greenpg_and_not_imported_before():
    program = "import sys, greenpg; assert 'greenpg.embedded' not in sys.modules; print(greenpg.embedded.Server)"
    assert run_alone(program).strip() == "<class 'greenpg.embedded.postgres.Server'>"


@only_once
def test_public_classes_say_where_everybody_finds_them():
    for name in greenpg.__all__:
        public = getattr(greenpg, name)
        if isinstance(public, type):
            module = sys.modules[public.__module__]
            assert public.__module__ in ("greenpg", "greenpg.errors")
            assert getattr(module, public.__qualname__) is public


def public_names():
    """Those of `greenpg` and `greenpg.errors`' own, and the attributes of their classes."""
    for name in {*greenpg.__all__, *errors.__all__} - {*errors.sqlstate.__all__}:
        yield name
        public = getattr(greenpg, name, None)
        if isinstance(public, type):
            for base in public.__mro__:
                if base.__module__.startswith("greenpg"):
                    yield from (attribute for attribute in vars(base) if not attribute.startswith("_"))


@only_once
def test_the_program_uses_every_public_name():
    used = set(re.findall(r"\w+", PROGRAM.read_text()))
    assert sorted(set(public_names()) - used) == []


def test_the_program_runs(dsn):
    specification = importlib.util.spec_from_file_location("program", PROGRAM)
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    program.main(dsn)
