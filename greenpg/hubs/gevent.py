"""gevent: a task is a greenlet, and waiting means switching to the hub of its thread."""

from __future__ import annotations

import functools
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
from gevent import getcurrent, monkey
from gevent._hub_local import get_hub_if_exists  # gevent.get_hub() would make a hub for any thread that asks
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import MAIN_THREAD_IDENT, get_hub
from gevent.hub import Hub as _Loop

from ..errors import note_interruption
from .base import LONGEST_BLOCK, Event, FdWaiter, T
from .threads import ThreadsHub

_READ, _WRITE = 1, 2
_EXPIRED = object()


#: Another one in each process.
_process = object()


def _switch_until(hub: Any, task: Any, deadline: float) -> bool:
    """Switch to the hub; False if it was the deadline that switched back."""
    process = _process
    timer = hub.loop.timer(max(deadline - time.monotonic(), 0.0))
    try:
        timer.start(task.switch, _EXPIRED, update=True)
        is_expired = hub.switch() is _EXPIRED
        if is_expired and _process is not process:  # the deadline was the parent's
            is_expired = hub.switch() is _EXPIRED
        return not is_expired
    finally:
        timer.stop()
        timer.close()


_NO_HUB: Any = object()


class GeventFdWaiter:
    """Keeps the loop's io watchers of one descriptor; gevent's own wait_read() makes a new one for each wait."""

    __slots__ = ("_fd", "_hub", "_native", "_natives", "_reader", "_writer")

    def __init__(self, fd: int, hub: Any, natives: ThreadsHub) -> None:
        self._fd = fd
        self._hub = _NO_HUB if hub is None else hub
        self._reader: Any = None
        self._writer: Any = None
        self._natives = natives
        self._native: FdWaiter | None = None

    # The two waits are spelled out, since every statement of every connection runs through one of them.

    def wait_read(self, deadline: float | None = None) -> bool:
        hub = self._hub
        if get_hub_if_exists() is not hub:
            return self._elsewhere().wait_read(deadline)
        watcher = self._reader
        if watcher is None:
            watcher = self._reader = hub.loop.io(self._fd, _READ)
        if watcher.active:
            raise RuntimeError(f"another task is waiting for file descriptor {self._fd}")
        task = getcurrent()
        watcher.start(task.switch)
        try:
            if deadline is None:
                hub.switch()
                return True
            return _switch_until(hub, task, deadline)
        except BlockingSwitchOutError:
            return self._block("wait_read", deadline)
        except BaseException as exception:
            note_interruption(exception)
            raise
        finally:
            watcher.stop()

    def wait_write(self, deadline: float | None = None) -> bool:
        hub = self._hub
        if get_hub_if_exists() is not hub:
            return self._elsewhere().wait_write(deadline)
        watcher = self._writer
        if watcher is None:
            watcher = self._writer = hub.loop.io(self._fd, _WRITE)
        if watcher.active:
            raise RuntimeError(f"another task is waiting for file descriptor {self._fd}")
        task = getcurrent()
        watcher.start(task.switch)
        try:
            if deadline is None:
                hub.switch()
                return True
            return _switch_until(hub, task, deadline)
        except BlockingSwitchOutError:
            return self._block("wait_write", deadline)
        except BaseException as exception:
            note_interruption(exception)
            raise
        finally:
            watcher.stop()

    def _block(self, wait: str, deadline: float | None) -> bool:
        """It is the hub that wants to wait."""
        latest = time.monotonic() + LONGEST_BLOCK
        is_ready: bool = getattr(self._natives.fd_waiter(self._fd), wait)(
            latest if deadline is None else min(deadline, latest)
        )
        return is_ready

    def _elsewhere(self) -> FdWaiter:
        """The descriptor has come to another thread: watchers belong to one loop."""
        hub = get_hub_if_exists()
        if hub is not None:
            self.close()
            self._hub = hub
            return self
        if self._native is None:
            self._native = self._natives.fd_waiter(self._fd)
        return self._native

    def close(self) -> None:
        reader, writer = self._reader, self._writer
        self._reader = self._writer = self._native = None
        for watcher in (reader, writer):
            if watcher is not None:
                watcher.stop()
                watcher.close()


class _Alarms:
    """The deadlines of a hub's events on one ticking timer: a timer for each of ten thousand waits would cost more than
    the waits. It ticks only while somebody waits, and that also keeps a loop from ending in which nothing else is
    going on, though another native thread may be about to set an event.

    Most waits are over before a tick sees them, and have cost one append.
    """

    TICK = 0.01

    def __init__(self, hub: Any) -> None:
        self._loop = hub.loop
        self._timer = hub.loop.timer(self.TICK, self.TICK)
        self._earliest = math.inf
        self.is_ticking = False
        #: Events whose waits have begun since the last tick.
        self.new: list[GeventEvent] = []
        #: Those that have been waited for since before.
        self.known: set[GeventEvent] = set()

    def start(self) -> None:
        self.is_ticking = True
        self._timer.start(self._tick)

    def _tick(self) -> None:
        new, self.new = self.new, []
        for event in new:
            if event.task is not None:
                self._get_to_know(event)
        if not self.known:
            self._earliest = math.inf
            self.is_ticking = False
            self._timer.stop()
            return
        now = time.monotonic()
        if now < self._earliest:
            return
        for event in [event for event in self.known if event.deadline <= now]:
            event.deadline = OVER
            self._loop.run_callback(event.wake)
        self._earliest = min((event.deadline for event in self.known if event.deadline is not OVER), default=math.inf)

    def _get_to_know(self, event: GeventEvent) -> None:
        self.known.add(event)
        if event.deadline < self._earliest:
            self._earliest = event.deadline
        if event.on_delay is not None:
            event.on_delay(event.task)


