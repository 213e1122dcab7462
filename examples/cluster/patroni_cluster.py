"""A Patroni cluster on this machine, thrown away at the end: etcd, and PostgreSQL with Patroni for each of its nodes.

    python examples/cluster/patroni_cluster.py        # says where it is, and runs until Ctrl-C

    with PatroniCluster(nodes=3) as cluster:
        pool = greenpg.ConnectionPool(f"{cluster.dsn} target_session_attrs=read-write")
        cluster.kill(cluster.leader())

Whoever talks to a node from outside (clients, replicas, other Patronis), or from there to etcd, does so through a
haproxy of its own: the network cable, which can be pulled out. All listen on 127.0.0.1, and end with this process.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import installing
from configuration import SCOPE, for_haproxy, for_patroni
from keeper import family, tell


class Node:
    """A server of the cluster: what runs there, and where."""

    def __init__(self, name: str, directory: Path, ports: list[int]) -> None:
        self.name = name
        self.directory = directory
        #: Where PostgreSQL and Patroni's REST interface really listen, and where its cable leads them and etcd.
        self.postgres, self.rest, self.port, self.rest_port, self.etcd_port = ports
        self.patroni = self.haproxy = 0
        #: What was done to it: "killed", "frozen", "cut off".
        self.fault: str | None = None

    def processes(self) -> list[int]:
        """Patroni's and PostgreSQL's."""
        return family(*filter(self._is_here, [self.patroni, self.postmaster()]))

    def server_processes(self) -> list[int]:
        """PostgreSQL's."""
        return family(*filter(self._is_here, [self.postmaster()]))

    def postmaster(self) -> int:
        """The process id of its PostgreSQL, 0 if there was none yet; it may have ended."""
        try:
            return int((self.directory / "data" / "postmaster.pid").read_text().split("\n")[0])
        except (OSError, ValueError):
            return 0

    def _is_here(self, pid: int) -> bool:
        """Not somebody else who has got the number since."""
        try:
            return pid > 0 and os.fsencode(self.directory) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def dsn(self, **more: object) -> str:
        """Straight to its PostgreSQL, not by the cable."""
        words = {"host": "127.0.0.1", "port": self.postgres, "user": "postgres", "dbname": "postgres", **more}
        return " ".join(f"{name}={word}" for name, word in words.items())

    def __repr__(self) -> str:
        return f"<Node {self.name}: {self.fault or 'running'}>"


