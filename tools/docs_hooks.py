"""What mkdocs does with greenpg's pages besides rendering them: links out of docs/ lead to the repository.

Pages link to `../examples/chat.py`, which works in a checkout and on the repository's site. On the manual's own site
these files aren't, so the link gets the repository's address; pictures come along. A link to a file that doesn't exist
is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from greenpg.errors.sqlstate import SQLSTATE_CLASSES

ROOT = Path(__file__).parents[1]

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files, config):
    """Called by mkdocs with all that is in docs/: the pictures elsewhere that pages show are added."""
    for page in files.documentation_pages():
        for match in _LINK.finditer(page.content_string):
            target = _target(page, match)
            if _is_picture(target) and files.get_file_from_path(target) is None and (ROOT / target).exists():
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Called by mkdocs with each page."""

    def absolute(match):
        target = _target(page.file, match)
        if target.startswith("docs/"):
            return match[0]
        path = ROOT / target
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: there is no {target}")
        if _is_picture(target):
            return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(page.file.src_uri))}{match[4]}"
        kind = "tree" if path.is_dir() else "blob"
        return f"{match[1]}{config.extra['repository']}/{kind}/main/{target}{match[3] or ''}{match[4]}"

    return _LINK.sub(absolute, markdown).replace("\nSQLSTATES\n", f"\n{_sqlstate_classes()}\n")


def _target(page, match) -> str:
    """Where the link leads, from the repository's root."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), match[2]))


def _is_picture(target: str) -> bool:
    return not target.startswith("docs/") and target.endswith((".svg", ".png"))


def _sqlstate_classes() -> str:
    """reference/errors.md's table."""
    rows = [f"| `{code}` | `{cls.__name__}` |" for code, cls in sorted(SQLSTATE_CLASSES.items())]
    return "\n".join(["| SQLSTATE | class |", "|---|---|", *rows])
