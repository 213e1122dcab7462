"""Guarded calls: psycopg2's methods that talk to the server, safe from other tasks, raising what interrupted them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import psycopg2

from ..errors.sqlstate import name_by_sqlstate


def guarded_method(
    psycopg2_class: Any,
    name: str,
    *,
    ends_transaction: bool = False,
    sets_session: bool = False,
    in_block: Callable[[Any, str], None] | None = None,
) -> Callable[..., Any]:
    """psycopg2's connection method of that name, guarded.

    Does it end the transaction, if there is one? Does it set what psycopg2 puts into its BEGIN?

    `in_block` is called in a transaction block of greenpg's, and may refuse.
    """
    method = getattr(psycopg2_class, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._owner is not None:
            self._refuse_if_owned(name)
        if self._ride is not None and in_block is not None:
            in_block(self, name)
        self._call = name
        if ends_transaction:
            self._transactions_ended += 1
        if sets_session:
            self._has_session_settings = True
        try:
            return method(self, *args, **kwargs)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error
        finally:
            self._call = None
            if self._interruption is not None:
                self._raise_interruption()

    return call


def guarded_cursor_method(psycopg2_class: Any, name: str) -> Callable[..., Any]:
    """psycopg2's cursor method of that name, guarded on its connection."""
    method = getattr(psycopg2_class, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        conn = self.connection
        if conn._owner is not None:
            conn._refuse_if_owned(name)
        conn._let_psycopg2_begin()
        conn._call = name
        try:
            return method(self, *args, **kwargs)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error
        finally:
            conn._call = None
            if conn._interruption is not None:
                conn._raise_interruption()

    return call


def guarded_property(psycopg2_class: Any, name: str, in_block: Callable[[Any, str], None]) -> Any:
    """psycopg2's connection attribute of that name, its setter guarded."""
    descriptor = getattr(psycopg2_class, name)

    def assign(self: Any, value: Any) -> None:
        self._refuse_if_owned(f"{name} = ")
        if self._ride is not None:
            in_block(self, name)
        self._has_session_settings = True
        descriptor.__set__(self, value)

    return property(descriptor.__get__, assign, doc=descriptor.__doc__)
