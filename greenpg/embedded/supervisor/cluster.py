"""PostgreSQL itself: initdb, start, stop, crash."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

from .identity import Identity
from .parent import Parent, Refusal
from .place import Place

HARD_END_TIMEOUT = 10.0  # after SIGQUIT, PostgreSQL itself kills what is still there after 5 s
PORTS_TRIED = 20


class Cluster:
    """One data directory and the server that runs in it, at most one at a time."""

    def __init__(self, parent: Parent, identity: Identity, place: Place) -> None:
        self._parent = parent
        self._identity = identity
        self._place = place
        self._postmaster: subprocess.Popen[bytes] | None = None

    def is_running(self) -> bool:
        """Also reaps a postmaster that has ended."""
        return self._postmaster is not None and self._postmaster.poll() is None

    # -- before the server runs

    def prepare(self, password: str | None) -> None:
        """Make the cluster if there is none, let in who knows the password (None: everybody who can connect)."""
        self._write_hba("scram-sha-256" if password else "trust")
        if not self._place.open_data_directory():
            self._initialize(password)
        elif password:
            self._set_password(password)

    def _write_hba(self, method: str) -> None:
        with open(self._place.hba, "w") as hba:
            for database in "all", "replication":
                hba.write(f"local {database} all {method}\nhost {database} all 127.0.0.1/32 {method}\n")

    def _initialize(self, password: str | None) -> None:
        command = ["initdb", "-D", self._place.data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-instructions"]
        if not self._place.is_lasting:
            command.append("--no-sync")
        if not password:
            status, output = self._run([*command, "--auth=trust"])
        else:
            path = self._place.temporary_file("password")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                self._identity.own(file.fileno())
                file.write(password)
            try:
                status, output = self._run([*command, "--auth=scram-sha-256", f"--pwfile={path}"])
            finally:
                os.unlink(path)
        if status:
            raise Refusal(f"initdb could not make a data directory in {self._place.data}", _tail(output))

    def _set_password(self, password: str) -> None:
        """Give a cluster that was there before its password in single-user mode: before anybody can connect."""
        settings = ["password_encryption=scram-sha-256", "standard_conforming_strings=on"]
        settings += ["log_statement=none", "log_min_duration_statement=-1", "log_min_error_statement=panic"]
        quoted = password.replace("'", "''")
        status, output = self._run(
            ["postgres", "--single", "-D", self._place.data, *_options(settings), "postgres"],
            f"ALTER ROLE postgres PASSWORD '{quoted}';\n",
        )
        if status or "ERROR:" in output:
            raise Refusal(self._explanation(output), _tail(output))

    # -- its runs

    def start(self, settings: list[str], port: int | None, timeout: float) -> tuple[int, int | None]:
        """Start the server unless it runs, and wait until it takes connections: its pid and TCP port.

        Port 0: choose a free one; None: no TCP.
        """
        for _ in range(PORTS_TRIED):
            chosen = _free_port() if port == 0 else port
            failure = self._launch(settings, chosen, timeout)
            if failure is None:
                assert self._postmaster is not None
                return self._postmaster.pid, chosen
            if port is None or "Address already in use" not in failure:
                raise Refusal(self._explanation(failure), failure)
            if port:
                raise Refusal(f"port {port} of 127.0.0.1 is taken: give another, or port=0 to have one chosen", failure)
        raise Refusal("no free port found on 127.0.0.1", failure or "")

    def _launch(self, settings: list[str], port: int | None, timeout: float) -> str | None:
        """What the log says of the failure; None when the server is ready."""
        log = os.open(self._place.log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            self._identity.own(log)
            before = os.fstat(log).st_size
            if not self.is_running():
                self.end_hard()  # what a killed postmaster has left
                listen = "" if port is None else "127.0.0.1"
                ours = [f"listen_addresses={listen}", f"port={port or 5432}", f"hba_file={self._place.hba}"]
                options = _options([*settings, *ours, f"unix_socket_directories={self._place.sockets}"])
                command = ["postgres", "-D", self._place.data, *options]
                self._postmaster = self._spawn(command, subprocess.DEVNULL, log)
            if not self._parent.wait_for(lambda: self._is_ready() or not self.is_running(), timeout):
                self.end_hard()
                raise Refusal(f"PostgreSQL was not ready within {timeout:g} s", _tail(_read_from(log, before)))
            return None if self.is_running() else _tail(_read_from(log, before))
        finally:
            os.close(log)

    def stop(self, signal_number: int, timeout: float) -> None:
        if self._postmaster is None or not self.is_running():
            return
        self._postmaster.send_signal(signal_number)
        if not self._parent.wait_for(lambda: not self.is_running(), timeout):
            raise Refusal(
                f"PostgreSQL has not shut down within {timeout:g} s. It goes on trying; "
                'stop(mode="immediate") waits for nobody'
            )

    def end_at_once(self) -> None:
        """Immediate shutdown, without anything that could interrupt the wait for it."""
        if self._postmaster is not None and self.is_running():
            self._postmaster.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._postmaster.wait(HARD_END_TIMEOUT)
        self.end_hard()

    def end_hard(self) -> None:
        """End every process as a crash does: connections just break, nothing is flushed.

        The postmaster is stopped while its children are killed, so that it can't react; then it is left to reap
        them and to remove the shared memory, which would stay behind if it were killed, too.
        """
        postmaster = self._postmaster
        if postmaster is not None and self.is_running():
            postmaster.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(postmaster.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                self._kill_processes(spared=postmaster.pid)
                postmaster.send_signal(signal.SIGQUIT)
                postmaster.send_signal(signal.SIGCONT)
                try:
                    postmaster.wait(HARD_END_TIMEOUT)
                except subprocess.TimeoutExpired:
                    postmaster.kill()
                    postmaster.wait()
            else:
                postmaster.returncode = os.waitstatus_to_exitcode(status)
        if self._holds_data():
            # The postmaster was killed. `--check` takes over the shared memory that it left, removes it, and does
            # nothing else.
            self._kill_processes(spared=None)
            with contextlib.suppress(Refusal):
                command = ["postgres", "--check", "-D", self._place.data]
                self._spawn(command, subprocess.DEVNULL, subprocess.DEVNULL).wait()

    def _lock_file(self) -> list[str]:
        try:
            with open(os.path.join(self._place.data, "postmaster.pid")) as file:
                return file.read().split("\n")
        except FileNotFoundError:
            return [""]

    def _holds_data(self) -> bool:
        """Whether the data directory is locked by our server, which may be dead, and not by somebody else's."""
        return self._postmaster is not None and self._lock_file()[0] == str(self._postmaster.pid)

    def _is_ready(self) -> bool:
        lines = self._lock_file()
        return self._holds_data() and len(lines) > 7 and lines[7].strip() in ("ready", "standby")

    def _kill_processes(self, spared: int | None) -> None:
        """Kill the processes of our server, even orphaned ones. Does nothing where there is no /proc."""
        if not self._holds_data() or not os.path.isdir("/proc/self"):
            return
        ours = os.path.realpath(os.path.join(self._place.binaries, "postgres")), os.path.realpath(self._place.data)

        def kill_all() -> bool:
            for name in os.listdir("/proc"):
                with contextlib.suppress(OSError):
                    if name.isdigit() and int(name) != spared and _program_and_directory(name) == ours:
                        os.kill(int(name), signal.SIGKILL)
            return True

        self._identity.holds(kill_all)  # in a container, root may not look at the processes of others

    # -- programs and their output

    def _spawn(self, command: list[str], stdin: int, output: int) -> subprocess.Popen[bytes]:
        """Run one of PostgreSQL's programs as its user, with nothing of the caller's environment that it would heed."""
        environment = {"LC_ALL": "C", "PATH": os.defpath}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        program = os.path.join(self._place.binaries, command[0])
        try:
            return subprocess.Popen(
                [program, *command[1:]],
                stdin=stdin,
                stdout=output,
                stderr=output,
                cwd="/",
                env=environment,
                **self._identity.popen_arguments,
            )
        except OSError as error:
            raise Refusal(f"{program} can't be run as {self._identity.name}: {error}") from error

    def _run(self, command: list[str], text: str = "") -> tuple[int, str]:
        """Run a program to its end: its exit status and what it wrote."""
        with open(self._place.temporary_file("output"), "w+b") as output:
            process = self._spawn(command, subprocess.PIPE, output.fileno())
            assert process.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(text.encode())
                self._parent.wait_for(lambda: process.poll() is not None, None)
            except BaseException:
                process.terminate()  # initdb then waits for its children, and removes what it has made
                try:
                    process.wait(HARD_END_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                raise
            return process.returncode, _read_from(output.fileno(), 0)

    def _explanation(self, output: str) -> str:
        if 'lock file "postmaster.pid" already exists' in output:
            return f"another server is already running in {self._place.data}"
        return f"PostgreSQL did not start in {self._place.data}"


def _program_and_directory(process: str) -> tuple[str, str]:
    return os.readlink(f"/proc/{process}/exe"), os.readlink(f"/proc/{process}/cwd")


def _free_port() -> int:
    """A free port below those that systems give to outgoing connections: they might take it during a restart."""
    while True:
        port = 10240 + int.from_bytes(os.urandom(2), "big") % (32768 - 10240)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("-c", setting)]


def _read_from(file: int, start: int) -> str:
    size = os.fstat(file).st_size
    start = max(start, size - 50_000)
    return os.pread(file, size - start, start).decode(errors="replace")


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-20:]) or "(nothing)"
