"""A page: many commands in one message, their results read one by one."""

from __future__ import annotations

import psycopg2

from ... import libpq
from ...libpq import END, MORE, WAIT
from ..interrupting import cut_off, end_on_server
from .channel import Channel, ConnectionLost

#: What `CommandResults.read()` says when a COPY has come, which nothing here can end.
COPY_CAME = object()
_COPIES = frozenset({libpq.COPY_IN, libpq.COPY_OUT, libpq.COPY_BOTH})


class PageChannel(Channel):
    """A page on its way. All methods suspend."""

    what = "the page"

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

    def cancel(self, exception: BaseException) -> None:
        """Bring it to its end on the server, whatever that is, because of the exception. See `end_deadline_after()`."""
        give_up_at = self._give_up_later(exception)
        self._flush()
        self._results = CommandResults(self._pgconn)
        end_on_server(self._conn, self, give_up_at)

    def is_over(self) -> bool:
        """Drop what results have come. Doesn't suspend."""
        if not libpq.function("PQconsumeInput")(self._pgconn):
            raise ConnectionLost
        state: object = MORE
        while state == MORE:
            state, _ = self._results.read([])
        return state == END

    def wait(self, until: float) -> object:
        return self._waiter.wait_read(until)


class CommandResults:
    """Reads the results of a message with many commands, never blocking."""

    _AT_ONCE = 200

    def __init__(self, pgconn: int | None) -> None:
        self._pgconn = pgconn
        self._is_busy, self._get_result = libpq.function("PQisBusy"), libpq.function("PQgetResult")
        self._get_status, self._clear = libpq.function("PQresultStatus"), libpq.function("PQclear")
        self._get_count, self._get_command = libpq.function("PQcmdTuples"), libpq.function("PQcmdStatus")
        self._error: libpq.Result | None = None

    def read(self, rowcounts: list[int]) -> tuple[object, libpq.Result | None]:
        """Append the row counts (-1: none) of the commands that are through, and say what to do next.

        With END comes the error, if there was one.
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
                return COPY_CAME, None
            else:
                result = libpq.copied_out(address)
                if status == libpq.FATAL_ERROR and self._error is None:
                    self._error = result
        return MORE, None
