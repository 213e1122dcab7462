"""`Listener`: one connection, any number of subscribers, nothing lost without a word."""

import gc
import os
import weakref

import psycopg2
import pytest
from kit import Killed, Task, run_all, wait_until
from proxy import Proxy
from psycopg2 import extensions

import greenpg
from greenpg.errors import ListenerClosed, WaitTimeout
from greenpg.hubs import hub
from greenpg.shared import reader as reader_module

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def make_listener(dsn):
    listeners = []

    def make(conninfo=None, **options):
        conninfo = conninfo or extensions.make_dsn(dsn, application_name="listener")
        listener = greenpg.Listener(conninfo, **options)
        listeners.append(listener)
        return listener

    yield make
    for listener in listeners:
        listener.close()
        assert not listener._reader._is_running, f"{listener!r} has left its reader behind"


@pytest.fixture
def listener(make_listener):
    return make_listener()


@pytest.fixture
def through_proxy(server):
    parameters = extensions.parse_dsn(server.tcp_dsn)
    with Proxy(parameters["host"], parameters["port"]) as proxy:
        yield proxy, extensions.make_dsn(server.tcp_dsn, port=proxy.port)


def notify(admin, channel, *payloads):
    with admin.cursor() as cur:
        for payload in payloads:
            cur.execute("SELECT pg_notify(%s, %s)", (channel, payload))


def payloads(subscription, count, timeout=20.0):
    """The next so many payloads, gaps as themselves."""
    notes = [subscription.get(timeout) for _ in range(count)]
    return [getattr(note, "payload", note) for note in notes]


def listens_to(listener):
    """What the server says the listener's connection listens to is known to nobody else; so the book is asked."""
    return set(listener._reader.channels._listening)


def backends(admin, name="listener"):
    with admin.cursor() as cur:
        cur.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,))
        return [pid for (pid,) in cur.fetchall()]


def terminate(admin, pid):
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert cur.fetchone() == (True,)


# -- subscribing


def test_subscribe_and_get(listener, admin):
    with listener.subscribe("a", "b") as subscription:
        notify(admin, "a", "1")
        notify(admin, "b", "2")
        notify(admin, "c", "not for us")
        notify(admin, "a", "3")
        first = subscription.get(timeout=10)
        assert isinstance(first, extensions.Notify)
        assert (first.channel, first.payload, first.pid) == ("a", "1", admin.info.backend_pid)
        assert payloads(subscription, 2) == ["2", "3"]
        assert subscription.get(timeout=0.05) is None
        assert subscription.get(timeout=0) is None
    assert subscription.closed


def test_iteration(listener, admin):
    subscription = listener.subscribe("a")
    heard = []

    def read():
        for note in subscription:
            heard.append(note.payload)
            if note.payload == "stop":
                break

    task = Task(read)
    notify(admin, "a", "1", "2", "stop", "after")
    task.result()
    assert heard == ["1", "2", "stop"]
    assert payloads(subscription, 1) == ["after"]


def test_nothing_is_missed_from_the_moment_subscribe_returns(listener, admin):
    for n in range(30):
        with listener.subscribe(f"moment {n}") as subscription:
            notify(admin, f"moment {n}", str(n))
            assert payloads(subscription, 1) == [str(n)]


def test_one_connection_for_all(listener, admin):
    subscriptions = run_all([lambda n=n: listener.subscribe(f"one {n % 7}") for n in range(50)])
    wait_until(lambda: len(backends(admin)) == 1)  # the process of the test before may not have ended yet
    notify(admin, "one 3", "x")
    for n, subscription in enumerate(subscriptions):
        if n % 7 == 3:
            assert payloads(subscription, 1) == ["x"]
        else:
            assert subscription.pending == 0


def test_listen_with_the_first_and_unlisten_after_the_last(listener, admin):
    first = listener.subscribe("shared", "own")
    second = listener.subscribe("shared")
    assert listens_to(listener) == {"shared", "own"}
    first.close()
    wait_until(lambda: listens_to(listener) == {"shared"})
    second.close()
    wait_until(lambda: listens_to(listener) == set())
    wait_until(lambda: listener._reader._in_flight is None)
    notify(admin, "shared", "nobody")
    with listener.subscribe("shared") as third:
        notify(admin, "shared", "third")
        assert payloads(third, 1) == ["third"]


