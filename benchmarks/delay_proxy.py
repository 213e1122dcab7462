"""A TCP proxy that holds back whatever goes through it by the same time, in each direction, as a long line does.

    with DelayProxy("127.0.0.1", 5432, delay_ms=1) as proxy:
        ...  # proxy.port: a round trip takes 2 ms more

What arrives is noted with the time at which it is due, so one piece's delay doesn't add to the next one's, and the
bandwidth stays what it was. `connect_delay_ms` holds back what comes first through a new connection, as a server does
that is slow to start a session. It runs in a process of its own, which ends with the block, or with this process.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections import deque


class DelayProxy:
    def __init__(self, host: str, port: int | str, delay_ms: float, connect_delay_ms: float = 0) -> None:
        self._arguments = [host, str(port), str(delay_ms), str(connect_delay_ms)]

    def __enter__(self) -> DelayProxy:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *self._arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            line = self._process.stdout.readline()
            if not line:
                raise OSError(f"the delay proxy to {self._arguments[0]} did not start")
        except BaseException:
            self.__exit__()
            raise
        self.port = int(line)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Direction:
    """What came in at one socket and is to go out at the other."""

    def __init__(self, source: socket.socket, sink: socket.socket, opens_at: float) -> None:
        self.source, self.sink, self.opens_at = source, sink, opens_at
        self.late: deque[tuple[float, bytes]] = deque()
        """What is under way, with the time at which it is due; b"" is the end."""
        self.unsent = b""
        self.has_ended = False

    def receive(self, due: float) -> None:
        try:
            data = self.source.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.late.append((max(due, self.opens_at), data))
        self.has_ended = not data

    def send(self, now: float) -> bool:
        """Send what is due. False: that was the end."""
        while self.unsent or (self.late and self.late[0][0] <= now):
            if not self.unsent:
                self.unsent = self.late.popleft()[1]
            if not self.unsent:
                return False
            try:
                self.unsent = self.unsent[self.sink.send(self.unsent) :]
            except BlockingIOError:
                return True
            except OSError:
                return False
        return True


def serve(host: str, port: int, delay: float, connect_delay: float) -> None:
    """Until stdin ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=500)
    print(listener.getsockname()[1], flush=True)
    directions: dict[socket.socket, Direction] = {}  # by source
    while True:
        # select(), since its timeout is exact to the microsecond, where poll() and epoll count milliseconds.
        readers = [direction.source for direction in directions.values() if not direction.has_ended]
        writers = [direction.sink for direction in directions.values() if direction.unsent]
        dues = [direction.late[0][0] for direction in directions.values() if direction.late and not direction.unsent]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable, _, _ = select.select([sys.stdin, listener, *readers], writers, [], timeout)
        now = time.monotonic()
        for source in readable:
            if source is sys.stdin:
                return
            if source is listener:
                client, server = listener.accept()[0], socket.create_connection((host, port))
                for one, other in ((client, server), (server, client)):
                    one.setblocking(False)
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    directions[one] = Direction(one, other, now + connect_delay)
            else:
                directions[source].receive(now + delay)
        for direction in list(directions.values()):
            if direction.source in directions and not direction.send(time.monotonic()):
                for end in (direction.source, direction.sink):
                    directions.pop(end, None)
                    end.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), *(float(ms) / 1000 for ms in sys.argv[3:]))
