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
    ends_transaction: bool | None = False,
    alters_settings: bool = False,
    check: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """psycopg2's connection method of that name, guarded.

    Does it end the transaction, if there is one (None: where it has something to do)? Does it change settings that a
    pool puts back?

    `check` is called with the connection, the name and the arguments before anything happens, and may refuse.
    """
    method = getattr(psycopg2_class, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._owner is not None:
            self._refuse_if_owned(name)
        if check is not None:
            check(self, name, *args, **kwargs)
        outer_call = self._call
        self._call = name
        if ends_transaction:
            self._transactions_ended += 1
        if alters_settings:
            self._has_altered_settings = True
        status_before = self._driver_status
        try:
            return method(self, *args, **kwargs)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error
        finally:
            self._call = outer_call
            if ends_transaction is None and self._driver_status != status_before:
                self._transactions_ended += 1
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
        outer_call = conn._call
        conn._call = name
        try:
            return method(self, *args, **kwargs)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error
        finally:
            conn._call = outer_call
            if conn._interruption is not None:
                conn._raise_interruption()

    return call


def noted_property(psycopg2_class: Any, name: str) -> Any:
    """psycopg2's connection attribute of that name; it is one of those that a pool puts back."""
    descriptor = getattr(psycopg2_class, name)

    def assign(self: Any, value: Any) -> None:
        self._has_altered_settings = True
        descriptor.__set__(self, value)

    return property(descriptor.__get__, assign, doc=descriptor.__doc__)


def guarded_property(psycopg2_class: Any, name: str, check: Callable[..., None] | None = None) -> Any:
    """psycopg2's connection attribute of that name, its setter guarded; it is one of those that a pool puts back."""
    descriptor = getattr(psycopg2_class, name)

    def assign(self: Any, value: Any) -> None:
        if self._owner is not None:
            self._refuse_if_owned(f"{name} = ")
        if check is not None:
            check(self, name, value)
        outer_call = self._call
        self._call = name
        self._has_altered_settings = True
        try:
            descriptor.__set__(self, value)
        except psycopg2.DatabaseError as error:
            name_by_sqlstate(error)
            raise error
        finally:
            self._call = outer_call
            if self._interruption is not None:
                self._raise_interruption()

    return property(descriptor.__get__, assign, doc=descriptor.__doc__)