def test_the_server_was_told_to_unlisten(make_listener, server, admin):
    log = server.read_log
    with admin.cursor() as cur:
        cur.execute("ALTER SYSTEM SET log_statement = 'all'")
        cur.execute("SELECT pg_reload_conf()")
    try:
        wait_until(lambda: "log_statement" in log())
        listener = make_listener()
        listener.subscribe('we"ird').close()
        wait_until(lambda: 'UNLISTEN "we""ird"' in log())
        assert 'LISTEN "we""ird"' in log().replace("UNLISTEN", "")
    finally:
        with admin.cursor() as cur:
            cur.execute("ALTER SYSTEM RESET log_statement")
            cur.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    "channel", ["UPPER", 'quo"te', "space d", "ü" * 31, "; DROP TABLE x", "select", "x" * 63, "%s"]
)
def test_names_are_taken_literally(listener, admin, channel):
    with listener.subscribe(channel) as subscription:
        notify(admin, channel, "heard")
        note = subscription.get(10)
        assert (note.channel, note.payload) == (channel, "heard")


@pytest.mark.parametrize("channel", ["", "x" * 64, "ü" * 32, "nul\0"])
def test_impossible_names(listener, channel):
    with pytest.raises(ValueError, match="can't be a channel"):
        listener.subscribe("good", channel)


def test_wrong_arguments(dsn, listener):
    with pytest.raises(ValueError, match="at least one channel"):
        listener.subscribe()
    with pytest.raises(TypeError, match="must be a string, not int"):
        listener.subscribe(1)
    with pytest.raises(ValueError, match="max_pending must be at least 1"):
        listener.subscribe("a", max_pending=0)
    with pytest.raises(ValueError, match="heartbeat must be"):
        greenpg.Listener(dsn, heartbeat=0)
    with pytest.raises(psycopg2.ProgrammingError):
        greenpg.Listener("nonsense")
    assert listener._reader._conn is None, "none of that was worth a connection"


def test_callables_and_kwargs(make_listener, dsn, admin):
    listener = make_listener(lambda: dsn, kwargs=lambda: {"application_name": "called"})
    with listener.subscribe("a"):
        assert len(backends(admin, "called")) == 1


def test_repr_has_no_password(make_listener):
    listener = make_listener("host=localhost user=u password=sesame")
    assert "sesame" not in repr(listener)
    assert "not connected" in repr(listener)


def test_a_refused_channel_harms_nobody_else(make_listener, dsn, admin):
    """The connection's encoding can't express the name: the server, or psycopg2, refuses it."""
    listener = make_listener(extensions.make_dsn(dsn, client_encoding="LATIN1"))
    subscriptions = [listener.subscribe("before")]

    def subscribe(channel):
        try:
            return listener.subscribe(channel)
        except UnicodeEncodeError as error:
            return error

    results = run_all([lambda name=name: subscribe(name) for name in ("one", "schön", "\u2603", "two")])
    assert isinstance(results[2], UnicodeEncodeError)
    subscriptions += [results[0], results[1], results[3]]
    for subscription, channel in zip(subscriptions, ("before", "one", "schön", "two"), strict=True):
        notify(admin, channel, channel)
        assert payloads(subscription, 1) == [channel]


# -- many


@pytest.mark.may_block  # it computes so much that the guard takes a busy machine for a blocked hub
def test_ten_thousand_to_a_thousand_subscribers(make_listener, dsn):
    """None lost, in order, for each of them; sent by four connections at once."""
    listener = make_listener()
    subscriptions = run_all([lambda: listener.subscribe("all") for _ in range(1000)])
    per_sender = 2500

    def send(sender):
        conn = greenpg.connect(dsn)
        for start in range(0, per_sender, 50):
            with conn, conn.cursor() as cur:
                cur.execute(
                    "SELECT pg_notify('all', format('%%s %%s', %s, n)) FROM generate_series(%s, %s) n",
                    (sender, start, start + 49),
                )
        conn.close()

    readers = [Task(lambda sub=sub: [sub.get(60) for _ in range(10_000)]) for sub in subscriptions]
    run_all([lambda sender=sender: send(sender) for sender in range(4)])
    heard = [reader.result(90) for reader in readers]
    assert all(notes == heard[0] for notes in heard), "they have all heard the same, in the same order"
    assert not any(subscription.pending for subscription in subscriptions)
    for sender in range(4):
        numbers = [note.payload.split()[1] for note in heard[0] if note.payload.startswith(f"{sender} ")]
        assert numbers == [str(n) for n in range(per_sender)]


