"""One class for each SQLSTATE class, caught by `except` beside psycopg2's own.

`except errors.IntegrityConstraintViolation` catches every error whose SQLSTATE begins with 23. The classes stand
between the exceptions of `psycopg2.errors` and the DB-API's; the very exception that psycopg2 raises is all three:

    psycopg2.errors.UniqueViolation -> errors.IntegrityConstraintViolation -> psycopg2.IntegrityError

That is done by giving psycopg2's exceptions another base class, when a name of `greenpg.errors` is asked for the first
time: nobody can write the `except` clause before that, and who never does keeps psycopg2 as it is. psycopg2's classes
stay the same objects under the same names, so `psycopg2.errors.lookup()`, pickles and references taken earlier hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg2
import psycopg2.errors
from psycopg2 import extensions
from psycopg2._psycopg import sqlstate_errors

__all__ = [
    "SQLSTATE_CLASSES",
    "CardinalityViolation",
    "CaseNotFound",
    "ConfigurationFileError",
    "ConnectionException",
    "DataException",
    "DependentPrivilegeDescriptorsStillExist",
    "DiagnosticsException",
    "ExternalRoutineException",
    "ExternalRoutineInvocationException",
    "FeatureNotSupported",
    "ForeignDataWrapperError",
    "InsufficientResources",
    "IntegrityConstraintViolation",
    "InternalError",
    "InvalidAuthorizationSpecification",
    "InvalidCatalogName",
    "InvalidCursorName",
    "InvalidCursorState",
    "InvalidGrantor",
    "InvalidRoleSpecification",
    "InvalidSQLStatementName",
    "InvalidSchemaName",
    "InvalidTransactionInitiation",
    "InvalidTransactionState",
    "InvalidTransactionTermination",
    "LocatorException",
    "NoDataWarning",
    "ObjectNotInPrerequisiteState",
    "OperatorIntervention",
    "PLPgSQLError",
    "PgSystemError",
    "PgWarning",
    "ProgramLimitExceeded",
    "SQLRoutineException",
    "SQLStatementNotYetComplete",
    "SavepointException",
    "SnapshotFailure",
    "SuccessfulCompletion",
    "SyntaxErrorOrAccessRuleViolation",
    "TransactionRollback",
    "TriggeredActionException",
    "TriggeredDataChangeViolation",
    "WithCheckOptionViolation",
    "XQueryError",
]

_Class = TypeVar("_Class", bound=type[psycopg2.DatabaseError])

#: The exception class for the first two characters of a SQLSTATE.
SQLSTATE_CLASSES: dict[str, type[psycopg2.DatabaseError]] = {}


def _sqlstate_class(code: str) -> Callable[[_Class], _Class]:
    def register(cls: _Class) -> _Class:
        cls.__module__ = "greenpg.errors"  # where everybody, pickle included, is to find it
        SQLSTATE_CLASSES[code] = cls
        return cls

    return register


@_sqlstate_class("00")
class SuccessfulCompletion(psycopg2.DatabaseError):
    """Class 00. `successful_completion`; servers don't raise it."""


@_sqlstate_class("01")
class PgWarning(psycopg2.DatabaseError):
    """Class 01. A warning raised as an error, by PL/pgSQL's RAISE with such a code."""


@_sqlstate_class("02")
class NoDataWarning(psycopg2.DatabaseError):
    """Class 02. A query that must give a row gave none (`no_data_found` is P0002, in `PLPgSQLError`)."""


@_sqlstate_class("03")
class SQLStatementNotYetComplete(psycopg2.DatabaseError):
    """Class 03. `sql_statement_not_yet_complete`."""


@_sqlstate_class("08")
class ConnectionException(psycopg2.OperationalError):
    """Class 08. The server can't be reached, or the protocol was violated."""


@_sqlstate_class("09")
class TriggeredActionException(psycopg2.DatabaseError):
    """Class 09. `triggered_action_exception`."""


