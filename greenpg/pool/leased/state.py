"""Which statements leave something in the server's session, that the program would miss on another connection.

The server's command tag tells for most. What it doesn't tell (which SET is local, functions, several commands in one
message) is looked for in the statement's own text, without its strings and comments. No I/O.
"""

from __future__ import annotations

import re

from ...connection.sql_text import BLANKS, has_several_commands, tokens

#: Tags of commands that do nothing else.
_TAGS = frozenset(
    {
        "DEALLOCATE",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "DISCARD PLANS",
        "DISCARD SEQUENCES",
        "DISCARD TEMP",
        "LISTEN",
        "LOAD",
        "PREPARE",
        "RESET",
        "UNLISTEN",
    }
)
#: Without any of these words, a single command of another tag doesn't, but for SET.
_MENTIONS = re.compile(
    rb"\b(?:HOLD|TEMP|TEMPORARY|pg_temp)\b|advisory_(?:un)?lock|set_config|dblink_connect", re.IGNORECASE
)
_KEEPS = re.compile(
    rb"(?:^|;)\s*(?:"
    rb"(?:LISTEN|UNLISTEN|DEALLOCATE|DISCARD|LOAD|RESET)\b"
    rb"|PREPARE\s+(?!TRANSACTION\b)"
    rb"|SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)"
    rb"|CREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\s+(?![^;]*\bON\s+COMMIT\s+DROP\b)"
    rb"|CREATE\b[^;]*\bpg_temp\s*\."
    rb"|DECLARE\b[^;]*\bWITH\s+HOLD\b)"
    rb"|\bINTO\s+(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\b"
    rb"|\bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\("
    rb"|\bdblink_connect(?:_u)?\s*\("
    rb"|\bset_config\s*\((?!(?:[^()]|\([^()]*\))*,\s*true\s*\))",
    re.IGNORECASE,
)


def leaves_state(query: str | bytes, tag: str) -> bool:
    """Whether the statement has left something in the session, if the server gave it that tag; "": it has failed, and
    may have taken an advisory lock all the same."""
    if tag in _TAGS:
        return True
    text = query.encode() if isinstance(query, str) else query
    is_one = bool(tag) and (b";" not in text or not has_several_commands(text))
    if is_one and tag != "SET" and _MENTIONS.search(text) is None:
        return False
    return _KEEPS.search(bare(text)) is not None


def bare(text: bytes) -> bytes:
    """The statement without its comments, and what is in its strings and quoted names."""
    parts, position = [], 0
    for start, end, token in tokens(text):
        parts.append(text[position:start])
        if token in (b"(", b")", b";"):
            parts.append(token)
        else:
            parts.append(b" " if token.startswith((b"--", b"/*")) else b"''")
        position = end
    parts.append(text[position:])
    return b"".join(parts).strip(BLANKS)
