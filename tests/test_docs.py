"""README and the manual: every Python block runs, every link leads somewhere."""

from __future__ import annotations

import contextlib
import re

import pytest
from pages import PAGES, ROOT, blocks_of, name_of

import greenpg

WITH_BLOCKS = [page for page in PAGES if any(True for _ in blocks_of(page))]
CLOSABLE = (
    greenpg.ConnectionPool,
    greenpg.Cluster,
    greenpg.Listener,
    greenpg.Connection,
    greenpg.SharedConnection,
)
REPOSITORY = "https://github.com/greenpg/greenpg"


@pytest.mark.only_hub("gevent")
@pytest.mark.may_block
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_blocks_run(page, dsn, tmp_path, monkeypatch):
    import gevent

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSN", dsn)
    namespace = {"__name__": "page", "greenpg": greenpg, "gevent": gevent, "dsn": dsn}
    with ended(namespace):
        for block in [block.on(dsn) for block in blocks_of(page)]:
            if block.how == "as":
                (tmp_path / block.what).write_text(block.source)
            code = block.compiled()
            if block.how in ("run", "expects"):
                error = namespace.get(block.what, Exception) if block.how == "expects" else ()
                with pytest.raises(error) if error else contextlib.nullcontext(), gevent.Timeout(20):
                    exec(code, namespace)


@contextlib.contextmanager
def ended(namespace):
    """Close what a page has left open."""
    try:
        yield
    finally:
        for left in list(namespace.values()):
            if isinstance(left, CLOSABLE):
                left.close()
        greenpg.close_pools()


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith(REPOSITORY):
            found = re.fullmatch(rf"{REPOSITORY}(?:/(?:blob|tree|raw)/main/(.*)|/issues.*|/security.*)?", target)
            assert found, link
            path = ROOT / (found[1] or "")
        elif re.match(r"\w+:", target):
            continue
        else:
            path = page.parent / target if target else page
        assert path.exists(), link
        if anchor and path.suffix == ".md" and "reference" not in path.parts:
            assert anchor in anchors(path), link


def anchors(page):
    """The headings' names in addresses, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    named = {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    return named | set(re.findall(r'<a id="([^"]+)">', page.read_text()))


@pytest.mark.only_hub("threads")
def test_the_reference_has_every_public_name():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, flags=re.MULTILINE))
    listed = re.search(r"members: \[(.*)\]", (ROOT / "docs" / "reference" / "errors.md").read_text())
    members = set(re.findall(r"\w+", listed[1]))
    own_errors = {name for name in greenpg.errors.__all__ if not name.isupper()} - {*greenpg.errors.sqlstate.__all__}
    assert own_errors - members == set()
    assert {name for name in greenpg.__all__ if f"greenpg.{name}" not in shown and name not in members} == set()


@pytest.mark.only_hub("threads")
def test_the_readme_stands_by_itself():
    """PyPI shows it without the repository: its links are absolute."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https://|#", link)] == []
