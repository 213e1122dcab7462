"""All benchmarks, one after the other; what `make bench` runs.

    python benchmarks/run.py [NAME ...] [--rounds 5] [--quick] [--output-dir benchmarks/results]

The results of one that fails are missing from the page that sums up, and the exit status is 1.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.machine import as_text
from harness.report import aims_table, left_out, pictures

BENCHMARKS = [
    "throughput",
    "delay",
    "sqlalchemy_session",
    "web",
    "django_web",
    "spike",
    "recovery",
    "listen",
    "memory",
    "executemany",
    "pipeline",
    "prepared",
    "multiplex",
    "fetchall",
    "bulk_copy",
    "observing",
]
LONGEST_SECONDS = 600
HERE = Path(__file__).parent


def run(name, options):
    """None, or why it failed."""
    for old in [*options.output_dir.glob(f"{name}-*.svg"), *options.output_dir.glob(f"{name}.*")]:
        old.unlink()
    command = [sys.executable, HERE / f"{name}.py", "--output-dir", options.output_dir, "--rounds", str(options.rounds)]
    process = subprocess.Popen([*command, *(["--quick"] if options.quick else [])], stdout=subprocess.DEVNULL)
    try:
        status = process.wait(LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done after {LONGEST_SECONDS} s"
    finally:
        process.terminate()  # it ends its servers and peers
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
    return f"exit status {status}" if status else None


def summing_up(directory, failed):
    """The page that leads to the others."""
    documents = [json.loads(path.read_text()) for name in BENCHMARKS if (path := directory / f"{name}.json").exists()]
    parts = ["# Results", "Made by `make bench`. Each benchmark has a page with all its numbers."]
    parts += [f"**{name} failed: {reason}**" for name, reason in failed.items()]
    parts.append(aims_table([aim for document in documents for aim in document["aims"]]))
    for document in documents:
        parts += [
            f"## [{document['title']}]({document['benchmark']}.md)",
            document["description"],
            pictures(document),
            left_out(document),
            as_text(document["environment"]),
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def main():
    parser = argparse.ArgumentParser(description="all benchmarks, one after the other")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="with smaller sizes")
    parser.add_argument("--output-dir", type=Path, default=HERE / "results", metavar="DIR")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = {}
    names = options.names or BENCHMARKS
    for number, name in enumerate(names, 1):
        print(f"== {name} ({number} of {len(names)})", flush=True)
        start = time.monotonic()
        if reason := run(name, options):
            failed[name] = reason
        print(f"== {name}: {reason or 'done'} ({time.monotonic() - start:.0f} s)", flush=True)
    page = summing_up(options.output_dir, failed)
    (options.output_dir / "README.md").write_text(page)
    print(page)
    if failed:
        print("failed: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
