"""Types that are true: what mypy and pyright say of two programs that use greenpg. A part of `make check`."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.only_hub("threads")

DIRECTORY = Path(__file__).parent / "typing"
PROGRAM, MISTAKES = DIRECTORY / "program.py", DIRECTORY / "mistakes.py"


def said_by_mypy(path):
    """{line: what mypy says of it}"""
    arguments = ["--strict", "--no-error-summary", "--no-incremental", "--config-file=", str(path)]
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


def test_nothing_is_wrong_with_a_program_that_uses_every_name(said):
    assert said(PROGRAM) == {}


def test_every_mistake_is_found(said):
    marked = {n for n, line in enumerate(MISTAKES.read_text().splitlines(), 1) if line.endswith("# mistake")}
    found = said(MISTAKES)
    assert marked - found.keys() == set()
    assert {line: message for line, message in found.items() if line not in marked} == {}