#: Instead of a deadline that has passed.
OVER = 0.0


class GeventEvent:
    """Wakes its greenlet through the loop of the greenlet's own thread. Late by up to two ticks at its deadline."""

    __slots__ = ("_hub", "_wakeup", "deadline", "on_delay", "task", "value")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        #: The greenlet that waits.
        self.task = self.value = self.on_delay = self._wakeup = None  # type: Any

    def set(self, value: object = True) -> None:
        self.value = value
        task = self.task
        if task is None or self._wakeup is not None:
            return
        hub = self._hub
        if get_hub_if_exists() is hub:
            self._wakeup = hub.loop.run_callback(task.switch)
        else:
            hub.loop.run_callback_threadsafe(self.wake)

    def wake(self) -> None:
        # In the hub. The greenlet may have left (killed, timed out) meanwhile: then it must not be switched to.
        if self.task is not None:
            self.task.switch()

    def wait(self, deadline: float | None = None) -> bool:
        if self.value is not None:
            return True
        if deadline is None:
            deadline = math.inf
        elif deadline <= time.monotonic():
            return False
        hub = self._hub
        try:
            alarms = hub.greenpg_alarms
        except AttributeError:
            alarms = hub.greenpg_alarms = _Alarms(hub)
        self.deadline = deadline
        self.task = getcurrent()
        alarms.new.append(self)
        if not alarms.is_ticking:
            alarms.start()
        try:
            while self.value is None and self.deadline is not OVER:
                hub.switch()
            return self.value is not None
        except BaseException as exception:
            note_interruption(exception)
            raise
        finally:
            self.task = None
            if alarms.known:
                alarms.known.discard(self)
            if self._wakeup is not None:
                self._wakeup.stop()  # if it's killed after set(), it must not be switched to any more


def _native_hub() -> ThreadsHub:
    original = monkey.get_original
    return ThreadsHub(
        poll=original("select", "poll"),
        lock=original("_thread", "allocate_lock"),
        sleep=original("time", "sleep"),
        start_thread=original("_thread", "start_new_thread"),
        get_ident=original("_thread", "get_ident"),
        getaddrinfo=original("socket", "getaddrinfo"),
        local=original("threading", "local"),
    )


class GeventHub:
    """Waits in gevent's hub where the thread has one, and by blocking where it has none."""

    name = "gevent"
    now = staticmethod(time.monotonic)
    current = staticmethod(getcurrent)
    hold: Any = weakref.ref

    def __init__(self) -> None:
        self._natives = _native_hub()

    def is_monkey_patched(self) -> bool:
        return bool(monkey.is_module_patched("socket"))

    def natives(self) -> ThreadsHub:
        return self._natives

    def _loop(self) -> _Loop | None:
        hub = get_hub_if_exists()
        if hub is None and self._natives.current() == MAIN_THREAD_IDENT:
            return get_hub()  # the program's first wait
        return hub

    def fd_waiter(self, fd: int) -> FdWaiter:
        return GeventFdWaiter(fd, self._loop(), self._natives)

    def is_readable(self, fd: int) -> bool:
        return self._natives.is_readable(fd)

    def event(self) -> Event:
        hub = get_hub_if_exists() or self._loop()
        return self._natives.event() if hub is None else GeventEvent(hub)

    def mutex(self) -> Any:
        return self._natives.mutex()

    def sleep(self, seconds: float) -> None:
        if self._loop() is None:
            self._natives.sleep(seconds)
            return
        try:
            gevent.sleep(seconds)
        except BlockingSwitchOutError:
            self._natives.sleep(seconds)
        except BaseException as exception:
            note_interruption(exception)
            raise

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        if self._loop() is None:
            self._natives.spawn(function, *args)
        else:
            gevent.spawn(function, *args)

    def is_in_loop(self) -> bool:
        return getcurrent() is get_hub_if_exists()

    def may_block(self) -> bool:
        return self._loop() is None

    def describe(self, task: object) -> str:
        if getattr(task, "parent", None) is None:
            return "the main greenlet"
        name = getattr(task, "name", None)
        return f"greenlet {name!r}" if name else repr(task)

    def on_end(self, task: object, call: Callable[[], object]) -> Callable[[], object] | None:
        if self._loop() is None:
            return self._natives.on_end(self._natives.current(), call)
        if not isinstance(task, gevent.Greenlet):
            return None

        def link(_: gevent.Greenlet) -> None:
            call()

        task.rawlink(link)
        return functools.partial(task.unlink, link)

    def after_fork(self) -> None:
        global _process
        _process = object()
        alarms = getattr(get_hub_if_exists(), "greenpg_alarms", None)
        if alarms is not None:  # those that wait now wait for ever
            alarms.new.clear()
            alarms.known.clear()

    def run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        hub = self._loop()
        if hub is None:
            return function(*args)
        result: T = hub.threadpool.apply(function, args)
        return result