class PatroniCluster:
    """`with PatroniCluster() as cluster:` its nodes are up, one of them as the primary. `start()` takes 10 to 30 s."""

    def __init__(self, nodes: int = 3, *, ttl: int = 20, loop_wait: int = 2, retry_timeout: int = 5) -> None:
        self._count = nodes
        self._timing = {"ttl": ttl, "loop_wait": loop_wait, "retry_timeout": retry_timeout}
        self._keeper: subprocess.Popen[bytes] | None = None
        self.nodes: list[Node] = []

    # -- life

    def start(self, progress: Callable[[str], object] = lambda text: None) -> None:
        """Raises installing.Missing for what isn't installed, RuntimeError with the logs' ends if it doesn't start."""
        if missing := installing.what_is_missing():
            raise installing.Missing(missing)
        self.directory = Path(tempfile.mkdtemp(prefix="greenpg-cluster-"))
        self.directory.chmod(0o755)
        self._keeper = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("keeper.py"), str(os.getpid()), self.directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._start(progress)
        except BaseException:
            self.close()
            raise

    def _start(self, progress: Callable[[str], object]) -> None:
        self._binaries = installing.usable_postgresql(self.directory)
        self._patroni = installing.usable_patroni(self.directory)
        progress("etcd")
        self._start_etcd()
        ports = free_ports(5 * self._count)  # all at once, so that none is given twice
        names = [f"pg{number}" for number in range(1, self._count + 1)]
        self.nodes = [Node(name, self._folder(name), ports[5 * i : 5 * i + 5]) for i, name in enumerate(names)]
        for node in self.nodes:
            path = node.directory / "haproxy.cfg"
            path.write_text(for_haproxy(node, self.etcd_port))
            node.haproxy = self._spawn(node.directory, installing.program("haproxy"), "-db", "-f", path)
        for node in self.nodes:  # one after the other, so that pg1 is the primary
            progress(node.name)
            self._start_patroni(node)
            self.wait_for(lambda node=node: self.members().get(node.name, {}).get("state") == "running", 90, node)
        progress("synchronous replication")
        self.wait_for(self.is_whole, 60)

    def close(self) -> None:
        """End all its processes, and delete its files."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin and keeper.stdout
            keeper.stdin.close()
            keeper.wait(30)
            keeper.stdout.close()

    def __enter__(self) -> PatroniCluster:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- what there is

    @property
    def dsn(self) -> str:
        """With all nodes, by their cables."""
        ports = ",".join(str(node.port) for node in self.nodes)
        return f"host={','.join(['127.0.0.1'] * len(self.nodes))} port={ports} user=postgres dbname=postgres"

    def leader(self) -> Node | None:
        """The node that has been elected, as etcd knows; None while there is none."""
        name = ask_etcd(self.etcd_port, "leader").get("leader")
        return next((node for node in self.nodes if node.name == name), None)

    def synchronous(self) -> str | None:
        """The name of the node whose confirmation each COMMIT waits for."""
        return json.loads(ask_etcd(self.etcd_port, "sync").get("sync") or "{}").get("sync_standby")

    def members(self) -> dict[str, dict[str, Any]]:
        """What Patroni says of each node that it knows: "role", "state", "replication_state", "timeline" ..."""
        known = ask_etcd(self.etcd_port, "members/")
        return {name.removeprefix("members/"): json.loads(text) for name, text in known.items()}

    def is_whole(self) -> bool:
        """Whether there is a primary, and all others follow it, one of them synchronously."""
        leader = self.leader()
        if leader is None or (self._count > 1 and self.synchronous() is None):
            return False
        members = self.members()
        return len(members) == self._count and all(
            (member["state"], member["role"]) == ("running", "primary")
            if name == leader.name
            else member.get("replication_state") == "streaming"
            for name, member in members.items()
        )

    def wait_for(self, is_so: Callable[[], object], seconds: float, node: Node | None = None) -> None:
        """Raises RuntimeError if it isn't so after that time."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {seconds:g} s:\n{self.logs(node)}")
            time.sleep(0.1)

    def logs(self, node: Node | None = None, length: int = 2000) -> str:
        """The ends of the logs."""
        folders = [node.directory] if node else [self.directory / "etcd", *(node.directory for node in self.nodes)]
        return "\n".join(f"-- {folder.name}\n{(folder / 'log').read_text()[-length:]}" for folder in folders)

    # -- what can be done to a node

    def kill(self, node: Node) -> None:
        """SIGKILL for all of its processes: as if its host had lost power."""
        node.fault = "killed"
        tell(signal.SIGKILL, *node.processes())

    def crash(self, node: Node) -> None:
        """SIGKILL for its PostgreSQL alone: Patroni is there, and sees it."""
        tell(signal.SIGKILL, *node.server_processes())

    def freeze(self, node: Node) -> None:
        """SIGSTOP for all of its processes: they keep their connections, and answer nothing."""
        node.fault = "frozen"
        for _ in range(2):  # what the others were about to start
            tell(signal.SIGSTOP, *node.processes())

    def cut(self, node: Node) -> None:
        """Pull its network cable: nothing comes or goes, and nobody is told."""
        node.fault = "cut off"
        tell(signal.SIGSTOP, node.haproxy)

    def bring_back(self, node: Node) -> None:
        """Whatever was done to it: it goes on, or starts anew, and follows the primary, if another one is that now."""
        fault, node.fault = node.fault, None
        if fault == "killed":
            self._start_patroni(node)
        else:
            tell(signal.SIGCONT, node.haproxy, *node.processes())

    def switch_over(self) -> None:
        """Ask Patroni for another primary; returns when it has done so. Raises RuntimeError with its reason."""
        leader = self.leader()
        if leader is None:
            raise RuntimeError("there is no primary now")
        request = urllib.request.Request(
            f"http://127.0.0.1:{leader.rest}/switchover",
            json.dumps({"leader": leader.name, "candidate": self.synchronous()}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None
        except OSError as error:
            raise RuntimeError(f"Patroni doesn't answer: {error}") from None

    # -- the programs

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir(mode=0o755)
        (folder / "log").touch()
        if identity := installing.user():
            os.chown(folder, *identity)
        return folder

    def _spawn(self, folder: Path, *argv: object, **environment: str) -> int:
        keeper = self._keeper
        assert keeper is not None and keeper.stdin and keeper.stdout
        environment |= {"HOME": str(folder), "PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        request = {
            "argv": [str(word) for word in argv],
            "log": str(folder / "log"),
            "user": installing.user(),
            "environment": environment,
        }
        keeper.stdin.write(json.dumps(request).encode() + b"\n")
        keeper.stdin.flush()
        reply = json.loads(keeper.stdout.readline())
        if "error" in reply:
            raise RuntimeError(f"{argv[0]} doesn't start: {reply['error']}")
        return int(reply["pid"])

    def _start_etcd(self) -> None:
        folder = self._folder("etcd")
        client, peer = free_ports(2)
        options = {
            "name": "etcd",
            "data-dir": folder / "data",
            "listen-client-urls": f"http://127.0.0.1:{client}",
            "advertise-client-urls": f"http://127.0.0.1:{client}",
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-cluster": f"etcd=http://127.0.0.1:{peer}",
            "heartbeat-interval": 250,
            "election-timeout": 2500,
        }
        self._spawn(folder, installing.program("etcd"), *(f"--{name}={value}" for name, value in options.items()))
        self.etcd_port = client
        self.wait_for(self._etcd_answers, 30)

    def _etcd_answers(self) -> bool:
        with contextlib.suppress(OSError):
            ask_etcd(self.etcd_port, "")
            return True
        return False

    def _start_patroni(self, node: Node) -> None:
        path = node.directory / "patroni.yml"
        path.write_text(for_patroni(node, self._timing, self._binaries))
        command = [installing.interpreter(), "-m", "patroni", path]
        node.patroni = self._spawn(node.directory, *command, PYTHONPATH=str(self._patroni), PYTHONUNBUFFERED="1")


def ask_etcd(port: int, what: str) -> dict[str, str]:
    """The keys that begin so, below the cluster's own, with their values."""
    first = f"/service/{SCOPE}/{what}".encode()
    interval = {"key": first, "range_end": first[:-1] + bytes([first[-1] + 1])}
    question = json.dumps({name: base64.b64encode(value).decode() for name, value in interval.items()}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v3/kv/range", question, timeout=5) as answer:
        found = json.load(answer).get("kvs", [])
    decoded = [[base64.b64decode(pair.get(part, "")).decode() for part in ("key", "value")] for pair in found]
    return {key.removeprefix(f"/service/{SCOPE}/"): value for key, value in decoded}


def free_ports(count: int) -> list[int]:
    """Of 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        installing.install()
        with PatroniCluster() as cluster:
            print(f"{cluster.dsn}\nlogs in {cluster.directory}\nCtrl-C ends it.", flush=True)
            signal.pause()
    except installing.Missing as missing:
        sys.exit(str(missing))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
