"""What mkdocs does with greenpg's pages besides rendering them: links out of docs/ lead to the repository.

Pages link to `../examples/chat.py`, which works in a checkout and on the repository's site. On the manual's own site
these files aren't, so the link gets the repository's address. A link to a file that doesn't exist is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError

from greenpg.errors.sqlstate import SQLSTATE_CLASSES

ROOT = Path(__file__).parents[1]

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(#[^)\s]*)?(\))")


def on_page_markdown(markdown, page, config, files):
    """Called by mkdocs with each page."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def absolute(match):
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if target.startswith("docs/"):
            return match[0]
        path = ROOT / target
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: there is no {target}")
        kind = "tree" if path.is_dir() else "raw" if path.suffix in (".svg", ".png") else "blob"
        return f"{match[1]}{config.extra['repository']}/{kind}/main/{target}{match[3] or ''}{match[4]}"

    return _LINK.sub(absolute, markdown).replace("\nSQLSTATES\n", f"\n{_sqlstate_classes()}\n")


def _sqlstate_classes() -> str:
    """reference/errors.md's table."""
    rows = [f"| `{code}` | `{cls.__name__}` |" for code, cls in sorted(SQLSTATE_CLASSES.items())]
    return "\n".join(["| SQLSTATE | class |", "|---|---|", *rows])