def test_order_across_channels(listener, admin):
    """Whoever hears several channels hears them in the order in which they were notified."""
    sets = [("a",), ("a", "b"), ("b", "c"), ("a", "b", "c"), ("c",)]
    subscriptions = [listener.subscribe(*channels) for channels in sets]
    sent = [("abc"[n % 3 if n % 7 else 0], str(n)) for n in range(500)]
    with admin.cursor() as cur:
        for channel, payload in sent:
            cur.execute("SELECT pg_notify(%s, %s)", (channel, payload))
    for channels, subscription in zip(sets, subscriptions, strict=True):
        expected = [payload for channel, payload in sent if channel in channels]
        assert payloads(subscription, len(expected)) == expected


def test_a_slow_subscriber_loses_the_oldest_and_is_told(listener, admin):
    slow = listener.subscribe("a", max_pending=10)
    quick = listener.subscribe("a")
    notify(admin, "a", *map(str, range(25)))
    assert payloads(quick, 25) == [str(n) for n in range(25)]
    assert payloads(slow, 11) == [greenpg.Gap("overflow", 15), *[str(n) for n in range(15, 25)]]
    notify(admin, "a", "again")
    assert payloads(slow, 1) == ["again"]


def test_several_tasks_share_out_one_subscription(listener, admin):
    subscription = listener.subscribe("work")

    heard = []

    def worker():
        for note in subscription:
            if note.payload == "end":
                return
            heard.append(note.payload)

    workers = [Task(worker) for _ in range(4)]
    notify(admin, "work", *map(str, range(100)), *["end"] * 4)
    for task in workers:
        task.result()
    assert sorted(heard, key=int) == [str(n) for n in range(100)]


# -- sending


def test_own_notifications_are_delivered(listener):
    with listener.subscribe("a") as subscription:
        listener.notify("a", "mine")
        note = subscription.get(10)
        assert (note.payload, note.pid) == ("mine", listener.backend_pid)
        run_all([lambda n=n: listener.notify("a", str(n)) for n in range(50)])
        assert sorted(payloads(subscription, 50), key=int) == [str(n) for n in range(50)]


def test_payload_limits(listener):
    with listener.subscribe("a") as subscription:
        longest = "ü" * 3999 + "x"
        listener.notify("a", longest)
        assert payloads(subscription, 1) == [longest]
        with pytest.raises(ValueError, match=r"8000 bytes, and PostgreSQL takes at most 7999"):
            listener.notify("a", longest + "x")
        with pytest.raises(ValueError, match="NUL"):
            listener.notify("a", "\0")
        with pytest.raises(TypeError, match="payload must be a string"):
            listener.notify("a", 1)


# -- lost connections


@pytest.mark.parametrize("loss", ["terminate", "cut", "reset"])
def test_reconnects_listens_again_and_says_so(make_listener, through_proxy, admin, loss):
    proxy, dsn = through_proxy
    listener = make_listener(dsn)
    subscriptions = [listener.subscribe("a", "b"), listener.subscribe("b"), listener.subscribe("c")]
    notify(admin, "b", "before")
    assert payloads(subscriptions[0], 1) == payloads(subscriptions[1], 1) == ["before"]
    for round_number in range(2):
        old_pid = listener.backend_pid
        if loss == "terminate":
            terminate(admin, old_pid)
        else:
            getattr(proxy, loss)()
        for subscription in subscriptions:
            assert payloads(subscription, 1) == [greenpg.Gap("reconnected")]
        assert listener.backend_pid != old_pid
        for channel in "abc":
            notify(admin, channel, f"after {round_number}")
        assert payloads(subscriptions[0], 2) == [f"after {round_number}"] * 2
        assert payloads(subscriptions[1], 1) == payloads(subscriptions[2], 1) == [f"after {round_number}"]


