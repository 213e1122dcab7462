"""`fetchone_dict()`, `fetchall_dict()`: dict rows beside the plain ones."""

import copy
import json
import pickle

import psycopg2
import psycopg2.extras
import pytest

import greenpg


@pytest.mark.parametrize("name", [None, "server_side"])
@pytest.mark.parametrize(
    "factory", [None, psycopg2.extras.DictCursor, psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor]
)
def test_dict_rows_of_every_kind_of_cursor(conn, factory, name):
    cur = conn.cursor(name, cursor_factory=factory)
    cur.execute("SELECT i, 'n' || i AS name FROM generate_series(1, 3) i")
    first = cur.fetchone_dict()
    assert type(first) is greenpg.RowDict
    assert first == {"i": 1, "name": "n1"}
    assert list(first) == ["i", "name"]
    assert cur.fetchall_dict() == [{"i": 2, "name": "n2"}, {"i": 3, "name": "n3"}]
    assert cur.fetchone_dict() is None
    assert cur.fetchall_dict() == []


def test_plain_fetches_stay_plain(conn):
    cur = conn.cursor()
    cur.execute("SELECT 1 AS one")
    assert cur.fetchone() == (1,)


def test_columns_are_attributes(conn):
    cur = conn.cursor()
    cur.execute("SELECT now() AS now, 1 AS items")
    row = cur.fetchone_dict()
    assert row.now == row["now"]
    assert row["items"] == 1
    row.now = "later"
    assert row["now"] == "later"
    del row.now
    with pytest.raises(AttributeError, match="no column 'now', but items"):
        row.now  # noqa: B018
    with pytest.raises(AttributeError):
        del row.now


def test_a_row_can_be_copied_pickled_and_dumped(conn):
    cur = conn.cursor()
    cur.execute("SELECT 1 AS one, 'a' AS name")
    row = cur.fetchone_dict()
    for other in (copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert type(other) is greenpg.RowDict
        assert other == row
    assert json.dumps(row) == '{"one": 1, "name": "a"}'


def test_of_columns_with_the_same_name_the_last_counts(conn):
    cur = conn.cursor()
    cur.execute("SELECT 1 AS x, 2 AS x")
    assert cur.fetchone_dict() == {"x": 2}


def test_without_a_result_the_error_is_psycopg2s(conn):
    cur = conn.cursor()
    cur.execute("SET application_name = 'x'")
    for fetch in (cur.fetchone_dict, cur.fetchall_dict):
        with pytest.raises(psycopg2.ProgrammingError, match="no results to fetch"):
            fetch()
