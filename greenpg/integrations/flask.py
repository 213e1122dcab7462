"""Flask: a pool for each database, and a connection, or a transaction, for each request.

    db = greenpg.integrations.flask.Greenpg(app, "postgresql://app@db/app", max_size=10)

    @app.get("/balance/<int:id>")
    def balance(id):
        with db.cursor() as cur:
            cur.execute("SELECT balance FROM account WHERE id = %s", (id,))
            ...

`GREENPG_DSN`, `GREENPG_OPTIONS`, `GREENPG_PER_REQUEST` and `GREENPG_DATABASES` in the app's configuration do the same.
`flask greenpg doctor` says what is wrong with how the databases are set up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import click
import flask
from flask.cli import AppGroup

import greenpg

from .unit import Keeps, Unit, checked_keeps, new_pool

__all__ = ["Greenpg"]

_EXTENSION = "greenpg"
_DEFAULT = "default"


class _Database:
    """One of an app's databases."""

    def __init__(self, name: str, find_app: Callable[[], flask.Flask]) -> None:
        self._name = name
        self._find_app = find_app

    @property
    def pool(self) -> greenpg.ConnectionPool[Any]:
        """The current app's pool for this database; it opens itself at the first use."""
        pool: greenpg.ConnectionPool[Any] = self._state().pool_of(self._name)
        return pool

    @property
    def connection(self) -> greenpg.Connection:
        """The request's connection: lent at the first use, which may suspend, and returned when the request ends.

        RuntimeError outside an app context, and in a greenlet that the request has spawned.
        """
        return self._unit().connection

    def cursor(self, cursor_factory: Callable[..., Any] | None = None) -> AbstractContextManager[Any]:
        """`with db.cursor() as cur:` is a transaction of its own: commit at its end, or rollback if it raises. Within
        `db.transaction()`, or with a transaction for each request, a part of that one. Suspends.
        """
        return self._unit().cursor(cursor_factory)

    def transaction(self, **options: Any) -> AbstractContextManager[greenpg.Connection]:
        """`with db.transaction() as conn:`, with `conn.transaction()`'s options; within another one, a savepoint.

        Suspends as `ConnectionPool.transaction()`.
        """
        return self._unit().transaction(**options)

    def _state(self) -> Any:
        state = self._find_app().extensions.get(_EXTENSION)
        if state is None:
            raise RuntimeError("this Flask app has no greenpg: call Greenpg.init_app(app)")
        return state

    def _unit(self) -> Unit:
        state = self._state()
        state.pool_of(self._name)  # LookupError for a name that isn't known
        units: dict[str, Unit] = flask.g._greenpg_units
        return units[self._name]


class Greenpg(_Database):
    """The extension, and the app's default database.

    `conninfo` and `options` are `greenpg.ConnectionPool`'s; the app's `GREENPG_DSN` and `GREENPG_OPTIONS` (a dict) have
    precedence. Other databases: `GREENPG_DATABASES = {"reports": {"conninfo": ..., "max_size": 3}}`, and
    `db["reports"].cursor()`.

    With `per_request="connection"` (default), `db.connection` stays the request's until it ends, and what has not been
    committed by then is rolled back; blocks of `db.cursor()` and `db.transaction()` commit, and return their
    connection, by themselves. With "transaction" (or `GREENPG_PER_REQUEST`), all that a request does in a database is
    one transaction. It is committed before the response is sent, and rolled back if the view raises or the status is
    400 or more. What a streamed body does comes later, and is a transaction of its own.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        conninfo: str | Callable[[], str] | None = None,
        *,
        per_request: Keeps = "connection",
        **options: Any,
    ) -> None:
        super().__init__(_DEFAULT, self._current_app)
        self._conninfo = conninfo
        self._keeps = checked_keeps(per_request, "per_request")
        self._options = options
        self._app = app
        if app is not None:
            self.init_app(app)

    def __getitem__(self, name: str) -> _Database:
        """Another database, by its name in GREENPG_DATABASES. LookupError at its first use if there is none."""
        return _Database(name, self._find_app)

    def init_app(self, app: flask.Flask) -> None:
        """Make the app's pools, which connect when they are first used. Raises RuntimeError if it has some already, and
        ValueError if no database is named. Doesn't suspend."""
        if _EXTENSION in app.extensions:
            raise RuntimeError("this Flask app has a Greenpg already: name further databases in GREENPG_DATABASES")
        keeps = checked_keeps(app.config.get("GREENPG_PER_REQUEST", self._keeps), "GREENPG_PER_REQUEST")
        databases = {name: dict(options) for name, options in app.config.get("GREENPG_DATABASES", {}).items()}
        conninfo = app.config.get("GREENPG_DSN", self._conninfo)
        if conninfo is not None:
            options = self._options | app.config.get("GREENPG_OPTIONS", {})
            databases.setdefault(_DEFAULT, {"conninfo": conninfo, **options})
        if not databases:
            raise ValueError("no database: set GREENPG_DSN in the app's configuration, or Greenpg(app, conninfo)")
        app.extensions[_EXTENSION] = _State(databases, keeps)
        flask.appcontext_pushed.connect(_begin, app)
        app.after_request(_before_response)
        app.teardown_appcontext(_tear_down)
        app.cli.add_command(_commands(app))

    def _current_app(self) -> flask.Flask:
        if flask.has_app_context() or self._app is None:
            return flask.current_app
        return self._app


class _State:
    """The pools of one app."""

    def __init__(self, databases: dict[str, dict[str, Any]], keeps: Keeps) -> None:
        self.keeps: Keeps = keeps
        self.pools = {name: new_pool(**({"name": name} | options)) for name, options in databases.items()}

    def pool_of(self, name: str) -> greenpg.ConnectionPool[Any]:
        try:
            return self.pools[name]
        except KeyError:
            known = ", ".join(map(repr, self.pools))
            raise LookupError(f"the app has no database {name!r} for greenpg: it has {known}") from None


def _begin(app: flask.Flask, **_: Any) -> None:
    state: _State = app.extensions[_EXTENSION]
    if "_greenpg_units" not in flask.g:  # stream_with_context() pushes it again
        flask.g._greenpg_units = {name: Unit(pool, state.keeps) for name, pool in state.pools.items()}


def _before_response(response: flask.Response) -> flask.Response:
    if flask.current_app.extensions[_EXTENSION].keeps == "transaction":
        for unit in flask.g._greenpg_units.values():
            unit.end(roll_back=response.status_code >= 400)
    return response


def _tear_down(error: BaseException | None) -> None:
    # Each of them, whatever comes out of the others.
    units = list(flask.g.get("_greenpg_units", {}).values())

    def end() -> None:
        while units:
            try:
                units.pop().end(error)
            finally:
                end()

    end()


def _commands(app: flask.Flask) -> AppGroup:
    group = AppGroup("greenpg", help="PostgreSQL by greenpg.")

    @group.command("doctor")
    @click.option("--workers", type=int, metavar="N", help="how many processes will serve the app")
    def doctor(workers: int | None) -> None:
        """Say what is wrong with how the app's databases are set up, and what to do."""
        report = greenpg.doctor(pools=app.extensions[_EXTENSION].pools.values(), workers=workers, seconds=0)
        click.echo(str(report))
        sys.exit(0 if report.is_well else 1)

    return group