@_sqlstate_class("0A")
class FeatureNotSupported(psycopg2.NotSupportedError):
    """Class 0A. The server can't do what was asked."""


@_sqlstate_class("0B")
class InvalidTransactionInitiation(psycopg2.DatabaseError):
    """Class 0B. `invalid_transaction_initiation`."""


@_sqlstate_class("0F")
class LocatorException(psycopg2.DatabaseError):
    """Class 0F. `locator_exception`."""


@_sqlstate_class("0L")
class InvalidGrantor(psycopg2.DatabaseError):
    """Class 0L. A GRANT by somebody who can't grant."""


@_sqlstate_class("0P")
class InvalidRoleSpecification(psycopg2.DatabaseError):
    """Class 0P. A role that can't be used here."""


@_sqlstate_class("0Z")
class DiagnosticsException(psycopg2.DatabaseError):
    """Class 0Z. GET STACKED DIAGNOSTICS outside an exception handler."""


@_sqlstate_class("10")
class XQueryError(psycopg2.DatabaseError):
    """Class 10. An XML query failed."""


@_sqlstate_class("20")
class CaseNotFound(psycopg2.ProgrammingError):
    """Class 20. A PL/pgSQL CASE without a branch that fits."""


@_sqlstate_class("21")
class CardinalityViolation(psycopg2.ProgrammingError):
    """Class 21. More than one row where one was expected."""


@_sqlstate_class("22")
class DataException(psycopg2.DataError):
    """Class 22. A value doesn't fit: out of range, division by zero, malformed text."""


@_sqlstate_class("23")
class IntegrityConstraintViolation(psycopg2.IntegrityError):
    """Class 23. A constraint is violated: unique, foreign key, not null, check, exclusion."""


@_sqlstate_class("24")
class InvalidCursorState(psycopg2.InternalError):
    """Class 24. The cursor isn't open, or not on a row."""


@_sqlstate_class("25")
class InvalidTransactionState(psycopg2.InternalError):
    """Class 25. The transaction's state forbids it: aborted, read-only, none at all."""


@_sqlstate_class("26")
class InvalidSQLStatementName(psycopg2.OperationalError):
    """Class 26. There is no such prepared statement."""


@_sqlstate_class("27")
class TriggeredDataChangeViolation(psycopg2.OperationalError):
    """Class 27. A trigger has changed the row that is being changed."""


@_sqlstate_class("28")
class InvalidAuthorizationSpecification(psycopg2.OperationalError):
    """Class 28. No such user, or the wrong password."""


@_sqlstate_class("2B")
class DependentPrivilegeDescriptorsStillExist(psycopg2.InternalError):
    """Class 2B. Other objects or privileges depend on it."""


@_sqlstate_class("2D")
class InvalidTransactionTermination(psycopg2.InternalError):
    """Class 2D. COMMIT or ROLLBACK where there must be none."""


@_sqlstate_class("2F")
class SQLRoutineException(psycopg2.InternalError):
    """Class 2F. An SQL function did what it must not."""


@_sqlstate_class("34")
class InvalidCursorName(psycopg2.OperationalError):
    """Class 34. There is no such cursor."""


@_sqlstate_class("38")
class ExternalRoutineException(psycopg2.InternalError):
    """Class 38. A function in another language did what it must not."""


@_sqlstate_class("39")
class ExternalRoutineInvocationException(psycopg2.InternalError):
    """Class 39. A function was called as it must not be."""


@_sqlstate_class("3B")
class SavepointException(psycopg2.InternalError):
    """Class 3B. There is no such savepoint."""


@_sqlstate_class("3D")
class InvalidCatalogName(psycopg2.ProgrammingError):
    """Class 3D. There is no such database."""


@_sqlstate_class("3F")
class InvalidSchemaName(psycopg2.ProgrammingError):
    """Class 3F. There is no such schema."""


