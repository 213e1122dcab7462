"""`PreparedStatements`: what is prepared on one connection. No I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import NamedTuple

from .template import Template

#: A query and the types of its arguments.
Key = tuple["str | bytes", tuple[str, ...]]


class Prepared(NamedTuple):
    """One of them."""

    name: bytes
    prepare: bytes
    #: With placeholders for psycopg2.
    execute: bytes


class PreparedStatements:
    """The statements, the one that was used last at the end; and how often others were executed."""

    def __init__(self) -> None:
        self.known: OrderedDict[Key, Prepared] = OrderedDict()
        #: -1: the server won't have it prepared.
        self.counts: OrderedDict[Key, int] = OrderedDict()
        #: To be dropped at the server with the next PREPARE.
        self.dropped: list[bytes] = []
        #: A pooler is in between, which gives each transaction another session.
        self.is_off = False

    def is_due(self, key: Key, threshold: int, limit: int) -> bool:
        """Count the execution. True if it was executed so often before that it's to be prepared now."""
        count = self.counts.pop(key, 0)
        if count >= threshold:
            self.counts[key] = count
            return True
        self.counts[key] = count if count < 0 else count + 1
        while len(self.counts) > 2 * limit:
            self.counts.popitem(last=False)
        return False

    def refuse(self, key: Key) -> None:
        """Don't try again."""
        self.counts[key] = -1

    def is_refused(self, key: Key) -> bool:
        return self.counts.get(key) == -1

    def add(self, key: Key, prepared: Prepared, limit: int) -> None:
        """It has been prepared."""
        self.counts.pop(key, None)
        self.known[key] = prepared
        while len(self.known) > max(limit, 1):
            self.dropped.append(self.known.popitem(last=False)[1].name)

    def forget(self, key: Key) -> None:
        """It can't be used any more."""
        prepared = self.known.pop(key, None)
        if prepared is not None:
            self.dropped.append(prepared.name)

    def forget_all(self) -> None:
        """The session has lost them."""
        self.known.clear()
        self.dropped.clear()


def made(key: Key, template: Template) -> Prepared:
    """With a name that no other statement has: behind a pooler a session may be another client's, too."""
    text = template.text(key[1])
    digest = hashlib.sha1(repr((text, key[1])).encode(), usedforsecurity=False).hexdigest()[:24]
    name = b"greenpg_" + digest.encode()
    types = f"({', '.join(key[1])})" if key[1] else ""
    return Prepared(name, b"PREPARE " + name + types.encode() + b" AS " + text, b"EXECUTE " + name + template.arguments)


def checked_threshold(executions: int) -> int:
    """ValueError if it can't be a number of executions."""
    if not isinstance(executions, int) or executions < 0:
        raise ValueError(f"prepare_threshold must be None or a number of executions, not {executions!r}")
    return executions
