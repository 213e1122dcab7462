"""`serve_top()`: the Unix socket that `greenpg top` attaches to."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import is_interruption
from ..hubs import hub
from ..pool.pool import ConnectionPool
from .view import View

logger = logging.getLogger("greenpg.top")

#: Seconds that a client may be silent.
_IDLE = 60.0
_LONGEST_REQUEST = 10_000


def socket_directory() -> Path:
    """Where this user's programs have their sockets, unless they name a path."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "greenpg" if runtime else Path(tempfile.gettempdir()) / f"greenpg-{os.getuid()}"


class TopServer:
    """What `serve_top()` gave; `with` closes it."""

    def __init__(self, path: Path, view: View) -> None:
        self.path = path
        self._view = view
        self._pid = os.getpid()
        self._is_closed = False
        self._listener = _listen(path)
        view.start()
        hub().spawn(self._serve)
        atexit.register(self.close)

    def close(self) -> None:
        """Stop serving, and remove the socket. Harmless when closed, and in a forked child. Doesn't suspend."""
        atexit.unregister(self.close)
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        self._view.stop()
        with contextlib.suppress(OSError):
            self.path.unlink()
        with contextlib.suppress(OSError):  # it wakes who is in accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> TopServer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if not self._is_closed:
                    logger.error("greenpg.serve_top() has ended: %s", error)
                return
            hub().spawn(self._answer, client)

    def _answer(self, client: socket.socket) -> None:
        """Each line is a request, each answer is a line."""
        with client:
            client.settimeout(_IDLE)
            try:
                with client.makefile("rwb") as file:
                    while line := file.readline(_LONGEST_REQUEST):
                        request = json.loads(line)
                        answer = self._view.look(stacks=bool(request.get("stacks")), server=request.get("server", True))
                        file.write(json.dumps(answer).encode() + b"\n")
                        file.flush()
            except (OSError, ValueError, AttributeError):
                return  # it has gone, or talks of something else
            except Exception as error:
                if is_interruption(error):
                    raise
                logger.exception("greenpg.serve_top() could not answer")


def serve_top(
    path: str | os.PathLike[str] | None = None, *pools: ConnectionPool, statements: bool = False
) -> TopServer:
    """Let `greenpg top` look at this program's pools, through a Unix socket of mode 0600; nothing can be changed there.

    - `path` (None: named by the process number, in XDG_RUNTIME_DIR/greenpg or /tmp/greenpg-UID).
    - `pools` (none: all that there are in the process, at each look).
    - `statements` (False): whether the texts of statements may be shown.

    Takes a sample of each pool once a second, and serves in tasks of its own, until `close()` or the end of the
    process; call it in each worker, after the fork. Doesn't suspend. Raises OSError if the socket can't be made,
    RuntimeError if another program serves at that path, or if the program's sockets would block its loop.
    """
    if not hub().is_monkey_patched():
        raise RuntimeError(f"serve_top() needs sockets that {hub().name} has monkey-patched: they'd block the loop")
    if path is None:
        directory = socket_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            raise RuntimeError(f"{directory} belongs to another user: name a path")
        path = directory / f"{os.getpid()}.sock"
    return TopServer(Path(path), View(pools, statements))


def _listen(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Made where nobody else can reach it, and moved when its mode is right.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as private:
            hidden = os.path.join(private, "s")
            listener.bind(hidden)
            os.chmod(hidden, 0o600)
            listener.listen(8)
            os.rename(hidden, path)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """The socket of a program that has ended without removing it."""
    if not path.is_socket():
        if path.exists():
            raise RuntimeError(f"{path} exists, and is no socket: name another path")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise RuntimeError(f"another program serves at {path} already: name another path")


class TopClient:
    """Asks a program that serves. Blocks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(15)
            self._socket.connect(os.fspath(path))
            self._file: Any = self._socket.makefile("rwb")
        except BaseException:
            self._socket.close()
            raise

    def look(self, stacks: bool = False) -> dict[str, Any]:
        """What the program shows now. Raises OSError if it has gone."""
        self._file.write(json.dumps({"stacks": stacks}).encode() + b"\n")
        self._file.flush()
        line = self._file.readline()
        if not line:
            raise ConnectionResetError("the program has gone")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()
