"""What greenpg asks of an event loop, and nothing more.

A *task* is whatever the hub schedules: a greenlet, or a native thread. A *deadline* is a point on
`time.monotonic()`'s clock, in seconds, or None for "wait for ever".

Rules that every hub keeps (tests/test_hubs.py checks them on all of them):

- Only `FdWaiter.wait_*`, `Event.wait`, `sleep` and `run_in_thread` suspend the caller.
- An exception thrown into a suspended task (a kill, a timeout, KeyboardInterrupt) comes out of the call that
  suspends it, unchanged; nothing that belonged to the wait is left behind. `FdWaiter.wait_*`, `Event.wait` and `sleep`
  note on it that it was thrown in (`errors.is_interruption`), whatever its class: `run_in_thread` raises errors of its
  function's as well.
- In the event loop itself (a callback, a finalizer that runs there) nothing can be suspended: there `FdWaiter.wait_*`
  block, for `LONGEST_BLOCK` at most, and say False then; `sleep` blocks; `Event.wait` raises the loop's error.
- In a child of a fork the tasks that were suspended in one of them at that moment go on waiting, whatever their
  deadlines: they are the parent's. Only a kill ends them there (and `sleep` its time).
- A native thread without an event loop of its own may call everything: it then blocks itself, nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: Seconds that a wait in the event loop itself may stop the program.
LONGEST_BLOCK = 1.0

#: What `socket.getaddrinfo` gives for one address.
AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


class FdWaiter(Protocol):
    """Waits for one file descriptor, again and again: what can be kept between two waits is kept here.

    One task at a time; a second one gets a RuntimeError. After `close()` (which the owner calls before the
    descriptor is closed or given away) it isn't used again.
    """

    def wait_read(self, deadline: float | None = None) -> bool:
        """Suspend until the descriptor is readable, or may be. False: the deadline passed."""

    def wait_write(self, deadline: float | None = None) -> bool:
        """Suspend until the descriptor is writable, or may be. False: the deadline passed."""

    def close(self) -> None:
        """Forget the descriptor. Doesn't suspend."""


class Event(Protocol):
    """A one-shot signal with one waiter: the task that made it waits, any task of any thread sets it."""

    #: What it was set to; None until then.
    value: Any
    #: Called if the wait takes longer than a moment (20 ms; some hubs don't wait for that): with the waiting task, or
    #: in it and with None. It must not suspend.
    on_delay: Callable[[object], object] | None

    def set(self, value: object = True) -> None:
        """Wake the waiter, now or when it comes to wait. Doesn't suspend; again is harmless."""

    def wait(self, deadline: float | None = None) -> bool:
        """Suspend until `set()`. False: the deadline passed first."""


class Mutex(Protocol):
    """A native lock for state that several native threads touch. Never suspend while holding it."""

    def acquire(self, blocking: bool = True) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Hub(Protocol):
    """How a task waits."""

    #: "gevent", "eventlet" or "threads".
    name: str

    def now(self) -> float:
        """The time on the clock of deadlines, in seconds. Doesn't suspend."""

    def is_monkey_patched(self) -> bool:
        """Whether the program's sockets wait through this hub. Always true of threads."""

    def natives(self) -> Natives:
        """Native threads, with the primitives as they are without the monkey-patching."""

    def fd_waiter(self, fd: int) -> FdWaiter:
        """A waiter for the descriptor, for as long as it stays open."""

    def is_readable(self, fd: int) -> bool:
        """Whether there is something to read, or the end, right now. Doesn't suspend."""

    def event(self) -> Event:
        """A signal that the calling task is going to wait for."""

    def mutex(self) -> Mutex:
        """A native lock, whatever has been monkey-patched."""

    def sleep(self, seconds: float) -> None:
        """Suspend the caller. 0 lets the other tasks run once."""

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        """Run the function in a task of its own. It must not raise. Doesn't suspend."""

    def current(self) -> object:
        """The running task, as something that can be compared and hashed."""

    def hold(self, task: object) -> Callable[[], object | None]:
        """A reference to a task by which it can be told from others, and which doesn't keep it alive. Called, it gives
        the task, or None when it is gone. Doesn't suspend."""

    def is_in_loop(self) -> bool:
        """Whether it is the event loop itself that calls, which can't be suspended. Doesn't suspend."""

    def may_block(self) -> bool:
        """Whether the running task is a native thread without an event loop: it blocks nobody else. Doesn't suspend."""

    def describe(self, task: object) -> str:
        """The name of a task that `current()` gave, for a message."""

    def on_end(self, task: object, call: Callable[[], object]) -> Callable[[], object] | None:
        """Call the function, which must not suspend, when the task (a `current()`) ends. Doesn't suspend.

        Returns what takes that back; None if the end of such a task can't be known.
        """

    def after_fork(self) -> None:
        """This is a child of a fork, its descriptors are what they are going to be. Doesn't suspend."""

    def run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """The function's result; it runs in a native thread while the caller is suspended.

        A caller that is killed leaves the thread to finish by itself.
        """


class Natives(Hub, Protocol):
    """Native threads."""

    def resolve(self, host: str, port: int | str | None) -> list[AddressInfo]:
        """Look a name up as `socket.getaddrinfo(host, port, type=SOCK_STREAM)` does. Blocks the native thread."""
