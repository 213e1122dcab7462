"""The contract of greenpg/hubs/base.py, on the hub in use: all of them must pass it."""

import os
import socket
import threading
import time

import pytest
from kit import Killed, Task, run_all, wait_until

from greenpg.hubs import hub

green_only = pytest.mark.only_hub("gevent", "eventlet")


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def waiter(pair):
    waiter = hub().fd_waiter(pair[0].fileno())
    yield waiter
    waiter.close()


def in_native_thread(function):
    """Run it in a native thread that has no event loop; its result."""
    natives = getattr(hub(), "_natives", hub())
    outcome = []

    def run():
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    natives.spawn(run)
    deadline = time.monotonic() + 10
    while not outcome:
        assert time.monotonic() < deadline
        hub().sleep(0.005)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def test_name_and_monkey_patching(hub_name):
    assert hub().name == hub_name
    assert hub().is_monkey_patched()


def test_wait_read_returns_when_readable_and_lets_others_run(pair, waiter):
    def send():
        hub().sleep(0.02)
        pair[1].send(b"x")

    sender = Task(send)
    assert waiter.wait_read() is True
    assert pair[0].recv(1) == b"x"
    sender.join()


def test_wait_can_be_repeated(pair, waiter):
    for _ in range(100):
        pair[1].send(b"x")
        assert waiter.wait_read(time.monotonic() + 5)
        assert pair[0].recv(1) == b"x"
        assert waiter.wait_write(time.monotonic() + 5)


def test_wait_read_gives_up_at_the_deadline(waiter):
    start = time.monotonic()
    assert waiter.wait_read(start + 0.05) is False
    assert time.monotonic() >= start + 0.05
    assert waiter.wait_read(start) is False, "a deadline in the past"


