"""eventlet: a task is a green thread, and waiting means switching to the hub of its native thread."""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import eventlet
from eventlet import hubs, patcher, tpool
from greenlet import getcurrent

from ..errors import note_interruption
from .base import LONGEST_BLOCK, Event, FdWaiter, T
from .threads import ThreadsHub

_EXPIRED = object()
_native_os = patcher.original("os")
_native_select = patcher.original("select")
_native_threading = patcher.original("threading")


def _start_native_thread(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    _native_threading.Thread(target=function, args=args, daemon=True).start()


def _loop_if_exists() -> Any:
    # hubs.get_hub() would make a hub for any thread that asks.
    return getattr(hubs._threadlocal, "hub", None)


#: Another one in each process.
_process = object()


def _switch_until(loop: Any, deadline: float | None) -> bool:
    """Switch to the hub; False if it was the deadline that switched back."""
    timer, process = None, _process
    try:
        if deadline is None:
            loop.switch()
            return True
        timer = loop.schedule_call_global(max(deadline - time.monotonic(), 0.0), getcurrent().switch, _EXPIRED)
        is_expired = loop.switch() is _EXPIRED
        if is_expired and _process is not process:  # the deadline was the parent's
            is_expired = loop.switch() is _EXPIRED
        return not is_expired
    except BaseException as exception:
        note_interruption(exception)
        raise
    finally:
        if timer is not None:
            timer.cancel()


class EventletFdWaiter:
    """Adds and removes the hub's listener at each wait: eventlet has none that could be kept."""

    __slots__ = ("_fd", "_native", "_natives")

    def __init__(self, fd: int, natives: ThreadsHub) -> None:
        self._fd = fd
        self._natives = natives
        self._native: FdWaiter | None = None

    def wait_read(self, deadline: float | None = None) -> bool:
        loop = _loop_if_exists()
        return self._blocking().wait_read(deadline) if loop is None else self._wait(loop, loop.READ, deadline)

    def wait_write(self, deadline: float | None = None) -> bool:
        loop = _loop_if_exists()
        return self._blocking().wait_write(deadline) if loop is None else self._wait(loop, loop.WRITE, deadline)

    def _wait(self, loop: Any, event_type: str, deadline: float | None) -> bool:
        if self._fd in loop.listeners[event_type]:
            raise RuntimeError(f"another task is waiting for file descriptor {self._fd}")
        task = getcurrent()
        if task is loop.greenlet:
            return self._block(event_type == loop.READ, deadline)
        listener = loop.add(event_type, self._fd, task.switch, task.throw, lambda: None)
        try:
            return _switch_until(loop, deadline)
        finally:
            loop.remove(listener)

    def _block(self, reads: bool, deadline: float | None) -> bool:
        """It is the hub that wants to wait."""
        latest = time.monotonic() + LONGEST_BLOCK
        waiter = self._blocking()
        return (waiter.wait_read if reads else waiter.wait_write)(latest if deadline is None else min(deadline, latest))

    def _blocking(self) -> FdWaiter:
        if self._native is None:
            self._native = self._natives.fd_waiter(self._fd)
        return self._native

    def close(self) -> None:
        self._native = None


class _Doorbell:
    """Runs functions in a hub for other native threads: eventlet's hubs can't be called from outside."""

    def __init__(self, loop: Any) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._open(loop)

    def _open(self, loop: Any) -> None:
        self._read_fd, self._write_fd = _native_os.pipe()
        for fd in (self._read_fd, self._write_fd):
            _native_os.set_blocking(fd, False)
        self._listener = loop.add(loop.READ, self._read_fd, self._answer, lambda *args: None, lambda: None)

    def renew(self, loop: Any) -> None:
        """In a child of a fork: the pipe is the parent's."""
        loop.remove(self._listener)
        for fd in (self._read_fd, self._write_fd):
            _native_os.close(fd)
        self._open(loop)

    def ring(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        try:
            _native_os.write(self._write_fd, b"!")
        except BlockingIOError:  # it is full of rings already
            pass

    def _answer(self, fd: int) -> None:
        try:
            _native_os.read(self._read_fd, 4096)
        except BlockingIOError:
            pass
        while self._calls:
            self._calls.popleft()()


class EventletEvent:
    """Wakes its green thread through the hub of the green thread's own native thread."""

    __slots__ = ("_doorbell", "_loop", "_task", "on_delay", "value")

    def __init__(self, loop: Any, doorbell: _Doorbell) -> None:
        self._loop = loop
        self._doorbell = doorbell
        self._task: Any = None
        self.value: Any = None
        self.on_delay: Callable[[object], object] | None = None

    def set(self, value: object = True) -> None:
        self.value = value
        if self._task is None:
            return
        if _loop_if_exists() is self._loop:
            self._loop.schedule_call_global(0, self._wake)
        else:
            self._doorbell.ring(self._wake)

    def _wake(self) -> None:
        # In the hub. The task may have left (killed, timed out) since set(): then it must not be switched to.
        if self._task is not None:
            self._task.switch()

    def wait(self, deadline: float | None = None) -> bool:
        self._task = getcurrent()
        if self.on_delay is not None and self.value is None:
            self.on_delay(None)
        try:
            while self.value is None:
                if not _switch_until(self._loop, deadline):
                    return self.value is not None
            return True
        finally:
            self._task = None


def _renew_epoll(loop: Any) -> None:
    """What one process takes out of an epoll object that it shares with the other, the other misses."""
    make = getattr(_native_select, "epoll", None)
    if make is None or not isinstance(getattr(loop, "poll", None), make):
        return
    loop.poll = make()
    for fd in {*loop.listeners[loop.READ], *loop.listeners[loop.WRITE]}:
        try:
            loop.register(fd, new=True)
        except OSError:  # it was closed without a word to eventlet
            pass


class EventletHub:
    """Waits in eventlet's hub where the native thread has one, and by blocking where it has none."""

    name = "eventlet"
    now = staticmethod(time.monotonic)
    current = staticmethod(getcurrent)
    hold: Any = weakref.ref

    def __init__(self) -> None:
        self._natives = ThreadsHub(
            poll=patcher.original("select").poll,
            lock=_native_threading.Lock,
            sleep=patcher.original("time").sleep,
            start_thread=_start_native_thread,
            get_ident=_native_threading.get_ident,
            getaddrinfo=patcher.original("socket").getaddrinfo,
            local=_native_threading.local,
        )
        self._main_thread = _native_threading.main_thread().ident  # which may not be the one that patches

    def is_monkey_patched(self) -> bool:
        return bool(patcher.is_monkey_patched("socket"))

    def natives(self) -> ThreadsHub:
        return self._natives

    def _loop(self) -> Any:
        loop = _loop_if_exists()
        if loop is None and self._natives.current() == self._main_thread:
            return hubs.get_hub()  # the program's first wait
        return loop

    def fd_waiter(self, fd: int) -> FdWaiter:
        self._loop()
        return EventletFdWaiter(fd, self._natives)

    def is_readable(self, fd: int) -> bool:
        return self._natives.is_readable(fd)

    def event(self) -> Event:
        loop = self._loop()
        if loop is None:
            return self._natives.event()
        try:
            doorbell = loop.greenpg_doorbell
        except AttributeError:
            doorbell = loop.greenpg_doorbell = _Doorbell(loop)
        return EventletEvent(loop, doorbell)

    def mutex(self) -> Any:
        return self._natives.mutex()

    def sleep(self, seconds: float) -> None:
        if self._loop() is None or self.is_in_loop():
            self._natives.sleep(seconds)
            return
        try:
            eventlet.sleep(seconds)
        except BaseException as exception:
            note_interruption(exception)
            raise

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        if self._loop() is None:
            self._natives.spawn(function, *args)
        else:
            eventlet.spawn_n(function, *args)

    def is_in_loop(self) -> bool:
        loop = _loop_if_exists()
        return loop is not None and getcurrent() is loop.greenlet

    def may_block(self) -> bool:
        return self._loop() is None

    def describe(self, task: object) -> str:
        return "the main green thread" if getattr(task, "parent", None) is None else repr(task)

    def on_end(self, task: object, call: Callable[[], object]) -> Callable[[], object] | None:
        if self._loop() is None:
            return self._natives.on_end(self._natives.current(), call)
        if not isinstance(task, eventlet.greenthread.GreenThread):
            return None

        def link(_: Any) -> None:
            call()

        task.link(link)
        return functools.partial(task.unlink, link)

    def after_fork(self) -> None:
        global _process
        _process = object()
        loop = _loop_if_exists()
        if loop is not None:
            _renew_epoll(loop)
            if hasattr(loop, "greenpg_doorbell"):
                loop.greenpg_doorbell.renew(loop)

    def run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        if self._loop() is None:
            return function(*args)
        result: T = tpool.execute(function, *args)
        return result
