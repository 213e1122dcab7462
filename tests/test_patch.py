"""patch() and unpatch(), and what psycopg2.connect gives meanwhile."""

import subprocess
import sys
import textwrap

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import extensions

import greenpg
from greenpg.errors import PatchError


def run_python(code, *arguments):
    """Run a program of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_patched_psycopg2_gives_green_connections(dsn):
    conn = psycopg2.connect(dsn)
    assert isinstance(conn, greenpg.Connection)
    assert isinstance(conn.cursor(), greenpg.Cursor)
    with conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)
    conn.close()


def test_patching_again_is_harmless(hub_name):
    callback = extensions.get_wait_callback()
    greenpg.patch()
    greenpg.patch(hub_name)
    assert greenpg.is_patched()
    assert extensions.get_wait_callback() is callback


def test_patching_for_another_hub_is_an_error(hub_name):
    other = {"gevent": "eventlet", "eventlet": "threads", "threads": "gevent"}[hub_name]
    with pytest.raises(PatchError, match=f"patched for '{hub_name}' already.*unpatch"):
        greenpg.patch(other)
    with pytest.raises(PatchError, match=r"connect=True.*unpatch"):
        greenpg.patch(hub_name, connect=False)
    with pytest.raises(ValueError, match="unknown hub 'tornado'.*'gevent'"):
        greenpg.patch("tornado")


def test_unpatch_puts_back_what_was_there(hub_name, dsn):
    greenpg.unpatch()
    try:
        assert not greenpg.is_patched()
        # eventlet.monkey_patch() brings a callback of its own
        assert (extensions.get_wait_callback() is None) == (hub_name != "eventlet")
        assert psycopg2._connect is psycopg2._psycopg._connect
        conn = psycopg2.connect(dsn)
        assert type(conn) is extensions.connection
        conn.close()
        greenpg.unpatch()  # again is harmless
        greenpg.patch(hub_name, connect=False)
        assert psycopg2._connect is psycopg2._psycopg._connect
        conn = psycopg2.connect(dsn)
        assert type(conn) is extensions.connection
        conn.cursor().execute("SELECT 1")
        conn.close()
        green = greenpg.connect(dsn)
        assert isinstance(green, greenpg.Connection)
        green.close()
    finally:
        greenpg.unpatch()
        greenpg.patch(hub_name)


def test_connections_of_other_libraries_wait_green_too(dsn):
    """Made by psycopg2's C class directly, around every patch."""
    conn = extensions.connection(dsn)
    cur = conn.cursor()
    cur.execute("SELECT pg_sleep(0.1)")  # the guard watches the hub
    cur.execute("SELECT repeat('x', 1000000)")
    assert len(cur.fetchone()[0]) == 1000000
    conn.close()


def test_warns_when_not_monkey_patched():
    printed = run_python(
        """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import greenpg
            greenpg.patch("gevent")
            greenpg.unpatch()
            greenpg.patch()
            greenpg.unpatch()
            greenpg.patch("threads")
        for warning in caught:
            print(warning.category.__name__, warning.filename, warning.message)
        """
    ).splitlines()
    assert len(printed) == 2
    assert printed[0].startswith("RuntimeWarning <string>")
    assert "call gevent.monkey.patch_all() before anything else" in printed[0]
    assert printed[1].startswith("RuntimeWarning <string>")
    assert 'say patch("threads")' in printed[1]


@pytest.mark.parametrize(
    ("patching", "found"),
    [
        ("from gevent import monkey; monkey.patch_all()", "gevent"),
        ("import eventlet; eventlet.monkey_patch()", "eventlet"),
    ],
)
def test_finds_the_hub(patching, found):
    printed = run_python(
        f"import warnings; warnings.simplefilter('ignore'); {patching}; warnings.simplefilter('error')\n"
        "import greenpg; greenpg.patch(); from greenpg.hubs import hub; print(hub().name)"
    )
    assert printed == found


def test_pool_in_a_monkey_patched_program_without_patch():
    """Waiting for a connection would stop the only thread there is."""
    printed = run_python(
        """
        from gevent import monkey; monkey.patch_all()
        import greenpg
        pool = greenpg.ConnectionPool("host=/nowhere")
        try:
            pool.getconn()
        except greenpg.errors.PatchError as error:
            print(error)
        """
    )
    assert printed.startswith("the program is monkey-patched for gevent, but psycopg2 isn't: call greenpg.patch()")


def test_importing_greenpg_imports_no_event_loop():
    printed = run_python(
        "import sys, greenpg; print([m for m in ('gevent', 'eventlet', 'greenlet') if m in sys.modules])"
    )
    assert printed == "[]"


@pytest.mark.only_hub("threads")
def test_a_program_that_is_gone_wrong_with_a_missing_library_is_told():
    printed = run_python(
        """
        import sys
        sys.modules["eventlet"] = None
        import greenpg
        try:
            greenpg.patch("eventlet")
        except ImportError as error:
            print("ImportError", greenpg.is_patched())
        """
    )
    assert printed == "ImportError False"