def test_wait_write_waits_for_room(pair, waiter):
    pair[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            pair[0].send(b"x" * 65536)
    assert waiter.wait_write(time.monotonic() + 0.02) is False
    drained = Task(lambda: pair[1].recv(1 << 20))
    assert waiter.wait_write(time.monotonic() + 5) is True
    drained.join()


def test_second_waiter_on_one_descriptor_is_refused(pair, waiter):
    first = Task(waiter.wait_read)
    hub().sleep(0.02)
    with pytest.raises(RuntimeError, match="another task is waiting for file descriptor"):
        waiter.wait_read()
    pair[1].send(b"x")
    assert first.result() is True


@green_only
def test_kill_comes_out_of_a_wait_and_leaves_nothing_behind(pair, waiter):
    task = Task(waiter.wait_read)
    hub().sleep(0.01)
    task.throw(Killed)
    task.join()
    assert isinstance(task.error, Killed)
    pair[1].send(b"x")
    assert waiter.wait_read(time.monotonic() + 5), "the waiter is free for the next"


def test_event_set_before_and_after_the_wait():
    early = hub().event()
    early.set()
    early.set()
    assert early.wait() is True
    late = hub().event()
    Task(lambda: (hub().sleep(0.02), late.set()))
    assert late.wait(time.monotonic() + 5) is True
    assert late.wait(0) is True, "it stays set"


def test_event_hands_a_value_over():
    event = hub().event()
    assert event.value is None
    Task(lambda: (hub().sleep(0.02), event.set("this")))
    assert event.wait(time.monotonic() + 5) is True
    assert event.value == "this"


def test_event_tells_of_a_delay():
    event, told = hub().event(), []
    event.on_delay = told.append
    task = hub().current()
    assert event.wait(time.monotonic() + 0.1) is False
    assert told in ([task], [None]), "once"


def test_event_gives_up_at_the_deadline():
    event = hub().event()
    start = time.monotonic()
    assert event.wait(start + 0.05) is False
    assert time.monotonic() >= start + 0.05
    assert event.wait(start) is False


@green_only
def test_event_set_for_a_task_that_was_killed_wakes_nobody():
    event, log = hub().event(), []

    def wait():
        own = hub().event()
        try:
            event_of_task.append(own)
            own.wait()
        except Killed:
            log.append("killed")
            hub().sleep(0.03)  # a wake-up that came late would end this sleep
            log.append("slept")

    event_of_task = []
    task = Task(wait)
    hub().sleep(0.01)
    task.throw(Killed)
    event_of_task[0].set()
    start = time.monotonic()
    task.result()
    assert log == ["killed", "slept"]
    assert time.monotonic() - start >= 0.029
    assert event.wait(0) is False


def test_event_is_set_from_another_native_thread():
    natives = getattr(hub(), "_natives", hub())
    for _ in range(20):
        event = hub().event()
        natives.spawn(event.set)
        assert event.wait(time.monotonic() + 5) is True


def test_event_of_a_native_thread_is_set_from_the_hub():
    events = []

    def wait():
        events.append(hub().event())
        return events[0].wait(time.monotonic() + 5)

    def set_it():
        while not events:
            hub().sleep(0.005)
        events[0].set()

    Task(set_it)
    assert in_native_thread(wait) is True


def test_native_thread_without_a_loop_waits_by_blocking_itself(pair):
    def wait():
        waiter = hub().fd_waiter(pair[0].fileno())
        try:
            timed_out = waiter.wait_read(time.monotonic() + 0.02)
            pair[1].send(b"x")
            return timed_out, waiter.wait_read()
        finally:
            waiter.close()

    assert in_native_thread(wait) == (False, True)


def test_waiter_moves_between_threads(pair, waiter):
    pair[1].send(b"x")
    assert waiter.wait_read()
    assert in_native_thread(waiter.wait_read)
    assert waiter.wait_read()


def test_mutex_excludes_native_threads():
    mutex, inside, overlaps = hub().mutex(), [], []

    def enter():
        for _ in range(200):
            with mutex:
                inside.append(1)
                if len(inside) > 1:
                    overlaps.append(1)
                inside.pop()

    natives = getattr(hub(), "_natives", hub())
    done = []
    for _ in range(4):
        natives.spawn(lambda: (enter(), done.append(1)))
    deadline = time.monotonic() + 10
    while len(done) < 4 and time.monotonic() < deadline:
        hub().sleep(0.005)
    assert len(done) == 4
    assert not overlaps


def test_sleep_lets_others_run():
    log = []
    tasks = [Task(lambda n=n: (log.append(n), hub().sleep(0), log.append(n))) for n in range(3)]
    for task in tasks:
        task.join()
    assert sorted(log) == [0, 0, 1, 1, 2, 2]


def test_current_tells_tasks_apart_and_describe_names_them():
    tasks = run_all([lambda: (hub().sleep(0.2), hub().current())[1] for _ in range(5)])
    assert len(set(tasks)) == 5
    assert hub().current() == hub().current()
    assert isinstance(hub().describe(hub().current()), str)


def test_resolve():
    addresses = hub().natives().resolve("localhost", 5432)
    assert any(address[4][:2] == ("127.0.0.1", 5432) for address in addresses)
    with pytest.raises(OSError, match=r"\S"):
        hub().natives().resolve("no-such-host.invalid", 5432)


def test_run_in_thread_returns_and_raises():
    assert hub().run_in_thread(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        hub().run_in_thread(lambda: 1 / 0)


@green_only
def test_run_in_thread_does_not_block_the_hub():
    natives = hub()._natives
    hub().run_in_thread(natives.sleep, 0.2)  # the guard watches


def test_waiters_do_not_leak_descriptors(pair):
    hub().fd_waiter(pair[0].fileno()).wait_write()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        waiter = hub().fd_waiter(pair[0].fileno())
        waiter.wait_write()
        waiter.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() < 50


@pytest.mark.only_hub("gevent")
def test_event_set_by_another_native_thread_when_nothing_else_goes_on_in_the_loop():
    import gevent

    events = []

    def wait():
        gevent.sleep(0)  # from now on the native thread has a loop
        events.append(hub().event())
        return events[0].wait()

    task = Task(hub().run_in_thread, wait)
    wait_until(lambda: events)
    hub().sleep(0.02)
    events[0].set()
    assert task.result() is True
