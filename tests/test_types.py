"""Types that are true: what mypy and pyright say of two programs that use greenpg."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import greenpg
from greenpg import errors

DIRECTORY = Path(__file__).parent / "typing"
PROGRAM, MISTAKES = DIRECTORY / "program.py", DIRECTORY / "mistakes.py"


def said_by_mypy(path):
    """{line: what mypy says of it}"""
    arguments = [
        "--strict",
        "--no-error-summary",
        "--show-error-codes",
        "--no-incremental",
        "--config-file=",
        str(path),
    ]
    done = subprocess.run([sys.executable, "-m", "mypy", *arguments], capture_output=True, text=True, timeout=110)
    found = re.findall(rf"{path.name}:(\d+): error: (.*)", done.stdout)
    assert done.returncode in (0, 1) and bool(found) == bool(done.returncode), done.stdout + done.stderr
    return {int(line): message for line, message in found}


def said_by_pyright(path):
    arguments = ["--outputjson", "--pythonpath", sys.executable, "--project", str(DIRECTORY), str(path)]
    done = subprocess.run([sys.executable, "-m", "pyright", *arguments], capture_output=True, text=True, timeout=110)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1: one["message"] for one in found if one["severity"] == "error"}


@pytest.fixture(params=["mypy", "pyright"])
def said(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} isn't installed: make check has it")
    return {"mypy": said_by_mypy, "pyright": said_by_pyright}[request.param]


@pytest.mark.only_hub("threads")
def test_nothing_is_wrong_with_a_program_that_uses_every_name(said):
    assert said(PROGRAM) == {}


@pytest.mark.only_hub("threads")
def test_every_mistake_is_found(said):
    marked = {n for n, line in enumerate(MISTAKES.read_text().splitlines(), 1) if line.endswith("# mistake")}
    found = said(MISTAKES)
    assert marked - found.keys() == set()
    assert {line: message for line, message in found.items() if line not in marked} == {}


def public_names():
    """Those of `greenpg` and `greenpg.errors`' own, and the attributes of their classes."""
    for name in {*greenpg.__all__, *errors.__all__} - {*errors.sqlstate.__all__}:
        yield name
        public = getattr(greenpg, name, None)
        if isinstance(public, type):
            for base in public.__mro__:
                if base.__module__.startswith("greenpg"):
                    yield from (attribute for attribute in vars(base) if not attribute.startswith("_"))


@pytest.mark.only_hub("threads")
def test_the_program_uses_every_public_name():
    used = set(re.findall(r"\w+", PROGRAM.read_text()))
    assert sorted(set(public_names()) - used) == []


def test_the_program_runs(dsn):
    specification = importlib.util.spec_from_file_location("program", PROGRAM)
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    program.main(dsn)
