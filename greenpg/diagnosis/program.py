"""`greenpg doctor`: examine a program in a process of its own, brought up as its server would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from .findings import ERROR, Finding, Report

_LONGEST = 60.0


def examine_program(
    *,
    dsn: str | None = None,
    app: str | None = None,
    config: str | None = None,
    worker_class: str | None = None,
    workers: int | None = None,
    seconds: float = 0.5,
) -> Report:
    """What `doctor()` says in a new process that has imported `app` ("module:name") under a gunicorn worker of that
    class, with gunicorn's configuration file `config`. Takes a minute at most."""
    reading, writing = os.pipe()
    probe = Path(__file__).with_name("probe.py")
    given = [app, config, worker_class, workers, seconds]
    arguments = ["" if value is None else str(value) for value in given]
    process = subprocess.Popen(
        [sys.executable, str(probe), str(writing), *arguments],
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env=os.environ | {"GREENPG_DOCTOR_DSN": dsn or ""},
    )
    os.close(writing)
    alarm = threading.Timer(_LONGEST, process.kill)
    alarm.start()
    try:
        with os.fdopen(reading, "rb") as file:
            data = file.read()
        status = process.wait()
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
    if not data:
        return Report([_no_report(status)])
    return Report.from_dict(json.loads(data))


def _no_report(status: int) -> Finding:
    ended = f"was ended after {_LONGEST:g} s" if status == -9 else f"has ended with status {status}"
    return Finding(
        "app_hangs" if status == -9 else "app_ends",
        ERROR,
        f"the program {ended}, before it could be looked at",
        "It seems to serve, or to end, when it is imported.",
        'Put what it runs under `if __name__ == "__main__":`, and name the module with the app: --app module:app.',
    )
