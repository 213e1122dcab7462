"""Fulfils the parent's requests, and ends the server when the parent quits or is gone."""

from __future__ import annotations

import os
import signal
import traceback
from typing import Any

from .cluster import Cluster
from .identity import Identity
from .parent import Interrupted, Parent, Refusal
from .place import Place


class Supervisor:
    """Each method without underscore is a request; what it returns is the reply."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._place = Place()
        self._cluster: Cluster | None = None

    def prepare(
        self, wheel: str, temp_directories: list[str], directory: str | None, password: str | None
    ) -> dict[str, Any]:
        identity = Identity(directory)
        self._place.prepare(identity, wheel, temp_directories, directory)
        self._cluster = Cluster(self._parent, identity, self._place)
        self._cluster.prepare(password)
        place = self._place
        return {"data": place.data, "sockets": place.sockets, "log": place.log, "temporary": place.temporary}

    def start(self, settings: list[str], port: int | None, timeout: float) -> dict[str, Any]:
        pid, chosen_port = self._prepared().start(settings, port, timeout)
        return {"pid": pid, "port": chosen_port}

    def stop(self, signal_number: int, timeout: float) -> dict[str, Any]:
        self._prepared().stop(signal_number, timeout)
        return {}

    def crash(self) -> dict[str, Any]:
        self._prepared().end_hard()
        return {}

    def _prepared(self) -> Cluster:
        assert self._cluster is not None, "the first request must be `prepare`"
        return self._cluster

    def _reap(self) -> None:
        if self._cluster is not None:
            self._cluster.is_running()

    def _serve(self) -> None:
        for request in self._parent.requests(self._reap):
            reply: dict[str, Any]
            try:
                reply = {"result": getattr(self, request["request"])(**request["arguments"])}
            except Interrupted:
                continue
            except Refusal as refusal:
                reply = {"error": str(refusal), "log": refusal.log}
            except OSError as error:
                reply = {"error": str(error), "log": ""}
            except Exception:
                reply = {"error": f"the supervisor failed:\n{traceback.format_exc()}", "log": ""}
            self._parent.reply(request["number"], **reply)

    def _finish(self) -> None:
        try:
            if self._cluster is not None:
                self._cluster.end_at_once()
        finally:
            self._place.delete_temporary()


def main(parent_pid: int) -> None:
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2:
            try:
                os.close(descriptor)  # inherited: it may be a port or a pipe whose other end waits for the close
            except OSError:
                pass  # the one by which /dev/fd was listed
    os.umask(0o022)
    os.chdir("/")
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, lambda *_: None)  # ends with its parent, not before
    supervisor = Supervisor(Parent(parent_pid))
    try:
        supervisor._serve()
    finally:
        supervisor._finish()
