"""Load for a web server: `wrk` where it is installed, else a loop of our own. Each connection asks again as soon as it
has its answer.
"""

from __future__ import annotations

import json
import re
import selectors
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

WRK = shutil.which("wrk")
LONGEST_SILENCE = 10.0
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class LoadFailed(Exception):
    """The server gave wrong answers, or none."""


@dataclass
class Client:
    socket: socket.socket
    asked_at: float = 0.0
    received: bytes = b""


@dataclass
class Load:
    """`count` answers within `seconds`."""

    count: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: dict[str, int] = field(default_factory=dict)


def load(host: str, port: int, path: str, connections: int, seconds: float) -> Load:
    """By a loop in this process, which must not be the server's."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    latencies: list[float] = []
    clients = [Client(socket.create_connection((host, port), LONGEST_SILENCE)) for _ in range(connections)]
    clock = time.perf_counter
    try:
        with selectors.DefaultSelector() as selector:
            for client in clients:
                client.socket.setblocking(False)
                selector.register(client.socket, selectors.EVENT_READ, client)
            start = now = clock()
            for client in clients:
                client.asked_at = clock()
                client.socket.send(request)
            while now < start + seconds:
                ready = selector.select(LONGEST_SILENCE)
                if not ready:
                    raise LoadFailed(f"{path}: no answer for {LONGEST_SILENCE:g} s")
                for key, _ in ready:
                    client = key.data
                    now = clock()
                    if _is_answered(client, path):
                        latencies.append(now - client.asked_at)
                        client.asked_at = now
                        client.socket.send(request)
    finally:
        for client in clients:
            client.socket.close()
    latencies.sort()
    count = len(latencies)
    p50, p99, longest = (latencies[index] * 1e3 for index in (count // 2, count * 99 // 100, -1))
    return Load(count, now - start, p50, p99, longest)


def _is_answered(client: Client, path: str) -> bool:
    data = client.socket.recv(1 << 18)
    if not data:
        raise LoadFailed(f"{path}: the server closed a connection")
    client.received += data
    head, end, body = client.received.partition(b"\r\n\r\n")
    if not end:
        return False
    length = CONTENT_LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise LoadFailed(f"{path}: {client.received[:200].decode(errors='replace')}")
    if len(body) < int(length[1]):
        return False
    client.received = b""
    return True


def load_by_wrk(host: str, port: int, path: str, connections: int, seconds: int) -> Load:
    command = [WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", Path(__file__).with_name("web_wrk.lua")]
    done = subprocess.run(
        [*command, f"http://{host}:{port}{path}"],
        capture_output=True,
        text=True,
        timeout=seconds + LONGEST_SILENCE,
        check=True,
    )
    found = Load(**json.loads(done.stdout.splitlines()[-1]))
    if any(found.errors.values()):
        raise LoadFailed(f"{path}: wrk counted errors: {found.errors}")
    return found
