"""A WSGI middleware: a connection, or a transaction, for each request. For Falcon, Bottle, and apps of no framework.

    application = greenpg.integrations.wsgi.Greenpg(application, "postgresql://app@db/app", max_size=10)

and in the app:

    db = environ["greenpg"]  # Bottle: request.environ, Falcon: req.env
    with db.cursor() as cur:
        cur.execute(...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import greenpg

from .unit import Keeps, Unit, checked_keeps, new_pool

__all__ = ["Greenpg"]

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Greenpg:
    """The app, with `environ["greenpg"]`: `cursor()`, `transaction()`, `connection`, `pool`.

    `conninfo` and `options` are `greenpg.ConnectionPool`'s, or `conninfo` is a pool; it opens itself at the first
    request. With `per_request="connection"` (default) `connection` is returned when the response has been sent, what
    has not been committed is rolled back. With "transaction" all that a request does is one transaction, which is
    committed before its response begins, or rolled back if the app raises or its status is 400 or more: an error of
    the commit is the app's. `key` is the name in `environ`, for several databases.
    """

    def __init__(
        self,
        application: Application,
        conninfo: str | Callable[[], str] | greenpg.ConnectionPool[Any],
        *,
        per_request: Keeps = "connection",
        key: str = "greenpg",
        **options: Any,
    ) -> None:
        self._application = application
        self._keeps: Keeps = checked_keeps(per_request, "per_request")
        self._key = key
        if isinstance(conninfo, greenpg.ConnectionPool):
            if options:
                raise TypeError(f"a pool has its options already: {', '.join(options)} can't be given")
            self.pool = conninfo
        else:
            self.pool = new_pool(conninfo, **options)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        unit = environ[self._key] = Unit(self.pool, self._keeps)
        start = _Start(start_response)
        body: Any = None
        try:
            body = self._application(environ, start)
            chunks: Iterator[bytes] = iter(body)
            if not start.was_called:  # a generator, which has not begun
                chunks = chain(list(_first(chunks)), chunks)
            if self._keeps == "transaction":
                unit.end(roll_back=start.is_error)
            start.send()
            if isinstance(body, (list, tuple)):
                unit.end()
                return body
        except BaseException as error:
            try:
                if hasattr(body, "close"):
                    body.close()
            finally:
                unit.end(error)
            raise
        return _Body(body, chunks, unit)


def _first(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        return


class _Start:
    """Stands in for `start_response`, and holds the call back until it's known whether the commit succeeds."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._held: tuple[Any, ...] = ()
        self._is_sent = False
        self.was_called = self.is_error = False

    def __call__(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], Any]:
        if self._is_sent:
            return self._start_response(status, headers, *exc_info)  # type: ignore[no-any-return]
        self.was_called, self.is_error = True, int(status[:3]) >= 400
        self._held = (status, headers, *exc_info)
        return lambda data: self.send()(data)

    def send(self) -> Any:
        if not self._is_sent and self._held:
            self._is_sent = True
            self._write = self._start_response(*self._held)
        return getattr(self, "_write", None)


class _Body:
    """The response's body; the request ends with it."""

    def __init__(self, body: Any, chunks: Iterator[bytes], unit: Unit) -> None:
        self._body = body
        self._chunks = chunks
        self._unit = unit
        self._error: BaseException | None = GeneratorExit()  # left before its end: the client has gone

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._chunks
        except BaseException as error:
            self._error = error
            raise
        self._error = None

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._unit.end(self._error)
