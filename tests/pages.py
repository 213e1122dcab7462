"""The Python blocks of README and docs/, and the comments that say how tests/test_docs.py runs them.

The blocks of a page run one after the other, in one namespace that has `greenpg`, `gevent` and `dsn`. The examples'
connection strings lead to the tests' server. What a page doesn't show, but needs, stands in a comment before the block:

    <!-- test
    rows = [(1, "bolt")]
    -->

`<!-- test expects Error -->`: the next block raises that. `<!-- test as shop.py -->`: it is a file of that name.
`<!-- test compiles -->`: it isn't run, for it is of a library that isn't here.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from psycopg2 import extensions

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)

_PART = re.compile(
    r"^<!-- test(?P<hidden>\n.*?)-->$"
    r"|^<!-- test (?P<how>expects|as|compiles) ?(?P<what>\S*) -->$"
    r"|^(?P<indent> *)```python[^\n]*\n(?P<shown>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
_URI = re.compile(r"""(?<=["'])(postgresql(?:\+greenpg)?)://[\w:@/.-]*(?=["'])""")
_KEYWORDS = re.compile(r"""(?<=["'])host=(?:db|pg\w*)[ ,][^"']*(?=["'])""")


@dataclass(frozen=True)
class Block:
    """A Python block, or a piece of hidden code, and where it begins in its page."""

    page: Path
    line: int
    source: str
    how: str  # "run", "expects", "as", "compiles"
    what: str = ""

    def compiled(self):
        lines = "\n" * (self.line - 1)  # so that tracebacks show the page's lines
        return compile(lines + self.source, str(self.page), "exec", dont_inherit=True)

    def on(self, dsn):
        """The same, with the examples' connection strings leading to the server."""
        parameters = extensions.parse_dsn(dsn)
        query = "&".join(f"{name}={parameters[name]}" for name in parameters)
        source = _URI.sub(
            lambda found: f"{found[1]}://?{query}" if found[0] != f"{found[1]}://" else found[0], self.source
        )
        return Block(self.page, self.line, _KEYWORDS.sub(dsn, source), self.how, self.what)


def blocks_of(page):
    """All of the page, in order."""
    text = page.read_text()
    how, what = "run", ""
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 2
        if part["how"]:
            how, what = part["how"], part["what"]
        elif part["hidden"] is not None:
            yield Block(page, line - 1, part["hidden"], "run")
        else:
            yield Block(page, line, textwrap.dedent(part["shown"]), how, what)
            how, what = "run", ""


def name_of(page):
    return str(page.relative_to(ROOT))
