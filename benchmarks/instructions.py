"""What an operation costs the client, in instructions: they don't depend on what else the machine does.

    python benchmarks/instructions.py [DSN] [--rounds 1] [--peers greenpg,psycogreen] [--quick]

Needs valgrind (apt-get install valgrind). Each number is the difference of two runs of a program of its own, one of
which does the operation more often, so that the start of the program isn't in it. The kernel's part is not counted.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import partial

from harness import Bars, Benchmark
from harness.benchmark import CantRun
from peers import open_pool

CONNECTIONS = 10
SECONDS = 300
#: Of valgrind.
SLOWNESS = 50
SCENARIOS = {
    "acquire and release, no statement": ("acquire_release", 1),
    "one statement, autocommit, 10 tasks: nobody waits": ("one_statement", CONNECTIONS),
    "one statement, autocommit, 100 tasks in line": ("one_statement", 10 * CONNECTIONS),
    "one statement in a transaction, 100 tasks in line": ("one_transaction", 10 * CONNECTIONS),
}
PEERS = ["greenpg", "psycogreen", "psycopg_pool"]
FLAG = "--work"


def work(name, dsn, operation, tasks, loops):
    """The program that is counted. What greenpg does after some time is as rare as at the machine's own speed: else
    each wait would last for so long under valgrind that a deadlock is looked for, and its connection is tested."""
    if name == "greenpg":
        from greenpg.hubs import gevent
        from greenpg.pool import options

        gevent._Alarms.TICK *= SLOWNESS
        options._UNCHECKED *= SLOWNESS
    with open_pool(name, dsn, CONNECTIONS) as pool:
        pool.measure(operation, tasks, loops)


def count(*arguments):
    """The instructions of one run of it."""
    program = [sys.executable, __file__, FLAG, *map(str, arguments)]
    options = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # else dicts differ from run to run
    done = subprocess.run(
        ["valgrind", *options, *program],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
        check=False,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"the counted program has failed: {done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def measure(name, dsn, sizes):
    if shutil.which("valgrind") is None:
        raise CantRun("this needs valgrind: apt-get install valgrind")
    found = {}
    for scenario, (operation, tasks) in SCENARIOS.items():
        operations = sizes["operations"] * (10 if tasks == 1 else 1)
        few, many = operations // tasks, 3 * operations // tasks
        difference = count(name, dsn, operation, tasks, many) - count(name, dsn, operation, tasks, few)
        found[scenario] = {"instructions": difference / ((many - few) * tasks)}
    return found


BENCHMARK = Benchmark(
    __file__,
    title="Instructions",
    description=(
        f"User instructions for an operation on {CONNECTIONS} connections, counted by valgrind: those of Python, the "
        "driver, libpq, gevent and the pool. Where tasks wait in line, switching between them is a part."
    ),
    peers={name: partial(measure, name) for name in PEERS},
    sizes={"operations": 5000},
    quick_sizes={"operations": 500},
    pictures=[Bars("instructions", "instructions", list(SCENARIOS), "User instructions for an operation")],
    aims=[],
    timeout=SECONDS * 2 * len(SCENARIOS),
)

if __name__ == "__main__":
    if sys.argv[1:2] == [FLAG]:
        peer, dsn, operation, *numbers = sys.argv[2:]
        work(peer, dsn, operation, *map(int, numbers))
    else:
        sys.exit(BENCHMARK.main())
