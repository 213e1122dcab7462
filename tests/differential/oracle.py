"""The process with plain, blocking psycopg2: `python -m differential.oracle FD DSN`. Runs what comes by the socket."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

from .session import Session, Side


class Oracle:
    """The process, seen from the one with greenpg. `ask()` and `answer()` suspend, whatever the hub."""

    def __init__(self, dsn):
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._file = ours.makefile("rb")
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "differential.oracle", str(theirs.fileno()), dsn],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()

    def ask(self, programs):
        self._socket.sendall(pickle.dumps(programs))

    def answer(self):
        """What the programs asked for showed: a list of what `Session.run` returns."""
        return pickle.load(self._file)

    def close(self):
        self._file.close()
        self._socket.close()
        self._process.wait()


def main():
    with socket.socket(fileno=int(sys.argv[1])) as asked, asked.makefile("rb") as file:
        asked.setblocking(True)  # a hub has made it otherwise
        session = Session(sys.argv[2], Side())
        while True:
            try:
                programs = pickle.load(file)
            except EOFError:
                break
            asked.sendall(pickle.dumps([session.run(program) for program in programs]))
        session.close()


if __name__ == "__main__":
    main()
