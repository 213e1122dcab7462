"""patch() and unpatch(), and what psycopg2.connect gives meanwhile."""

import subprocess
import sys
import textwrap

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import _psycopg, extensions

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


# -- others, and the wrong order


def other_callback(conn):
    psycopg2.extras.wait_select(conn)


def test_the_callback_of_another_library_does_not_take_greenpgs_away(dsn, caplog):
    callback = extensions.get_wait_callback()
    conn = greenpg.connect(dsn)
    extensions.set_wait_callback(other_callback)
    assert extensions.get_wait_callback() is callback
    extensions.set_wait_callback(other_callback)
    extensions.set_wait_callback(None)
    assert extensions.get_wait_callback() is callback
    extensions.set_wait_callback(callback)  # as it was
    with conn.deadline(0.2), pytest.raises(greenpg.errors.DeadlineExceeded):
        conn.execute("SELECT pg_sleep(5)")
    conn.rollback()
    conn.close()
    said = [record.getMessage() for record in caplog.records if "wait callback" in record.getMessage()]
    assert len(said) == 2
    assert "test_patch.other_callback was set" in said[0]
    assert "was to be taken away" in said[1]
    assert all("greenpg.unpatch()" in line for line in said)


def test_what_gets_past_it_is_found_at_the_next_connect(dsn, caplog):
    callback = extensions.get_wait_callback()
    for other in (other_callback, None):
        _psycopg.set_wait_callback(other)
        greenpg.connect(dsn).close()
        assert extensions.get_wait_callback() is callback
    for other in (other_callback, None):
        _psycopg.set_wait_callback(other)
        greenpg.patch()
        assert extensions.get_wait_callback() is callback


def test_after_unpatch_callbacks_can_be_set_again(hub_name):
    before = extensions.set_wait_callback
    greenpg.unpatch()
    try:
        assert extensions.set_wait_callback is _psycopg.set_wait_callback
        extensions.set_wait_callback(other_callback)
        greenpg.patch(hub_name)
        assert extensions.get_wait_callback() is not other_callback
        greenpg.unpatch()
        assert extensions.get_wait_callback() is other_callback
    finally:
        extensions.set_wait_callback(None)
        greenpg.patch(hub_name)
    assert extensions.set_wait_callback != before


LATE = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import greenpg, psycopg2
    pool = greenpg.ConnectionPool(sys.argv[1], min_size=1, max_size=2, open=False)
    {before}
    {monkey}
    {after}
    import time
    done = []
    def work():
        psycopg2.connect(sys.argv[1]).close()
        pool.fetchval("SELECT pg_sleep(0.1)")
        done.append(1)
    import threading  # green by now
    pool.open()
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(20)
    from greenpg.hubs import hub
    print(hub().name, len(done))
    pool.close()
"""
MONKEYS = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize("found", MONKEYS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("greenpg.patch()", ""),
        ("greenpg.patch()", "greenpg.patch()"),
        ("greenpg.patch()", "greenpg.patch({found!r})"),
        ("", "greenpg.patch()"),
        ("greenpg.patch({found!r})", ""),
        ("greenpg.patch(); greenpg.unpatch()", "greenpg.patch()"),
    ],
)
def test_monkey_patching_may_come_later(dsn, found, before, after):
    """As in gunicorn's post_fork, which runs before the worker is monkey-patched."""
    before, after = before.format(found=found), after.format(found=found)
    assert run_python(LATE.format(before=before, monkey=MONKEYS[found], after=after), dsn) == f"{found} 6"


@pytest.mark.only_hub("threads")
@pytest.mark.parametrize("order", ["before", "after"])
def test_native_threads_in_a_monkey_patched_program_are_warned_of(dsn, order):
    """Asked for by name, they are what is used."""
    monkey, patch = MONKEYS["gevent"], "greenpg.patch('threads')"
    steps = f"{monkey}; {patch}" if order == "before" else f"{patch}; {monkey}"
    printed = run_python(
        f"""
        import sys, warnings
        import greenpg, psycopg2
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            {steps}
            import gevent
            connect = lambda: psycopg2.connect(sys.argv[1]).close()
            gevent.joinall([gevent.spawn(connect) for _ in range(5)], raise_error=True)
        print([str(warning.message) for warning in caught if "greenpg" in str(warning.message)])
        """,
        dsn,
    )
    assert "is monkey-patched for gevent" in printed
    assert printed.count('greenpg.patch("gevent")') == 1


@pytest.mark.only_hub("threads")
def test_eventlets_own_callback_is_not_worth_a_warning(dsn):
    printed = run_python(
        """
        import eventlet, logging, sys
        eventlet.monkey_patch(psycopg=False)
        logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
        import greenpg, psycopg2
        greenpg.patch()
        callback = psycopg2.extensions.get_wait_callback()
        eventlet.monkey_patch()  # gunicorn's eventlet worker does, after post_fork
        print(psycopg2.extensions.get_wait_callback() is callback)
        """
    )
    assert printed == "True"