@_sqlstate_class("40")
class TransactionRollback(extensions.TransactionRollbackError):
    """Class 40. The server ended the transaction: serialization failure, deadlock. Trying again helps."""


@_sqlstate_class("42")
class SyntaxErrorOrAccessRuleViolation(psycopg2.ProgrammingError):
    """Class 42. Wrong SQL, a name that doesn't exist, or no privilege."""


@_sqlstate_class("44")
class WithCheckOptionViolation(psycopg2.ProgrammingError):
    """Class 44. The row would not be visible in the view."""


@_sqlstate_class("53")
class InsufficientResources(psycopg2.OperationalError):
    """Class 53. Disk full, out of memory, too many connections."""


@_sqlstate_class("54")
class ProgramLimitExceeded(psycopg2.OperationalError):
    """Class 54. Too complex, or too many of something."""


@_sqlstate_class("55")
class ObjectNotInPrerequisiteState(psycopg2.OperationalError):
    """Class 55. In use, or locked (NOWAIT)."""


@_sqlstate_class("57")
class OperatorIntervention(psycopg2.OperationalError):
    """Class 57. Cancelled, shut down, or starting up."""


@_sqlstate_class("58")
class PgSystemError(psycopg2.OperationalError):
    """Class 58. The operating system failed the server."""


@_sqlstate_class("72")
class SnapshotFailure(psycopg2.DatabaseError):
    """Class 72. The snapshot is too old."""


@_sqlstate_class("F0")
class ConfigurationFileError(psycopg2.InternalError):
    """Class F0. The server's configuration file is wrong."""


@_sqlstate_class("HV")
class ForeignDataWrapperError(psycopg2.OperationalError):
    """Class HV. A foreign table failed."""


@_sqlstate_class("P0")
class PLPgSQLError(psycopg2.InternalError):
    """Class P0. PL/pgSQL's RAISE, no data found, too many rows, a failed assertion."""


@_sqlstate_class("XX")
class InternalError(psycopg2.InternalError):
    """Class XX. A bug in the server, or corrupted data."""


def insert_classes() -> None:
    """Put the classes among the bases of psycopg2's exceptions. Harmless when they are."""
    for code, error_class in sqlstate_errors.items():
        sqlstate_class = SQLSTATE_CLASSES.get(code[:2])
        bases = error_class.__bases__
        if sqlstate_class is not None and not issubclass(error_class, sqlstate_class):
            (base,) = bases
            # QueryCanceled alone has a base of its own among the errors of its class.
            error_class.__bases__ = (sqlstate_class,) if base in sqlstate_class.__mro__ else (base, sqlstate_class)


def name_by_sqlstate(error: psycopg2.Error) -> None:
    """Give an error of whose SQLSTATE psycopg2 doesn't know a name (one made up for a RAISE) its class here.

    It keeps its identity; `errors.PLPgSQLError` and its kin then catch it. Whoever raises it again must do so by
    `raise error`: until Python 3.10 a bare `raise` means the class that it had.
    """
    if type(error) in _UNNAMED and error.pgcode and error.pgcode not in _named_by_psycopg2:
        sqlstate_class = SQLSTATE_CLASSES.get(error.pgcode[:2])
        if sqlstate_class is not None and issubclass(sqlstate_class, type(error)):
            error.__class__ = sqlstate_class


#: Whoever takes one of these out of psycopg2's table (its own tests do) gets psycopg2's fallback.
_named_by_psycopg2 = frozenset(sqlstate_errors)

#: What psycopg2 raises when it doesn't know the code.
_UNNAMED = frozenset(
    {
        psycopg2.DatabaseError,
        psycopg2.DataError,
        psycopg2.IntegrityError,
        psycopg2.InternalError,
        psycopg2.NotSupportedError,
        psycopg2.OperationalError,
        psycopg2.ProgrammingError,
        extensions.QueryCanceledError,
        extensions.TransactionRollbackError,
    }
)
