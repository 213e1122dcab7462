"""`python -m tests.differential`: many programs, by hand."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first program; the others follow (default 1)")
    parser.add_argument("--count", type=int, default=10_000, help="how many programs (default 10000)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with an oracle of its own (default 2)")
    parser.add_argument("--hub", choices=("gevent", "eventlet", "threads"), default="gevent")
    parser.add_argument("--self", action="store_true", help="psycopg2 against psycopg2: is the test itself right?")
    parser.add_argument("--strict", action="store_true", help="with the differences that are known (allowances.py)")
    arguments = parser.parse_args()

    from greenpg.embedded import Server

    settings = {"max_connections": 100, "max_prepared_transactions": 50, "autovacuum": False}
    with Server(settings=settings) as server:
        workers = []
        share = -(-arguments.count // arguments.jobs)
        flags = [flag for flag in ("self", "strict") if getattr(arguments, flag)]
        for job in range(arguments.jobs):
            first = arguments.seed + job * share
            count = min(share, arguments.seed + arguments.count - first)
            command = [sys.executable, "-m", "differential.worker", arguments.hub, server.dsn, f"j{job}", str(first)]
            environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
            workers.append(subprocess.Popen([*command, str(count), *flags], env=environment))
        return max(worker.wait() for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
