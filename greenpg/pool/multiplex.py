"""`ConnectionPool(multiplex=2)`: single statements of many tasks on a few connections."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import psycopg2

from ..connection.bulk.pacing import Pacer
from ..connection.guarded_cursor import Params, Query
from ..connection.lazy_begin import merged
from ..connection.pipeline.results import casts_of, made_row
from ..connection.pipeline.statement import NO_RESULTS, PipelinedStatement
from ..connection.sql_text import has_several_commands
from ..errors import COMMITTED, ROLLED_BACK, UNKNOWN, DeadlineExceeded, note_commit_outcome
from ..hubs import hub
from ..libpq.pipeline import Rows
from .core import PoolCore
from .multiplex_line import Line, Request
from .options import PoolOptions
from .returning import note_error
from .slot import Slot

T = TypeVar("T")

#: Statements that leave nothing in the session; and what is in some that do.
_SHAREABLE = re.compile(r"\s*\(*\s*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE)\b", re.IGNORECASE)
_OWN_SESSION = re.compile(
    r"advisory|set_config|pg_sleep|currval|lastval|setseed|\blo_|dblink|pg_temp|\bINTO\s+TEMP|pg_export_snapshot",
    re.IGNORECASE,
)
#: A statement with a larger result goes elsewhere the next time.
_LARGE_ROWS = 1000
_MOST_VERDICTS = 1000

#: What `run()` gives for a statement that goes elsewhere.
ELSEWHERE: Any = object()


class Multiplexer:
    """A pool's lines."""

    def __init__(self, count: int) -> None:
        self._count = count
        #: By query: whether it may share a connection.
        self._verdicts: dict[str, bool] = {}
        self._is_off = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Without lines: also in a forked child, which has none of the parent's tasks."""
        self._lines = [Line() for _ in range(self._count)]

    def run(self, core: PoolCore, query: Query, vars: Params, fetch: Callable[[Any], T]) -> T:
        """What `fetch` makes of the statement's result, or ELSEWHERE. Suspends.

        An exception that is thrown in comes out at once; the statement isn't cancelled.
        """
        if query.__class__ is not str or self._is_off:
            return ELSEWHERE  # type: ignore[no-any-return]
        verdict = self._verdicts.get(query)
        if not (self._verdict(query) if verdict is None else verdict):
            return ELSEWHERE  # type: ignore[no-any-return]
        now = core.now()
        line = self._line(core, now)
        if line is None:
            return ELSEWHERE  # type: ignore[no-any-return]
        slot, cursor = line.slot, line.cursor
        assert slot is not None
        statement = merged(cursor.connection, cursor, query, vars)
        if statement is None or (b";" in statement and has_several_commands(statement)):
            return ELSEWHERE  # type: ignore[no-any-return]
        if (tell := cursor.connection._tells_commit) is not None:
            tell(None)
        request = Request(statement, line, hub().event())
        if cursor is not line.cursor or not line.send(request, now):
            return ELSEWHERE  # type: ignore[no-any-return]
        seconds = core.options.statement_deadline
        try:
            if not request.event.wait(None if seconds is None else now + seconds):
                raise DeadlineExceeded(f"the statement took longer than its deadline of {seconds:g} s")
        except BaseException as error:
            self._abandon(request, error)
            raise
        if not request.is_sent:
            return ELSEWHERE  # type: ignore[no-any-return]
        core.stats.statements_multiplexed += 1
        if request.failed is not None:
            raise self._noted(core, slot, request.failed, cursor)
        if request.rowcount > _LARGE_ROWS and request.rows is not None:
            self._verdicts[query] = False
        try:
            return fetch(_Result(request, cursor))
        except BaseException as error:
            note_commit_outcome(error, COMMITTED)
            raise

    @staticmethod
    def _noted(core: PoolCore, slot: Slot, failed: PipelinedStatement, cursor: Any) -> psycopg2.Error:
        error = failed.error(cursor)
        note_commit_outcome(error, UNKNOWN if failed.is_lost else ROLLED_BACK)
        if not failed.is_lost:
            note_error(core, slot, error)
        return error

    @staticmethod
    def _abandon(request: Request, error: BaseException) -> None:
        request.is_abandoned = True
        if not request.is_over:
            note_commit_outcome(error, UNKNOWN if request.is_sent else ROLLED_BACK)
        elif request.failed is None:
            note_commit_outcome(error, COMMITTED)

    def _line(self, core: PoolCore, now: float) -> Line | None:
        """The one that has least to do. If there is none that takes statements, another one is opened."""
        best, least = None, -1
        for line in self._lines:
            load = line.load(now)
            if load is not None and (best is None or load < least):
                best, least = line, load
        if best is None or least > 0:
            for line in self._lines:
                if not line.is_running and not core.is_closed:
                    line.is_running = True
                    hub().spawn(line.serve, core, partial(self._is_plain, core))
                    break
        return best

    def _verdict(self, query: str) -> bool:
        if len(self._verdicts) >= _MOST_VERDICTS:
            self._verdicts.clear()
        verdict = _SHAREABLE.match(query) is not None and _OWN_SESSION.search(query) is None
        self._verdicts[query] = verdict
        return verdict

    def _is_plain(self, core: PoolCore, slot: Any) -> bool:
        """Nothing that a statement through `execute()` would have is left out. If not, nothing is shared any more."""
        conn, tracing = slot.conn, core.tracing
        is_plain = (
            conn.cursor_factory is None
            and not slot.puts_more_into_begin
            and conn._sql_log is None
            and (tracing is None or not tracing.wants({"query"}))
        )
        self._is_off = not is_plain
        return is_plain

    def stop(self, deadline: float) -> None:
        """Finish what is under way. Suspends."""
        for line in self._lines:
            ended = hub().event()
            line.stop(ended)
            ended.wait(deadline)


class _Result:
    """What the one-shots fetch from; as a cursor."""

    __slots__ = ("_cursor", "_request")

    def __init__(self, request: Request, cursor: Any) -> None:
        self._request = request
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        return self._request.rowcount

    def fetchone(self) -> Any:
        rows = _rows(self._request)
        return made_row(rows.row(0), casts_of(rows, self._cursor), self._cursor) if rows.count else None

    def fetchall(self) -> list[Any]:
        rows, cursor = _rows(self._request), self._cursor
        casts, made, pacer = casts_of(rows, cursor), [], Pacer()
        for index in range(rows.count):
            made.append(made_row(rows.row(index), casts, cursor))
            if not index & 127:
                pacer.pause()
        return made


def _rows(request: Request) -> Rows:
    if request.rows is None:
        raise psycopg2.ProgrammingError(NO_RESULTS)
    return request.rows


def checked_multiplex(count: int, max_size: int, options: PoolOptions) -> int:
    """ValueError if so many connections can't be shared."""
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"multiplex must be a number of connections, not {count!r}")
    if count and count >= max_size:
        raise ValueError(
            f"multiplex ({count}) must be less than max_size ({max_size}): transactions need connections of their own"
        )
    if count and options.reset not in (None, "rollback"):
        raise ValueError(
            "multiplex can't be used with a reset: a shared connection is never reset between two statements"
        )
    return count
