"""A TCP proxy for faults: it stalls, delays, cuts and resets what runs through it. It runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = r"""
import socket, struct, sys, time, threading

target = (sys.argv[1], int(sys.argv[2]))
delay = float(sys.argv[3])
listener = socket.create_server(("127.0.0.1", 0), backlog=200)
print(listener.getsockname()[1], flush=True)
state = {"stalled": False, "refuse": False}
pairs = []

def pump(source, sink):
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            while state["stalled"]:
                time.sleep(0.005)
            if delay:
                time.sleep(delay)
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

def connect(client):
    while state["stalled"]:
        time.sleep(0.005)
    try:
        server = socket.create_connection(target)
    except OSError:
        client.close()
        return
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pairs.append((client, server))
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)

def serve():
    while True:
        client, _ = listener.accept()
        if state["refuse"]:
            client.close()
        else:
            threading.Thread(target=connect, args=(client,), daemon=True).start()

threading.Thread(target=serve, daemon=True).start()
for line in sys.stdin:
    command = line.strip()
    if command == "stall":
        state["stalled"] = True
    elif command == "resume":
        state["stalled"] = False
    elif command == "refuse":
        state["refuse"] = True
    elif command == "accept":
        state["refuse"] = False
    elif command in ("cut", "reset"):
        for pair in pairs:
            for end in pair:
                try:
                    if command == "reset":
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        end.shutdown(socket.SHUT_RD)  # wakes the thread that would keep the socket open
                        end.close()
                    else:
                        end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        pairs.clear()
    print("ok", flush=True)
"""


class Proxy:
    """`with Proxy(host, port) as proxy:` listens on `proxy.port`. Ends with the block, or with this process."""

    def __init__(self, host, port, delay=0.0):
        self._arguments = [host, str(port), str(delay)]

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *exc_info):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def _command(self, command):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ok\n"

    def stall(self):
        """Nothing gets through any more, in either direction; new connections wait for `resume()`, too."""
        self._command("stall")

    def resume(self):
        self._command("resume")

    def refuse(self):
        """New connections are closed at once."""
        self._command("refuse")

    def accept(self):
        self._command("accept")

    def cut(self):
        """End all connections as a closing server would."""
        self._command("cut")

    def reset(self):
        """End all connections with RST."""
        self._command("reset")
