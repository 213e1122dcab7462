"""Statements that are made one by one, by code of the user's, and sent together.

While they are made libpq isn't in pipeline mode: that code may use the connection in a way that greenpg doesn't see,
with a cursor of psycopg2's own class. If greenpg sees it, what came before is executed first (`Flow.bring_to_rest()`).
"""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2 import extensions

from ...errors import PipelineAborted
from .flow import Flow
from .statement import PipelinedStatement

_execute: Any = extensions.cursor.execute

#: So many statements, or bytes, are sent together.
_MOST, _MOST_BYTES = 3000, 1_000_000


class Gathering:
    """Of one flow."""

    def __init__(self, flow: Flow, *, is_plain: bool, at_once: bool) -> None:
        self._flow = flow
        #: Nothing is gathered: what makes the statements doesn't use the connection.
        self._at_once = at_once
        self._is_plain = is_plain
        self._statements: list[PipelinedStatement] = []
        self._bytes = 0

    def add(self, *statements: PipelinedStatement) -> None:
        """Have them sent with others. Suspends now and then, until all so far have been answered or sent."""
        self._statements += statements
        self._bytes += sum(len(statement.query) for statement in statements)
        if self._at_once:
            self._send()
            return
        self._flow.send_gathered = self._send
        if len(self._statements) >= _MOST or self._bytes >= _MOST_BYTES:
            self._flow.bring_to_rest()

    def _send(self) -> None:
        flow = self._flow
        flow.send_gathered = None
        statements, self._statements, self._bytes = self._statements, [], 0
        if flow.connection.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if not flow.turn_on(is_plain=self._is_plain):
            _execute(extensions.cursor(flow.connection), b"SELECT 1")  # psycopg2 begins by itself
            flow.turn_on(is_plain=self._is_plain)
        try:
            for statement in statements:
                flow.send(statement)
        except PipelineAborted:
            pass  # one of them has failed
