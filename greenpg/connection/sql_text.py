"""How far the text of a statement can be read without a parser. No I/O.

For client encodings whose characters can't contain the bytes of quotes: all that PostgreSQL has.
"""

from __future__ import annotations

import re

BLANKS = b" \t\r\n\f\v"

_TOKEN = re.compile(
    rb"(?<![\w\x80-\xff])[eE]'(?:[^'\\]|\\.|'')*'"
    rb"|'[^']*'"
    rb'|"[^"]*"'
    rb"|(?<![\w$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$"
    rb"|--[^\r\n]*|/\*|[();]",
    re.DOTALL,
)
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_ATOMIC_BODY = re.compile(rb"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)


def has_several_commands(statement: bytes) -> bool:
    """Whether anything but comments follows a `;` that isn't a part of something else."""
    position, depth, is_over = 0, 0, False
    for start, end, token in tokens(statement):
        if is_over and statement[position:start].strip(BLANKS):
            break
        position = end
        if token == b"(":
            depth += 1
        elif token == b")":
            depth -= 1
        elif token == b";" and depth <= 0:
            is_over = True
            continue
        if is_over and not token.startswith((b"--", b"/*", b";")):
            break
    else:
        if not is_over or not statement[position:].strip(BLANKS):
            return False
    return _ATOMIC_BODY.search(statement) is None


def without_comments(statement: bytes) -> bytes:
    """What comes after the comments at its beginning."""
    position = 0
    for start, end, token in tokens(statement):
        if statement[position:start].strip(BLANKS) or not token.startswith((b"--", b"/*")):
            break
        position = end
    return statement[position:]


def tokens(statement: bytes) -> list[tuple[int, int, bytes]]:
    """(start, end, text) of strings, quoted names, comments, parentheses and semicolons."""
    found = []
    position = 0
    while (match := _TOKEN.search(statement, position)) is not None:
        start, end, token = match.start(), match.end(), match[0]
        if token.startswith(b"$"):
            closing = statement.find(token, end)
            end = len(statement) if closing < 0 else closing + len(token)
        elif token == b"/*":
            end = _end_of_comment(statement, end)
        found.append((start, end, token))
        position = end
    return found


def _end_of_comment(statement: bytes, position: int) -> int:
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(statement, position)) is not None:
        depth += 1 if edge[0] == b"/*" else -1
        position = edge.end()
    return len(statement) if depth else position
