"""psycopg2's connection, each method of its own that talks to the server behind the gate (gate.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psycopg2
from psycopg2 import extensions
from psycopg2.extensions import Notify, Xid

from ..driver import StatusWord, driver_status
from ..errors import COMMITTED, ROLLED_BACK, UNKNOWN, note_commit_outcome
from ..errors.sqlstate import name_by_sqlstate
from ..hubs import hub
from .blocks import Blocks, forbid_autocommit_inside, forbid_inside, forbid_inside_transaction
from .deadlines import rollback_deadline
from .gate import BusyGate
from .noted_commit import commit_and_tell
from .prepared.statements import PreparedStatements
from .session_settings import Attachments, SessionSettings

_connection = extensions.connection
_c: Any = extensions.connection
_get_status = _c.status.__get__
_READY, _BEGIN = extensions.STATUS_READY, extensions.STATUS_BEGIN

_PIPELINE = "pipeline"

IsolationLevel = str | bytes | int | None
Characteristic = bool | Literal["default", b"default"] | None

C = TypeVar("C", bound="GuardedConnection")


def _guarded_attribute(name: str, check: Callable[[GuardedConnection, str], None] | None = None) -> Any:
    """psycopg2's attribute, its setter guarded; it is one of those that a pool puts back."""
    descriptor = getattr(_connection, name)

    def assign(self: GuardedConnection, value: object) -> None:
        if check is not None:
            check(self, name)
        with self._gate.calling(name):
            self._note_setting()
            descriptor.__set__(self, value)

    return property(descriptor.__get__, assign, doc=descriptor.__doc__)


def _noted_attribute(name: str) -> Any:
    """psycopg2's attribute, which it keeps to itself; it is one of those that a pool puts back."""
    descriptor = getattr(_connection, name)

    def assign(self: GuardedConnection, value: object) -> None:
        self._has_altered_settings = True
        descriptor.__set__(self, value)

    return property(descriptor.__get__, assign, doc=descriptor.__doc__)