def test_what_was_notified_meanwhile_is_covered_by_the_gap(make_listener, through_proxy, admin):
    proxy, dsn = through_proxy
    listener = make_listener(dsn)
    subscription = listener.subscribe("a")
    proxy.refuse()
    proxy.cut()
    wait_until(lambda: not listener.connected)
    notify(admin, "a", "lost")
    proxy.accept()
    assert payloads(subscription, 1) == [greenpg.Gap("reconnected")]
    notify(admin, "a", "heard")
    assert payloads(subscription, 1) == ["heard"]


def test_gap_comes_in_order_and_survives_an_overflow(make_listener, admin):
    listener = make_listener()
    subscription = listener.subscribe("a", max_pending=3)
    notify(admin, "a", "1", "2")
    wait_until(lambda: subscription.pending == 2)
    terminate(admin, listener.backend_pid)
    wait_until(lambda: subscription.pending == 3)
    assert payloads(subscription, 3) == ["1", "2", greenpg.Gap("reconnected")]
    terminate(admin, listener.backend_pid)
    wait_until(lambda: subscription.pending == 1)
    notify(admin, "a", "1", "2", "3")
    wait_until(lambda: subscription.pending == 4)
    assert payloads(subscription, 4) == [greenpg.Gap("overflow", None), "1", "2", "3"], "nobody knows how many"


def test_many_channels_are_listened_to_again(make_listener, admin):
    listener = make_listener()
    subscriptions = run_all([lambda n=n: listener.subscribe(f"channel {n}") for n in range(300)])
    terminate(admin, listener.backend_pid)
    for subscription in subscriptions:
        assert payloads(subscription, 1) == [greenpg.Gap("reconnected")]
    for n in (0, 150, 299):
        notify(admin, f"channel {n}", str(n))
        assert payloads(subscriptions[n], 1) == [str(n)]


def test_server_restart(make_listener):
    from greenpg.embedded import Server

    with Server() as own_server:
        listener = make_listener(own_server.dsn)
        subscription = listener.subscribe("a")
        listener.subscribe("gone", timeout=5).close()
        hub().run_in_thread(own_server.restart)
        assert payloads(subscription, 1) == [greenpg.Gap("reconnected")]
        listener.notify("a", "after the restart")
        assert payloads(subscription, 1) == ["after the restart"]
        listener.close()


def test_subscribing_while_the_server_is_away(make_listener, through_proxy, admin):
    proxy, dsn = through_proxy
    proxy.refuse()
    listener = make_listener(dsn)
    with pytest.raises(WaitTimeout, match="last connection error: OperationalError: .*server closed"):
        listener.subscribe("a", timeout=0.3)
    with pytest.raises(WaitTimeout, match="was not sent"):
        listener.notify("a", "x", timeout=0.1)
    waiting = Task(listener.subscribe, "a")
    hub().sleep(0.05)
    proxy.accept()
    subscription = waiting.result()
    notify(admin, "a", "x")
    assert payloads(subscription, 1) == ["x"], "a new subscriber has missed nothing: no gap"


def test_unreachable_server_doesnt_hold_up_subscribe_or_close(make_listener, through_proxy):
    proxy, dsn = through_proxy
    proxy.stall()
    listener = make_listener(dsn)
    with pytest.raises(WaitTimeout):
        listener.subscribe("a", timeout=0.2)
    listener.close()
    assert not listener._reader._is_running


def test_a_silent_server_is_noticed(make_listener, through_proxy, admin, monkeypatch):
    monkeypatch.setattr(reader_module, "ANSWER_TIMEOUT", 0.2)
    proxy, dsn = through_proxy
    listener = make_listener(dsn, heartbeat=0.2)
    subscription = listener.subscribe("a")
    hub().sleep(0.7)
    assert subscription.pending == 0, "a server that answers is left alone"
    proxy.stall()
    wait_until(lambda: not listener.connected)
    assert "has not answered" in listener._reader.last_error
    proxy.cut()
    proxy.resume()
    assert payloads(subscription, 1) == [greenpg.Gap("reconnected")]


