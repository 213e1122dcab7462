"""A wire proxy in this process's own tasks that counts round trips: how often the client waits for the server."""

from __future__ import annotations

import socket

from kit import Task, wait_until

from greenpg.hubs import hub


class RoundTripCounter:
    """`with RoundTripCounter(host, port) as counter:` listens on `counter.port`.

    A round trip is a burst of messages from the client followed by one from the server.
    """

    def __init__(self, host, port):
        self._target = (host, int(port))
        self._open = []

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port = self._listener.getsockname()[1]
        self._last_speaker = None
        self.count = 0
        self._acceptor = Task(self._accept)
        return self

    def __exit__(self, *exc_info):
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        wait_until(lambda: self._acceptor._done.wait(0))
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            for source, sink, speaker in ((client, server, "client"), (server, client, "server")):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                hub().spawn(self._pump, source, sink, speaker)

    def _pump(self, source, sink, speaker):
        try:
            while data := source.recv(65536):
                if speaker == "server" and self._last_speaker == "client":
                    self.count += 1
                self._last_speaker = speaker
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        source.close()

    def of(self, function):
        """How many round trips the call takes."""
        before = self.count
        function()
        return self.count - before
