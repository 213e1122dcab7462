"""Starts the cluster's programs, and ends all of them when its parent wants it, or is gone: nothing outlives it.

One JSON object a line on stdin: `{"argv": [...], "log": path, "user": [uid, gid] or null, "environment": {...}}`. One
on stdout: `{"pid": 1}` or `{"error": "..."}`. The end of stdin, or of the parent, is the end of everything.

    python keeper.py PARENT_PID DIRECTORY     # the directory is deleted at the end
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 5.0  # seconds for a PostgreSQL to end at once


def family(*ancestors: int) -> list[int]:
    """Those processes, and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            status = Path("/proc", str(int(entry)), "stat").read_text().rpartition(")")[2].split()
            if status[0] != "Z":
                children.setdefault(int(status[1]), []).append(int(entry))
    found = list(ancestors)
    for pid in found:
        found += [child for child in children.get(pid, []) if child not in found]
    return found


def tell(number: signal.Signals, *pids: int) -> None:
    """Send them all a signal; some may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def start(request: dict[str, object]) -> dict[str, object]:
    user = request["user"]
    identity = {"user": user[0], "group": user[1], "extra_groups": []} if isinstance(user, list) else {}
    try:
        with open(str(request["log"]), "ab") as log:
            process = subprocess.Popen(
                request["argv"],  # type: ignore[call-overload]
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=request["environment"],
                cwd="/",
                start_new_session=True,
                **identity,
            )
    except OSError as error:
        return {"error": str(error)}
    process.returncode = 0  # reaped below, with what it leaves behind
    return {"pid": process.pid}


def end_all(directory: Path) -> None:
    """First what would start something anew; then PostgreSQL, which cleans up its shared memory; then what is left."""
    locks = {path: path.read_text().split("\n") for path in directory.glob("*/data/postmaster.pid")}
    servers = {int(lock[0]) for lock in locks.values()}
    descendants = family(os.getpid())[1:]
    of_servers = set(family(*servers))
    tell(signal.SIGKILL, *(pid for pid in descendants if pid not in of_servers))
    tell(signal.SIGCONT, *(pid for pid in descendants if pid in of_servers))
    tell(signal.SIGQUIT, *(pid for pid in descendants if pid in servers))
    deadline = time.monotonic() + _PATIENCE
    while left := family(os.getpid())[1:]:
        if time.monotonic() > deadline:
            tell(signal.SIGKILL, *left)
        reap()
        time.sleep(0.02)
    for lock in locks.values():  # a server that was killed has left this, and only the next one would remove it
        segment = lock[6].split()[1:] if len(lock) > 6 else []
        subprocess.run(["ipcrm", "-m", *segment], stderr=subprocess.DEVNULL, check=False) if segment else None
    shutil.rmtree(directory, ignore_errors=True)


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    parent, directory = int(sys.argv[1]), Path(sys.argv[2])
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, lambda *_: None)  # it ends with its parent, not before
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to this process, not to init
    received = b""
    try:
        while os.getppid() == parent:
            reap()
            if not select.select([0], [], [], 0.2)[0]:
                continue
            more = os.read(0, 65536)
            if not more:
                break
            *lines, received = (received + more).split(b"\n")
            for line in lines:
                os.write(1, json.dumps(start(json.loads(line))).encode() + b"\n")
    finally:
        end_all(directory)


if __name__ == "__main__":
    main()