def test_notify_when_the_connection_is_lost(make_listener, through_proxy):
    proxy, dsn = through_proxy
    listener = make_listener(dsn)
    listener.subscribe("a")
    proxy.stall()
    sending = Task(listener.notify, "a", "x")
    wait_until(lambda: listener._reader._in_flight is not None)
    proxy.cut()
    with pytest.raises(psycopg2.OperationalError, match="may have been sent, or not"):
        sending.result()
    proxy.resume()


# -- kills


@green_only
def test_killed_subscriber_leaves_nothing(make_listener, through_proxy, admin):
    proxy, dsn = through_proxy
    listener = make_listener(dsn)
    listener.subscribe("other")
    proxy.stall()
    task = Task(listener.subscribe, "a")
    hub().sleep(0.05)
    task.throw(Killed())
    task.join()
    assert isinstance(task.error, Killed)
    proxy.resume()
    wait_until(lambda: listener._reader._in_flight is None and listens_to(listener) == {"other"})
    assert len(listener._reader.channels.mailboxes()) == 1


@green_only
def test_killed_while_getting(listener, admin):
    subscription = listener.subscribe("a")
    task = Task(subscription.get)
    hub().sleep(0.02)
    task.throw(Killed())
    task.join()
    assert isinstance(task.error, Killed)
    assert subscription._mailbox._readers == []
    notify(admin, "a", "1")
    assert payloads(subscription, 1) == ["1"]


@green_only
def test_killed_at_every_moment(listener, admin):
    """However far a subscriber has come: in the end, only who is there is listened for."""
    survivor = listener.subscribe("survivor")

    def subscribe_and_read(n):
        with listener.subscribe(f"victim {n % 3}") as subscription:
            for _ in subscription:
                pass

    tasks = []
    for n in range(60):
        tasks.append(Task(subscribe_and_read, n))
        hub().sleep(0)
        if n % 3 == 0:
            hub().sleep(0.001)
        for victim in tasks[-3:]:
            victim.throw(Killed())
    hub().sleep(0.05)
    for task in tasks:
        task.throw(Killed())
    for task in tasks:
        task.join()
    wait_until(lambda: listener._reader._in_flight is None and listens_to(listener) == {"survivor"})
    notify(admin, "survivor", "1")
    assert payloads(survivor, 1) == ["1"]


@green_only
def test_killed_reader_is_replaced(listener, admin, hub_name):
    subscription = listener.subscribe("a")
    getting = Task(subscription.get)
    hub().sleep(0.02)
    kill_reader(hub_name)
    assert getting.result() == greenpg.Gap("reconnected")
    notify(admin, "a", "1")
    assert payloads(subscription, 1) == ["1"]


def kill_reader(hub_name):
    from greenlet import greenlet

    (reader,) = [
        task
        for task in gc.get_objects()
        if isinstance(task, greenlet) and not task.dead and getattr(task, "gr_frame", None) and is_reader(task.gr_frame)
    ]
    if hub_name == "gevent":
        import gevent

        gevent.kill(reader, Killed())
    else:
        import eventlet

        eventlet.kill(reader, Killed())


def is_reader(frame):
    while frame is not None:
        if frame.f_code is reader_module._run.__code__:
            return True
        frame = frame.f_back
    return False


# -- the end


def test_close_ends_everything(listener, admin):
    subscription, other = listener.subscribe("a"), listener.subscribe("b")
    notify(admin, "b", "waiting")
    wait_until(lambda: other.pending == 1)
    getting = Task(subscription.get)
    iterating = Task(list, other)
    hub().sleep(0.02)
    listener.close()
    with pytest.raises(ListenerClosed):
        getting.result()
    assert [note.payload for note in iterating.result()] == ["waiting"]
    wait_until(lambda: not backends(admin))
    with pytest.raises(ListenerClosed):
        listener.subscribe("a")
    with pytest.raises(ListenerClosed):
        listener.notify("a")
    listener.close()
    assert "closed" in repr(listener)


