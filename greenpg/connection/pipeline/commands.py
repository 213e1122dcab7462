"""What can't go through a pipeline: known before anything is sent. No I/O."""

from __future__ import annotations

import re

import psycopg2

_FIRST_WORD = re.compile(rb"[\s(]*([A-Za-z]+)")
_BLANKS = b" \t\r\n\f\v"

#: They begin or end a transaction, of which psycopg2 is to know what it always knows: they are executed by themselves.
_ENDING = frozenset({b"BEGIN", b"START", b"COMMIT", b"END", b"ROLLBACK", b"ABORT", b"PREPARE"})

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


def goes_alone(statement: bytes) -> bool:
    """Whether it's to be executed in the ordinary way, everything before having been answered.

    Raises `psycopg2.ProgrammingError` for what libpq can't do in a pipeline: COPY, and several commands in one.
    """
    word = _FIRST_WORD.match(statement) or _FIRST_WORD.match(_without_comments(statement))
    command = b"" if word is None else word[1].upper()
    if command == b"COPY":
        raise psycopg2.ProgrammingError(
            "COPY can't be executed in a pipeline: use cur.copy() or copy_expert(), which wait for the statements "
            "before, or leave the block first"
        )
    if command in _ENDING:
        return True
    if b";" in statement and has_several_commands(statement):
        raise psycopg2.ProgrammingError(
            "several commands in one statement can't be executed in a pipeline: execute() each of them, which takes "
            "no round trip more"
        )
    return False


def has_several_commands(statement: bytes) -> bool:
    """Whether anything but comments follows a `;` that isn't a part of something else."""
    position, depth, is_over = 0, 0, False
    for start, end, token in _tokens(statement):
        if is_over and statement[position:start].strip(_BLANKS):
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
        if not is_over or not statement[position:].strip(_BLANKS):
            return False
    return _ATOMIC_BODY.search(statement) is None


def _without_comments(statement: bytes) -> bytes:
    """What comes after the comments at its beginning."""
    position = 0
    for start, end, token in _tokens(statement):
        if statement[position:start].strip(_BLANKS) or not token.startswith((b"--", b"/*")):
            break
        position = end
    return statement[position:]


def _tokens(statement: bytes) -> list[tuple[int, int, bytes]]:
    """(start, end, text) of strings, quoted names, comments, parentheses and semicolons."""
    tokens = []
    position = 0
    while (match := _TOKEN.search(statement, position)) is not None:
        start, end, token = match.start(), match.end(), match[0]
        if token.startswith(b"$"):
            closing = statement.find(token, end)
            end = len(statement) if closing < 0 else closing + len(token)
        elif token == b"/*":
            end = _end_of_comment(statement, end)
        tokens.append((start, end, token))
        position = end
    return tokens


def _end_of_comment(statement: bytes, position: int) -> int:
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(statement, position)) is not None:
        depth += 1 if edge[0] == b"/*" else -1
        position = edge.end()
    return len(statement) if depth else position
