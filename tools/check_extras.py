"""Each extra by itself: the wheel with that extra alone, in a new environment outside the checkout, used as by a user.

`make extras` installs what requirements.lock says, `make lowest` the lowest versions that pyproject.toml allows.

To add an extra: name it in pyproject.toml with all that it needs, write tests/extras/with_NAME.py, and run
`make lock KEEP=1`. That program runs in the new environment, in an empty directory. It finds the DSN of a running
PostgreSQL in GREENPG_DSN, and says by its exit status whether the extra does what it's for; what it starts has ended
by then.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

from greenpg import embedded

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "extras"
FOR_THE_CHECKOUT = {"test", "check", "docs", "dist", "lock", "suite", "bench"}  # make uses them, and needs the checkout
NOTHING = "nothing"  # the wheel without an extra
LONGEST = 300  # seconds that an installation, or a program, may take


def main() -> int:
    """Check the extras that are named, or all. Returns the number of those that don't work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"only these ({NOTHING}: the wheel without any)")
    parser.add_argument("--constraint", type=_path, metavar="FILE", help="install the versions that FILE names")
    parser.add_argument("--wheel", type=_path, metavar="FILE", help="this one, instead of one that is built now")
    parser.add_argument("--lowest", action="store_true", help="install the lowest versions allowed")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="greenpg-extras-") as directory:
        wheel = options.wheel or _build_wheel(Path(directory), options.constraint)
        extras = _extras(wheel)
        chosen = options.extras or extras
        if unknown := [extra for extra in chosen if extra not in extras]:
            parser.error(f"no {', '.join(unknown)} among {', '.join(extras)}")
        settings = {"max_connections": 50 * len(extras)}
        with embedded.server(settings=settings) as dsn, ThreadPoolExecutor(os.cpu_count()) as workers:

            def check(extra: str) -> bool:
                return _check(extra, wheel, Path(directory, extra), dsn, options)

            failed = list(workers.map(check, chosen)).count(False)
    print(f"extras: {len(chosen) - failed} passed, {failed} failed", flush=True)
    return failed


def _path(text: str) -> Path:
    return Path(text).absolute()


def _build_wheel(directory: Path, constraint: Path | None) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT]
    subprocess.run(command, check=True, timeout=LONGEST, env=_environment(constraint))
    (wheel,) = directory.glob("*.whl")
    return wheel


def _extras(wheel: Path) -> list[str]:
    """All extras of the wheel that are for users; each has to have a program, and each program an extra."""
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    extras = {NOTHING, *metadata.get_all("Provides-Extra", [])} - FOR_THE_CHECKOUT
    programs = {path.stem.removeprefix("with_") for path in PROGRAMS.glob("with_*.py")}
    if lacking := sorted(extras - programs):
        raise SystemExit(f"how is the extra {lacking[0]} used? Show it in {PROGRAMS}/with_{lacking[0]}.py")
    if homeless := sorted(programs - extras):
        raise SystemExit(f"{PROGRAMS}/with_{homeless[0]}.py is for an extra that pyproject.toml doesn't have")
    return [NOTHING, *sorted(extras - {NOTHING})]


def _lowest(file: Path, extra: list[str]) -> Path:
    """Write a file of the lowest versions that pyproject.toml allows. Of what those need in turn: the newest."""
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "compile", "--quiet", "--resolution=lowest-direct", "--python", sys.executable, *extra]
    subprocess.run([*command, "--output-file", file, ROOT / "pyproject.toml"], check=True, timeout=LONGEST)
    return file


def _check(extra: str, wheel: Path, directory: Path, dsn: str, options: argparse.Namespace) -> bool:
    began = time.monotonic()
    python = directory / "environment" / "bin" / "python"
    venv.create(python.parents[1], with_pip=True, symlinks=True)
    here = directory / "here"
    here.mkdir()
    constraint = options.constraint
    if options.lowest:
        constraint = _lowest(directory / "lowest.txt", [] if extra == NOTHING else ["--extra", extra])
    environment = _environment(constraint)
    what = wheel if extra == NOTHING else f"greenpg[{extra}] @ {wheel.as_uri()}"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what]
    program = shutil.copy(PROGRAMS / f"with_{extra}.py", directory)
    done = _run(install, here, environment)
    if done.returncode == 0:
        done = _run([python, "-X", "dev", "-W", "ignore", program], here, environment | {"GREENPG_DSN": dsn})
    passed = done.returncode == 0
    print(
        f"extras: {extra:12} {'works' if passed else 'FAILS'} ({time.monotonic() - began:.0f} s)"
        f"{'' if passed else chr(10) + done.stdout}",
        flush=True,
    )
    return passed


def _run(command: list[object], directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run it, with its errors among its output. One that takes too long is ended, and has failed."""
    command = [str(part) for part in command]
    timeout = ["timeout", "--kill-after=10", str(LONGEST)]  # which ends what the program has started, too
    return subprocess.run(
        timeout + command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )


def _environment(constraint: Path | None) -> dict[str, str]:
    """The environment without this checkout, and with pip's constraints: for what is installed, and what builds it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    file = constraint.as_uri() if constraint else ""
    return kept | {"PIP_CONSTRAINT": file, "PIP_BUILD_CONSTRAINT": file}


if __name__ == "__main__":
    sys.exit(main())
