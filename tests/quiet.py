"""What says "Doesn't suspend" doesn't: greenlet's trace hook looks at each task that is left, through all of the tests.

Functions are found by their docstrings; those that say "unless" or "but for" are left out.
"""

import ast
import re
import types
from pathlib import Path

import greenpg

ROOT = Path(greenpg.__file__).parent

_PROMISE = re.compile(r"\b(?:doesn't|none) suspends?\b(?!,? (?:unless|but for))", re.IGNORECASE)


def promising_functions():
    """{(file, first line): name} of the functions that promise it; of the ledger all, as the head of its file says."""
    found = {}
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        all_of_it = path.name == "ledger.py"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (all_of_it or _PROMISE.search(ast.get_docstring(node) or "")):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[str(path), first] = f"{path.relative_to(ROOT)}: {node.name}()"
    return found


class Watch:
    """Notes, between `start()` and `stop()`, which of the functions this native thread's tasks were left in."""

    def __init__(self):
        self._promising = promising_functions()
        self._judged: dict[types.CodeType, str | None] = {}
        self.broken: list[str] = []

    def start(self):
        import greenlet

        self._before = greenlet.settrace(self._look)

    def stop(self):
        import greenlet

        greenlet.settrace(self._before)

    def _look(self, event, args):
        frame = args[0].gr_frame
        while frame is not None:
            code = frame.f_code
            if code not in self._judged:
                self._judged[code] = self._promising.get((code.co_filename, code.co_firstlineno))
            if self._judged[code]:
                self.broken.append(self._judged[code])
            frame = frame.f_back
