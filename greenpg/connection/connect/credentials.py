"""What connecting takes where it changes: IAM tokens, rotated passwords, a host that is looked up somewhere.

The functions that find it are the user's, may take long and cost money: one call at a time, whose result all get that
wait for it, and which is kept for as long as the function says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar

import psycopg2

from ...errors import copied, is_interruption
from ...hubs import Event, hub

T = TypeVar("T")
V = TypeVar("V")

#: Seconds from now, or a moment (an aware datetime); None: for one connection only.
Expiry = float | datetime | None
Conninfo = str | Callable[[], str | tuple[str, Expiry]]
ConnectKwargs = Mapping[str, Any] | Callable[[], Mapping[str, Any] | tuple[Mapping[str, Any], Expiry]]

#: Invalid password, and invalid authorization: a role that isn't there, a token that has expired.
_REFUSED_LOGIN = frozenset({"28P01", "28000"})
#: Where psycopg2 connects by itself, it tells no SQLSTATE.
_REFUSED_IN_WORDS = re.compile("password authentication failed|PAM authentication failed|no pg_hba.conf entry")

#: What those get who wait for a call that was killed: one of them has to make it.
_KILLED = object()


def is_refused_login(error: psycopg2.Error) -> bool:
    """Whether connecting failed by what the credentials are."""
    code = error.pgcode
    return code in _REFUSED_LOGIN or (code is None and _REFUSED_IN_WORDS.search(str(error)) is not None)


class Credentials:
    """A conninfo and its kwargs, each a value, or a function that returns it, or it and its expiry."""

    def __init__(self, conninfo: Conninfo, kwargs: ConnectKwargs | None) -> None:
        self._conninfo: _Source[str] = _Source(conninfo, str, "conninfo")
        self._kwargs: _Source[Mapping[str, Any]] = _Source(kwargs or {}, Mapping, "kwargs")
        self._given = conninfo, kwargs

    def are_of(self, conninfo: Conninfo, kwargs: ConnectKwargs | None) -> bool:
        """Whether they were made of these."""
        return self._given[0] is conninfo and self._given[1] is kwargs

    def get(self) -> tuple[str, dict[str, Any]]:
        """Conninfo and kwargs as they are now. Suspends as the functions do; raises what they raise."""
        return self._conninfo.get()[0], dict(self._kwargs.get()[0])

    def connect(self, connect: Callable[[str, dict[str, Any]], T]) -> T:
        """`connect(conninfo, kwargs)`; once more, at once, with what the functions say then, if the login is refused.

        Suspends; raises what connecting raises, and the functions.
        """
        conninfo, conninfo_number = self._conninfo.get()
        kwargs, kwargs_number = self._kwargs.get()
        try:
            return connect(conninfo, dict(kwargs))
        except psycopg2.OperationalError as error:
            may_change = callable(self._given[0]) or callable(self._given[1])
            if not may_change or is_interruption(error) or not is_refused_login(error):
                raise
        conninfo, _ = self._conninfo.get(conninfo_number)
        kwargs, _ = self._kwargs.get(kwargs_number)
        return connect(conninfo, dict(kwargs))


class _Source(Generic[V]):
    """One of them. Its calls are numbered."""

    def __init__(self, given: Any, kind: type, name: str) -> None:
        self._given = given
        self._kind = kind
        self._name = name
        self._mutex = hub().mutex()
        self._number = 0
        self._value: V | None = None
        self._good_until = 0.0
        self._is_calling = False
        self._waiting: list[Event] = []

    def get(self, after: int = 0) -> tuple[V, int]:
        """The value, and the number of the call that gave it, which is a later one than `after`."""
        if not callable(self._given):
            return self._given, 0
        while True:
            event = hub().event()
            with self._mutex:
                if self._number > after and hub().now() < self._good_until:
                    return self._value, self._number  # type: ignore[return-value]
                if not self._is_calling:
                    self._is_calling = True
                    break
                self._waiting.append(event)
            event.wait()
            if isinstance(event.value, Exception):
                raise copied(event.value)
            if event.value is not _KILLED:
                return event.value  # type: ignore[no-any-return]
        return self._call()

    def _call(self) -> tuple[V, int]:
        outcome: object = _KILLED
        try:
            value, seconds = self._read(self._given())
            with self._mutex:
                self._number += 1
                self._value = value
                self._good_until = hub().now() + seconds
                found = outcome = (value, self._number)
            return found
        except Exception as error:
            outcome = _KILLED if is_interruption(error) else copied(error).with_traceback(None)
            raise
        finally:
            with self._mutex:
                self._is_calling = False
                waiting, self._waiting = self._waiting, []
            for event in waiting:
                event.set(outcome)
            del outcome  # no circle through its traceback

    def _read(self, returned: Any) -> tuple[V, float]:
        """The value, and the seconds for which it is to be kept."""
        value, expiry = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(value, self._kind):
            raise TypeError(
                f"{self._name} function {self._given!r} must return a {self._kind.__name__.lower()}, or that and when "
                f"it expires, not {type(value).__name__}"
            )
        if isinstance(expiry, datetime):
            if expiry.tzinfo is None:
                raise TypeError(f"{self._name} function {self._given!r} returned an expiry without a time zone")
            expiry = (expiry - datetime.now(timezone.utc)).total_seconds()
        if expiry is not None and not isinstance(expiry, int | float):
            raise TypeError(
                f"{self._name} function {self._given!r} must return the expiry as seconds from now, or as a datetime, "
                f"not {type(expiry).__name__}"
            )
        return value, expiry or 0.0  # type: ignore[return-value]
