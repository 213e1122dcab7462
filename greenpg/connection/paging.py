"""A page: many commands in one message, their results read one by one."""

from __future__ import annotations

import time

import psycopg2

from .. import libpq
from ..errors import is_interruption
from ..libpq import END, LOST, MORE, WAIT
from .cancel import request_cancel
from .channel import ABANDON_TIMEOUT, Channel, ConnectionLost, cut_off

_FIRST_PAUSE = 0.05
_COPIES = frozenset({libpq.COPY_IN, libpq.COPY_OUT, libpq.COPY_BOTH})


class PageChannel(Channel):
    """A page on its way. All methods suspend."""

    statement_name = "the statements"

    def send(self, message: bytes) -> None:
        """Send it."""
        #: One for each command that has succeeded: how many rows it concerned, -1 if it doesn't concern rows.
        self.rowcounts: list[int] = []
        self._set_nonblocking()
        if not libpq.function("PQsendQuery")(self._pgconn, message):
            raise ConnectionLost
        self._flush()

    def read(self) -> libpq.Result | None:
        """Read all results. Gives the first error, if there is one."""
        pgconn = self._pgconn
        read_results, consume = CommandResults(pgconn).read, libpq.function("PQconsumeInput")
        while True:
            state, failure = read_results(self.rowcounts)
            if state == END:
                return failure
            if state == WAIT:
                self._wait(self._waiter.wait_read, None)
                if not consume(pgconn):
                    # The server may have said why.
                    failure = read_results(self.rowcounts)[1]
                    if failure is None or "sqlstate" not in failure.diagnostics:
                        raise ConnectionLost
                    return failure
            elif state == MORE:
                self._breathe()
            else:
                cut_off(self._conn)
                raise psycopg2.NotSupportedError("executemany() can't run COPY")

    def cancel(self) -> None:
        """Bring it to its end on the server, whatever that is. Takes `ABANDON_TIMEOUT` at most, then raises."""
        give_up_at = self._give_up_later()
        self._flush()
        pause = _FIRST_PAUSE
        cancel_at = 0.0
        uncertain: psycopg2.Error | None = None
        results, consume = CommandResults(self._pgconn), libpq.function("PQconsumeInput")
        while results.read([])[0] != END:
            now = time.monotonic()
            if now >= give_up_at:
                raise psycopg2.OperationalError(f"the server has not ended the page within {ABANDON_TIMEOUT:g} s")
            if now >= cancel_at:
                # Again and again, because a request that comes before the statement finds nothing to cancel.
                try:
                    request_cancel(self._conn, give_up_at)
                except psycopg2.Error as error:
                    if is_interruption(error):
                        raise
                    uncertain = error
                cancel_at = time.monotonic() + pause
                pause *= 2
            self._wait(self._waiter.wait_read, min(cancel_at, give_up_at))
            if not consume(self._pgconn):
                raise ConnectionLost
        if uncertain is not None:
            raise psycopg2.OperationalError(f"a cancel request may still be under way: {uncertain}")


class CommandResults:
    """Reads the results of a message with many commands, never blocking."""

    _AT_ONCE = 200

    def __init__(self, pgconn: int) -> None:
        self._pgconn = pgconn
        self._is_busy, self._get_result = libpq.function("PQisBusy"), libpq.function("PQgetResult")
        self._get_status, self._clear = libpq.function("PQresultStatus"), libpq.function("PQclear")
        self._get_count, self._get_command = libpq.function("PQcmdTuples"), libpq.function("PQcmdStatus")
        self._error: libpq.Result | None = None

    def read(self, rowcounts: list[int]) -> tuple[int, libpq.Result | None]:
        """Append the row counts (-1: none) of the commands that are through, and say what to do next.

        With END comes the error, if there was one; LOST stands for a COPY, which nothing here can end.
        """
        pgconn = self._pgconn
        for _ in range(self._AT_ONCE):
            if self._is_busy(pgconn):
                return WAIT, None
            address = self._get_result(pgconn)
            if not address:
                return END, self._error
            status = self._get_status(address)
            if status in (libpq.COMMAND_OK, libpq.TUPLES_OK):
                count = self._get_count(address)
                # Rows that a rule adds come as a result of their own, without a command.
                if count or self._get_command(address):
                    rowcounts.append(int(count) if count else -1)
                self._clear(address)
            elif status in _COPIES:
                self._clear(address)
                return LOST, None
            else:
                result = libpq.copied_out(address)
                if status == libpq.FATAL_ERROR and self._error is None:
                    self._error = result
        return MORE, None