def test_closing_a_subscription_ends_its_iteration(listener, admin):
    subscription = listener.subscribe("a")
    iterating = Task(list, subscription)
    hub().sleep(0.02)
    subscription.close()
    assert iterating.result() == []
    subscription.close()
    assert len(backends(admin)) == 1, "the listener goes on"


def test_close_sends_those_away_who_wait(make_listener, through_proxy):
    proxy, dsn = through_proxy
    proxy.refuse()
    listener = make_listener(dsn)
    tasks = [Task(listener.subscribe, "a"), Task(listener.notify, "a", "x")]
    hub().sleep(0.05)
    listener.close()
    for task in tasks:
        with pytest.raises(ListenerClosed):
            task.result()


def test_forgotten_subscription_is_unlistened(make_listener):
    listener = make_listener(heartbeat=0.05)
    listener.subscribe("forgotten")
    gc.collect()
    wait_until(lambda: listens_to(listener) == set())
    assert listener._reader.channels.mailboxes() == []


def test_forgotten_listener_ends(dsn, admin):
    listener = greenpg.Listener(extensions.make_dsn(dsn, application_name="forgotten"), heartbeat=0.05)
    subscription = listener.subscribe("a")
    assert len(backends(admin, "forgotten")) == 1
    gone, reader = weakref.ref(listener), listener._reader
    del listener
    gc.collect()
    assert gone() is not None, "a subscription keeps it"
    del subscription
    gc.collect()
    assert gone() is None
    wait_until(lambda: not backends(admin, "forgotten"))
    wait_until(lambda: not reader._is_running)


@pytest.mark.only_hub("gevent", "threads")  # eventlet warns of every fork
def test_fork(listener, admin):
    """The child's listener is another one; the parent's connection is unharmed by what the child does."""
    subscription = listener.subscribe("a")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(ListenerClosed, match="belongs to the parent process"):
                subscription.get(timeout=0.1)
            subscription.close()
            with listener.subscribe("b") as own:
                listener.notify("b", "child")
                status = 0 if own.get(10).payload == "child" else 2
            listener.close()
        finally:
            os._exit(status)
    notify(admin, "a", "1")
    assert payloads(subscription, 1) == ["1"]
    wait_until(lambda: os.waitpid(child, os.WNOHANG) == (child, 0))
    notify(admin, "a", "2")
    assert payloads(subscription, 1) == ["2"]


# -- by a pool


def test_pool_listens_and_notifies(make_pool, dsn, admin):
    pool = make_pool(extensions.make_dsn(dsn, application_name="listener"), min_size=1)
    with pool.listen("a") as first, pool.listen("b", "a") as second:
        pool.notify("a", "1")
        pool.notify("b")
        assert payloads(first, 1) == ["1"]
        assert payloads(second, 2) == ["1", ""]
        assert len(backends(admin)) == 2, "one of the pool's, and one that listens"
        with pool.cursor() as cur:
            cur.execute("SELECT pg_notify('a', 'in a transaction')")
            assert first.get(0.05) is None
        assert payloads(first, 1) == ["in a transaction"]
    with pytest.raises(ValueError, match="at most 7999"):
        pool.notify("a", "x" * 8000)
    with pytest.raises(ValueError, match="can't be a channel"):
        pool.notify("")
    remaining = pool.listen("a")
    pool.close()
    assert remaining.closed
    wait_until(lambda: not backends(admin))
    with pytest.raises(greenpg.PoolClosed):
        pool.listen("a")


def test_pool_gives_its_parameters_to_the_listener(make_pool, dsn, admin):
    pool = make_pool(
        lambda: dsn, kwargs=lambda: {"application_name": "by kwargs", "autocommit": True}, min_size=0, max_size=1
    )
    with pool.connection(), pool.listen("a"):
        assert len(backends(admin, "by kwargs")) == 2


def test_pool_that_cant_connect(make_pool, through_proxy):
    proxy, dsn = through_proxy
    proxy.refuse()
    pool = make_pool(dsn, min_size=0, max_size=1, timeout=0.2)
    with pytest.raises(WaitTimeout, match="server closed the connection"):
        pool.listen("a")
