"""What can't go through a pipeline: known before anything is sent. No I/O."""

from __future__ import annotations

import re

import psycopg2

from ..sql_text import has_several_commands, without_comments

_FIRST_WORD = re.compile(rb"[\s(]*([A-Za-z]+)")

#: They begin or end a transaction, of which psycopg2 is to know what it always knows: they are executed by themselves.
_ENDING = frozenset({b"BEGIN", b"START", b"COMMIT", b"END", b"ROLLBACK", b"ABORT", b"PREPARE"})


def goes_alone(statement: bytes) -> bool:
    """Whether it's to be executed in the ordinary way, everything before having been answered.

    Raises `psycopg2.ProgrammingError` for what libpq can't do in a pipeline: COPY, and several commands in one.
    """
    word = _FIRST_WORD.match(statement) or _FIRST_WORD.match(without_comments(statement))
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