class GuardedConnection(_connection):
    """The part of `Connection` that is psycopg2's."""

    #: What was opened in a transaction before is not valid any more, like psycopg2's own `mark`.
    _transactions_ended = 0
    #: It is in psycopg2's own `with conn:`.
    _is_entered = False
    #: A setting may have been changed that a pool puts back; `_PIPELINE`: or only a pipeline has to be left.
    _has_altered_settings: object = False
    #: psycopg2 has told the server a setting in a transaction that it doesn't know of: a rollback takes it back.
    _has_uncertain_settings = False
    #: Told after each COMMIT where the server's log is then, "16/B374D848", and None before what may be committed
    #: without telling that; None: nobody wants to know.
    _tells_commit: Callable[[str | None], object] | None = None
    #: The transaction is to tell which it is: see identity.py.
    _wants_identity = False
    #: A replication stream was stopped on it: see replication.py.
    _has_stopped_stream = False

    @functools.cached_property
    def _gate(self) -> BusyGate:
        # Made when it is first asked for, lest a subclass with an __init__ or __new__ of its own has none.
        return BusyGate()

    #: Prepared statements that are kept on the connection; the one that wasn't used for the longest time makes way.
    prepared_max: int = 100

    @functools.cached_property
    def _prepared(self) -> PreparedStatements:
        return PreparedStatements()

    @property
    def prepare_threshold(self) -> int | None:
        return None

    @functools.cached_property
    def _blocks(self) -> Blocks:
        return Blocks()

    @functools.cached_property
    def _status_word(self) -> StatusWord | None:
        """psycopg2's `status`, to be written; None where that isn't possible: see driver.py."""
        return driver_status.word_of(self)

    #: psycopg2's own status, without a property of ours in between.
    _driver_status: int = _c.status

    @property
    def status(self) -> int:
        """As psycopg2's; STATUS_BEGIN in a transaction block, also before its first statement."""
        status = int(_get_status(self))
        return _BEGIN if status == _READY and self._blocks else status

    def _execute_rows(
        self, cursor: Any, query: Any, rows: Any, each_by_itself: bool, keeps: bool, before: tuple[int, int]
    ) -> Any:
        """Rows of `executemany()` through a pipeline: see pipeline/rows.py, which needs this file."""
        raise NotImplementedError

    # -- settings

    autocommit: bool = _guarded_attribute("autocommit", check=forbid_autocommit_inside)
    if not TYPE_CHECKING:  # they take more than they give, as psycopg2's type stubs say
        isolation_level = _guarded_attribute("isolation_level")
        readonly = _guarded_attribute("readonly")
        deferrable = _guarded_attribute("deferrable")
    cursor_factory: Callable[..., extensions.cursor] | None = _noted_attribute("cursor_factory")  # type: ignore[assignment]
    notices: list[str] = _noted_attribute("notices")
    notifies: list[Notify] = _noted_attribute("notifies")

    def set_session(
        self,
        isolation_level: IsolationLevel = None,
        readonly: Characteristic = None,
        deferrable: Characteristic = None,
        autocommit: bool | None = None,
    ) -> None:
        """Set what the next transactions are like, as psycopg2's: None leaves a setting as it is, "default" is the
        server's. Suspends only on a connection in autocommit. Raises `psycopg2.ProgrammingError` in a transaction.
        """
        forbid_inside_transaction(self, "set_session", sets_autocommit=autocommit is not None)
        self._note_setting()
        self._set_session(isolation_level, readonly, deferrable, autocommit)

    def _set_session(
        self,
        isolation_level: IsolationLevel = None,
        readonly: Characteristic = None,
        deferrable: Characteristic = None,
        autocommit: bool | None = None,
    ) -> None:
        """The same for greenpg's own use."""
        with self._gate.calling("set_session"):
            _c.set_session(self, isolation_level, readonly, deferrable, autocommit)

    def set_isolation_level(self, level: int | None) -> None:
        """Set the isolation level, as psycopg2's: one of its ISOLATION_LEVEL constants. Suspends if there is a
        transaction, which is rolled back."""
        is_autocommit = level == extensions.ISOLATION_LEVEL_AUTOCOMMIT
        forbid_inside_transaction(self, "set_isolation_level", sets_autocommit=is_autocommit)
        self._set_and_roll_back("set_isolation_level", level)

    def set_client_encoding(self, encoding: str) -> None:
        """Set the client encoding, as psycopg2's. Suspends if it is another one; a transaction is rolled back then."""
        forbid_inside_transaction(self, "set_client_encoding")
        self._set_and_roll_back("set_client_encoding", encoding)

    def _set_and_roll_back(self, name: str, value: object) -> None:
        status_before = self._driver_status
        with self._gate.calling(name):
            self._note_setting()
            try:
                getattr(_connection, name)(self, value)
            finally:
                if self._driver_status != status_before:
                    self._transactions_ended += 1

    def _note_setting(self) -> None:
        self._has_altered_settings = True
        if self._driver_status == _READY and self.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE:
            self._has_uncertain_settings = True

    def _want_identity(self, wants: bool) -> None:
        self._wants_identity = wants

    def _tell_commits_to(self, tell: Callable[[str | None], object] | None) -> None:
        self._tells_commit = tell

    def _note_stopped_stream(self) -> None:
        self._has_stopped_stream = True

    def _note_altered(self) -> None:
        """A pool is to look at it when it comes back."""
        self._has_altered_settings = True

    def _note_pipeline(self, *, is_open: bool) -> None:
        if is_open:
            self._has_altered_settings = self._has_altered_settings or _PIPELINE
        elif self._has_altered_settings is _PIPELINE:
            self._has_altered_settings = False

    def _settings(self) -> SessionSettings:
        """What a pool notes, in order to put it back with `_put_back()`."""
        settings = SessionSettings.of(self)
        self._has_altered_settings = False
        return settings

    def _attachments(self) -> Attachments:
        return Attachments.of(self)

    def _put_back(self, settings: SessionSettings, attachments: Attachments | None = None) -> None:
        self._gate.close_queue()
        settings.put_back(self)
        if attachments is not None:
            attachments.put_back(self)
        self._has_altered_settings = self._has_uncertain_settings = False

    # -- transactions

    def __enter__(self: C) -> C:
        self._gate.make_way("__enter__")
        forbid_inside(self, "with connection: ")
        _connection.__enter__(self)
        self._is_entered = True
        return self

    def __exit__(
        self, type: type[BaseException] | None, name: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self._is_entered = False
        if not isinstance(name, BaseException):
            return _connection.__exit__(self, type, name, tb)
        with rollback_deadline(self._gate, name):
            return _connection.__exit__(self, type, name, tb)

    def commit(self) -> None:
        """Commit, as psycopg2's. Suspends; without a transaction, only to let other tasks run once.

        Interrupted, it waits for the outcome (for `interruption_grace` at most), then raises what interrupted it;
        `errors.commit_outcome(exception)` says what has become of the transaction.
        """
        forbid_inside(self, "commit")
        if _get_status(self) == _READY:
            # Nothing to wait for, and a task that does it in a loop would keep all others from running.
            hub().sleep(0)
        self._end_transaction("commit")

    def rollback(self) -> None:
        """Roll the transaction back, as psycopg2's. Suspends if there is one."""
        forbid_inside(self, "rollback")
        self._end_transaction("rollback")

    def reset(self) -> None:
        """Roll back, and give the session the settings that it had at first, as psycopg2's. Suspends."""
        forbid_inside(self, "reset")
        self._transactions_ended += 1
        with self._gate.calling("reset"):
            self._prepared.forget_all()
            self._has_altered_settings = True
            _connection.reset(self)

    def tpc_begin(self, xid: str | bytes | Xid) -> None:
        """Begin a two-phase transaction, as psycopg2's. Suspends."""
        with self._gate.calling("tpc_begin"):
            _connection.tpc_begin(self, xid)

    def tpc_prepare(self) -> None:
        """End the first phase, as psycopg2's. Suspends."""
        self._end_transaction("tpc_prepare")

    def tpc_commit(self, *xid: str | bytes | Xid) -> None:
        """Commit a two-phase transaction, as psycopg2's. Suspends; interrupted, it does as `commit()`."""
        self._end_transaction("tpc_commit", *xid)

    def tpc_rollback(self, *xid: str | bytes | Xid) -> None:
        """Roll a two-phase transaction back, as psycopg2's. Suspends."""
        self._end_transaction("tpc_rollback", *xid)

    def tpc_recover(self) -> list[Xid]:
        """The transactions that are prepared, as psycopg2's. Suspends."""
        with self._gate.calling("tpc_recover"):
            return _connection.tpc_recover(self)

    def _end_transaction(self, name: str, *args: Any) -> None:
        """Call psycopg2's method of that name; note a COMMIT's outcome on what is raised."""
        gate = self._gate
        outer_call = gate.enter(name)
        # The server rolls a transaction in error back, whatever it is told, and psycopg2 says nothing.
        is_failed = self.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
        outcome: str | None = ROLLED_BACK if is_failed else COMMITTED
        is_commit = name.endswith("commit")
        try:
            if self._tells_commit is not None and name == "commit":
                position = commit_and_tell(self)
                if position is not None:
                    self._tells_commit(position)
            else:
                if self._tells_commit is not None and is_commit:
                    self._tells_commit(None)
                getattr(_connection, name)(self, *args)
        except BaseException as error:
            if isinstance(error, psycopg2.ProgrammingError | psycopg2.InterfaceError) and error.pgcode is None:
                outcome = None  # psycopg2 has refused to do it
            else:
                outcome = UNKNOWN if self.closed else ROLLED_BACK
                if is_commit:
                    note_commit_outcome(error, outcome)
            if isinstance(error, psycopg2.Error):
                name_by_sqlstate(error)
            raise error
        finally:
            if outcome is not None:
                self._transactions_ended += 1
                if gate.interruption is not None and is_commit:
                    note_commit_outcome(gate.interruption, outcome)
            gate.leave(outer_call)
