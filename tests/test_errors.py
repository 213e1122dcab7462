"""`greenpg.errors`: names for SQLSTATE classes, on the very exceptions that psycopg2 raises."""

import pickle
import subprocess
import sys

import psycopg2
import psycopg2.errorcodes
import psycopg2.errors
import pytest
from psycopg2._psycopg import sqlstate_errors

from greenpg import errors


def raised(conn, sql):
    cur = conn.cursor()
    with pytest.raises(psycopg2.Error) as info:
        cur.execute(sql)
    conn.rollback()
    return info.value


DUPLICATE = "CREATE TEMP TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (1)"


@pytest.mark.parametrize(
    "wanted", [errors.IntegrityConstraintViolation, psycopg2.errors.UniqueViolation, psycopg2.IntegrityError]
)
def test_three_except_clauses_catch_the_same_exception(conn, wanted):
    with pytest.raises(wanted) as info:
        conn.cursor().execute(DUPLICATE)
    assert type(info.value) is psycopg2.errors.UniqueViolation
    assert info.value.pgcode == "23505"
    assert info.value.diag.constraint_name == "t_pkey"


@pytest.mark.parametrize(
    ("sql", "wanted", "standard"),
    [
        ("SELECT 1/0", errors.DataException, psycopg2.DataError),
        ("SELECT nothing", errors.SyntaxErrorOrAccessRuleViolation, psycopg2.ProgrammingError),
        ("SET statement_timeout = 1; SELECT pg_sleep(5)", errors.OperatorIntervention, psycopg2.OperationalError),
        ("ROLLBACK TO SAVEPOINT x", errors.SavepointException, psycopg2.InternalError),
        ("DO $$BEGIN RAISE 'x'; END$$", errors.PLPgSQLError, psycopg2.InternalError),
    ],
)
def test_classes_of_errors(conn, sql, wanted, standard):
    error = raised(conn, sql)
    assert isinstance(error, wanted)
    assert isinstance(error, standard)
    assert isinstance(error, psycopg2.errors.lookup(error.pgcode))


def test_every_error_psycopg2_has_a_class_for_has_one_here_and_keeps_its_base():
    for code, error_class in sqlstate_errors.items():
        assert issubclass(error_class, errors.SQLSTATE_CLASSES[code[:2]])
        assert psycopg2.errors.lookup(code) is error_class
    assert issubclass(psycopg2.errors.QueryCanceled, psycopg2.extensions.QueryCanceledError)
    assert issubclass(psycopg2.errors.DeadlockDetected, psycopg2.extensions.TransactionRollbackError)
    assert issubclass(errors.DeadlineExceeded, errors.OperatorIntervention)


def test_every_class_of_postgresql_has_a_name_that_can_be_imported():
    codes = {code for name, code in vars(psycopg2.errorcodes).items() if name.startswith("CLASS_")}
    assert set(errors.SQLSTATE_CLASSES) == codes
    for error_class in errors.SQLSTATE_CLASSES.values():
        assert getattr(errors, error_class.__name__) is error_class
        assert error_class.__name__ in errors.__all__


def test_pickle_str_and_repr_are_psycopg2s(conn):
    error = raised(conn, DUPLICATE)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.pgcode, copy.pgerror, str(copy)) == (error.pgcode, error.pgerror, str(error))
    assert repr(error).startswith("UniqueViolation('duplicate key value violates unique constraint")
    assert str(error).startswith('duplicate key value violates unique constraint "t_pkey"\nDETAIL:')


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("23ABC", errors.IntegrityConstraintViolation),
        ("10ABC", errors.XQueryError),
        ("72ABC", errors.SnapshotFailure),
        ("40ABC", errors.TransactionRollback),
        ("57ABC", errors.OperatorIntervention),
    ],
)
def test_made_up_codes_get_the_name_of_their_class(conn, code, wanted):
    with pytest.raises(wanted) as info:
        conn.cursor().execute(f"DO $$BEGIN RAISE 'x' USING ERRCODE = '{code}'; END$$")
    assert info.value.pgcode == code
    assert info.value.diag.message_primary == "x"
    copy = pickle.loads(pickle.dumps(info.value))
    assert type(copy) is wanted
    assert copy.pgcode == code


def test_made_up_classes_stay_what_psycopg2_makes_of_them(conn):
    error = raised(conn, "DO $$BEGIN RAISE 'x' USING ERRCODE = 'ZZ001'; END$$")
    assert type(error) is psycopg2.DatabaseError
    assert error.pgcode == "ZZ001"


def test_made_up_codes_at_commit_and_in_server_side_cursors(conn):
    cur = conn.cursor()
    cur.execute(
        """CREATE FUNCTION pg_temp.fail() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE 'x' USING ERRCODE = '23ABC'; END$$;
        CREATE TEMP TABLE t (id int);
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION pg_temp.fail();
        CREATE FUNCTION pg_temp.row() RETURNS int LANGUAGE plpgsql AS
        $$BEGIN RAISE 'x' USING ERRCODE = '22ABC'; END$$"""
    )
    conn.commit()
    cur.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(errors.IntegrityConstraintViolation) as info:
        conn.commit()
    assert errors.commit_outcome(info.value) == errors.ROLLED_BACK
    named = conn.cursor("named")
    named.execute("SELECT pg_temp.row()")
    with pytest.raises(errors.DataException):
        named.fetchall()


@pytest.mark.only_hub("threads")
def test_it_needs_no_patch(dsn):
    code = f"""
import psycopg2
from greenpg import errors
try:
    psycopg2.connect({dsn!r}).cursor().execute("SELECT 1/0")
except errors.DataException as error:
    print(type(error).__name__)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "DivisionByZero\n"
