"""Native threads: a task blocks its own thread in poll(2).

The other hubs send the threads that have no event loop here. Since a monkey-patched program has green versions of
the primitives in the standard modules, the native ones are handed in.
"""

from __future__ import annotations

import functools
import select
import socket
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from ..errors import note_interruption
from .base import AddressInfo, T

# select.poll counts in C ints of milliseconds, Lock.acquire has TIMEOUT_MAX; a day is below both.
_LONGEST_WAIT = 86_400.0


def _remaining(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), 0.0), _LONGEST_WAIT)


def _poll() -> Any:
    return select.poll()  # looked up late: eventlet takes it out of the module


class ThreadFdWaiter:
    """poll(2) on one descriptor; the poll objects are kept."""

    __slots__ = ("_busy", "_fd", "_poll", "_readable", "_writable")

    def __init__(self, fd: int, poll: Callable[[], Any]) -> None:
        self._fd = fd
        self._poll = poll
        self._readable: Any = None
        self._writable: Any = None
        self._busy = False

    def wait_read(self, deadline: float | None = None) -> bool:
        if self._readable is None:
            self._readable = self._poll()
            self._readable.register(self._fd, select.POLLIN)
        return self._wait(self._readable, deadline)

    def wait_write(self, deadline: float | None = None) -> bool:
        if self._writable is None:
            self._writable = self._poll()
            self._writable.register(self._fd, select.POLLOUT)
        return self._wait(self._writable, deadline)

    def _wait(self, poller: Any, deadline: float | None) -> bool:
        if self._busy:
            raise RuntimeError(f"another task is waiting for file descriptor {self._fd}")
        self._busy = True
        try:
            if deadline is None:
                poller.poll()
                return True
            while True:
                remaining = _remaining(deadline)
                # Rounded up: polling with 0 ms until the last fraction is over would spin.
                if poller.poll(int(remaining * 1000.0) + (remaining > 0.0)):
                    return True
                if time.monotonic() >= deadline:
                    return False
        except BaseException as exception:  # raised by a signal's handler
            note_interruption(exception)
            raise
        finally:
            self._busy = False

    def close(self) -> None:
        self._readable = self._writable = None


class ThreadEvent:
    """A native lock, held from the start and released by `set()`."""

    __slots__ = ("_lock", "on_delay", "value")

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.value: Any = None
        self.on_delay: Callable[[object], object] | None = None
        lock.acquire()

    def set(self, value: object = True) -> None:
        self.value = value
        try:
            self._lock.release()
        except RuntimeError:  # released before
            pass

    def wait(self, deadline: float | None = None) -> bool:
        if self.value is not None:
            return True
        if self.on_delay is not None:
            self.on_delay(None)
        try:
            if deadline is None:
                self._lock.acquire()
                return True
            while not self._lock.acquire(timeout=_remaining(deadline)):
                if time.monotonic() >= deadline:
                    return self.value is not None
            return True
        except BaseException as exception:
            note_interruption(exception)
            raise


class _Endings:
    """Kept in a thread-local variable: it is collected when its thread ends."""

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        self.calls = calls

    def __del__(self) -> None:
        if not sys.is_finalizing():
            for call in self.calls:
                call()


class _ThreadReference(int):
    """The number of a thread keeps nothing alive."""

    __slots__ = ()

    def __call__(self) -> int:
        return int(self)


class ThreadsHub:
    """Waits by blocking the calling thread."""

    name = "threads"
    now = staticmethod(time.monotonic)
    hold: Any = _ThreadReference

    def __init__(
        self,
        *,
        poll: Callable[[], Any] = _poll,
        lock: Callable[[], Any] = allocate_lock,
        sleep: Callable[[float], None] = time.sleep,
        start_thread: Callable[..., Any] | None = None,
        get_ident: Callable[[], int] = threading.get_ident,
        getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo,
        local: Callable[[], Any] = threading.local,
    ) -> None:
        self._local = local()
        self._poll = poll
        self._lock = lock
        self._sleep = sleep
        self._start_thread = start_thread
        self._get_ident = get_ident
        self._getaddrinfo = getaddrinfo

    def is_monkey_patched(self) -> bool:
        return True

    def natives(self) -> ThreadsHub:
        return self

    def fd_waiter(self, fd: int) -> ThreadFdWaiter:
        return ThreadFdWaiter(fd, self._poll)

    def is_readable(self, fd: int) -> bool:
        poller = self._poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))

    def event(self) -> ThreadEvent:
        return ThreadEvent(self._lock())

    def mutex(self) -> Any:
        return self._lock()

    def sleep(self, seconds: float) -> None:
        try:
            self._sleep(seconds)
        except BaseException as exception:
            note_interruption(exception)
            raise

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        if self._start_thread is not None:
            self._start_thread(function, args)
            return
        name = f"greenpg-{getattr(function, '__name__', 'task')}"
        threading.Thread(target=function, args=args, name=name, daemon=True).start()

    def current(self) -> object:
        return self._get_ident()

    def is_in_loop(self) -> bool:
        return False

    def describe(self, task: object) -> str:
        for thread in threading.enumerate():
            if thread.ident == task:
                return f"thread {thread.name!r}"
        return f"thread {task}"

    def on_end(self, task: object, call: Callable[[], object]) -> Callable[[], object] | None:
        if task != self._get_ident():
            return None
        try:
            calls = self._local.endings.calls
        except AttributeError:
            self._local.endings = _Endings(calls := [])
        calls.append(call)
        return functools.partial(calls.remove, call)  # which must not keep the _Endings alive

    def resolve(self, host: str, port: int | str | None) -> list[AddressInfo]:
        return self._getaddrinfo(host, port, 0, socket.SOCK_STREAM)

    def may_block(self) -> bool:
        return True

    def after_fork(self) -> None:
        pass  # only the thread that has forked is here

    def run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)
