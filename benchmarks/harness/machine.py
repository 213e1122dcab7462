"""On what machine a benchmark ran, and with which versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import packages_distributions, version
from pathlib import Path


def describe(modules: Iterable[str], dsn: str | None) -> dict[str, object]:
    """The machine, the versions of what the modules come from, and of the server at `dsn`. To be called before the
    first round, because of the load average."""
    from psycopg2 import extensions  # here, since a peer's process imports this module before it's monkey-patched

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release()}",
            "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version()}
        | ({"postgresql": _server_version(dsn)} if dsn else {})
        | {"libpq of psycopg2": _dotted(extensions.libpq_version())}
        | _versions(modules),
        "garbage collector": "on",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _versions(modules: Iterable[str]) -> dict[str, str]:
    import greenpg

    found = {"greenpg": greenpg.__version__}  # a checkout's, where the installed one may be another
    distributions = packages_distributions()
    for module in sorted(set(modules) - {"greenpg"}):
        for distribution in distributions.get(module, ()):
            found[distribution] = version(distribution)
    if "psycopg" in modules and "psycopg" in distributions:
        # In a wheel of its own, of which the module psycopg says nothing.
        from psycopg import pq

        found["libpq of psycopg"] = f"{_dotted(pq.version())} ({pq.__impl__})"
    return found


def _server_version(dsn: str) -> str:
    import psycopg2

    conn = psycopg2.connect(dsn)
    try:
        return conn.get_parameter_status("server_version")
    finally:
        conn.close()


def _dotted(number: int) -> str:
    return f"{number // 10000}.{number % 10000}"


def as_text(environment: dict) -> str:
    """One paragraph of Markdown."""
    machine, versions = environment["machine"], environment["versions"]
    load = ", ".join(str(load) for load in machine["load_average_at_start"])
    return (
        f"{environment['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, load average at the "
        f"start {load}; " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
    )
