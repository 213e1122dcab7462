"""A page that shows what a program with `greenpg.Cluster` sees while the primary of a Patroni cluster is killed.

    make demo-cluster                          # or: python examples/cluster/demo.py --port 8000

It sets the cluster up on this machine (patroni_cluster.py), writes and reads all the time (load.py), and serves the
page at http://127.0.0.1:8000. Ctrl-C ends all of it and leaves nothing behind, as does the end of its parent.
"""

# ruff: noqa: E402 - first of all, the patches
from gevent import monkey

monkey.patch_all()
import greenpg

greenpg.patch()

import argparse
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gevent
import installing
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from load import Load
from patroni_cluster import Node, PatroniCluster

PAGE = Path(__file__).with_name("page.html").read_bytes()


class Demo:
    """The page, its state, and what its buttons do."""

    def __init__(self, patroni: PatroniCluster, load: Load) -> None:
        self._patroni = patroni
        self._load = load
        #: Those of the page's buttons that do something to a node.
        self._actions: dict[str, tuple[Callable[[Node], object], str]] = {
            "kill": (patroni.kill, "all processes of {} were killed"),
            "crash": (patroni.crash, "PostgreSQL on {} was killed"),
            "freeze": (patroni.freeze, "{} was frozen"),
            "cut": (patroni.cut, "the network cable of {} was pulled out"),
            "bring_back": (patroni.bring_back, "{} was brought back"),
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/" and method == "GET":
            return answer(start_response, "200 OK", "text/html; charset=utf-8", PAGE)
        if path == "/state" and method == "GET":
            return answer(start_response, "200 OK", "application/json", json.dumps(self._load.state()).encode())
        if path.startswith("/do/") and method == "POST":
            if environ.get("HTTP_X_DEMO") != "1":  # which a page from elsewhere can't send
                return answer(start_response, "403 Forbidden", "text/plain", b"this isn't the demo's own page\n")
            try:
                self._do(*path.removeprefix("/do/").split("/"))
            except (LookupError, TypeError, RuntimeError) as error:
                self._load.note(f"refused: {error}")
                return answer(start_response, "409 Conflict", "text/plain", f"{error}\n".encode())
            return answer(start_response, "200 OK", "text/plain", b"done\n")
        return answer(start_response, "404 Not Found", "text/plain", b"There is nothing here. There is: /\n")

    def _do(self, action: str, name: str = "primary") -> None:
        if action == "switch_over":
            self._load.note("another primary was asked for")
            self._patroni.switch_over()
            return
        if name == "primary":
            node = self._patroni.leader()
            if node is None or node.fault:
                raise RuntimeError("there is no primary now")
        else:
            node = {node.name: node for node in self._patroni.nodes}[name]
        do, text = self._actions[action]
        if (action == "bring_back") != bool(node.fault):
            raise RuntimeError(f"{node.name} is {node.fault or 'running'}")
        self._load.note(text.format(node.name), is_fault=action != "bring_back")
        do(node)


def answer(start_response: Callable[..., object], status: str, content_type: str, body: bytes) -> list[bytes]:
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="of the page (default: %(default)s; 0: any free one)")
    parser.add_argument("--nodes", type=int, choices=(2, 3), default=3, help="of the cluster (default: %(default)s)")
    options = parser.parse_args()
    logging.getLogger("greenpg").setLevel(logging.CRITICAL)  # the page tells what happens
    parent, main_greenlet = os.getppid(), gevent.getcurrent()
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        gevent.signal_handler(number, gevent.kill, main_greenlet, KeyboardInterrupt)
    gevent.spawn(end_with, parent, main_greenlet)
    try:
        listener = socket.create_server(("127.0.0.1", options.port), backlog=100)
    except OSError as error:
        sys.exit(
            f"can't listen on port {options.port}: {os.strerror(error.errno or 0)}. Choose another one with --port"
        )
    try:
        with listener:
            serve(listener, options.nodes)
    except installing.Missing as missing:
        sys.exit(str(missing))
    except KeyboardInterrupt:
        pass


def end_with(parent: int, task: gevent.Greenlet) -> None:
    while os.getppid() == parent:
        gevent.sleep(0.5)
    gevent.kill(task, KeyboardInterrupt)


def serve(listener: socket.socket, nodes: int) -> None:
    installing.install()
    patroni = PatroniCluster(nodes)
    try:
        patroni.start(lambda what: print(f"Starting {what} ...", flush=True))
        # While there is no primary, who writes waits for one, up to 60 s.
        options = {"max_size": 8, "statement_deadline": 2.0, "timeout": 60, "refused_after": 60}
        with greenpg.Cluster(patroni.dsn, interval=0.5, **options) as cluster:
            load = Load(patroni, cluster)
            load.start()
            server = WSGIServer(listener, Demo(patroni, load), log=None)
            server.start()
            print(f"The demo listens on http://127.0.0.1:{listener.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
            try:
                Event().wait()  # until a signal comes
            finally:
                server.stop(timeout=0)
                load.stop()
                patroni.close()  # first, so that nothing waits for servers that are frozen
    finally:
        patroni.close()


if __name__ == "__main__":
    main()
