"""The system user under whom PostgreSQL runs: it refuses to be root."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from typing import Any

from .parent import Refusal

UNPRIVILEGED_USERS = ("nobody", "daemon")


class Identity:
    """Ourselves, unless we are root: then the owner of the data directory, or else an unprivileged system user."""

    def __init__(self, directory: str | None) -> None:
        self.is_other = os.geteuid() == 0
        self.uid, self.gid, self.name = os.geteuid(), os.getegid(), "the current user"
        if self.is_other:
            user = self._owner(directory) or self._unprivileged()
            self.uid, self.gid, self.name = user.pw_uid, user.pw_gid, f"user {user.pw_name!r}"
            if not self.holds(lambda: True):
                raise Refusal(f"PostgreSQL does not run as root, and this process may not become {self.name}")

    @staticmethod
    def _owner(directory: str | None) -> pwd.struct_passwd | None:
        uid = os.stat(directory).st_uid if directory and os.path.exists(directory) else 0
        try:
            return pwd.getpwuid(uid) if uid else None
        except KeyError:
            raise Refusal(f"{directory} belongs to the user id {uid}, for which the system has no name") from None

    @staticmethod
    def _unprivileged() -> pwd.struct_passwd:
        for name in UNPRIVILEGED_USERS:
            try:
                return pwd.getpwnam(name)
            except KeyError:
                continue
        raise Refusal(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED_USERS)}")

    @property
    def popen_arguments(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}

    def own(self, target: str | int) -> None:
        """Make this user the owner of a file, given by its path or descriptor."""
        if self.is_other:
            os.chown(target, self.uid, self.gid)

    def holds(self, question: Callable[[], bool]) -> bool:
        """The answer to `question` as this user gets it, in a forked child that has become the user."""
        if not self.is_other:
            return question()
        child = os.fork()
        if child == 0:
            status = 2
            try:
                os.setgroups([])
                os.setgid(self.gid)
                os.setuid(self.uid)
                status = 0 if question() else 1
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1] == 0

    def may(self, mode: int, *paths: str) -> bool:
        return self.holds(lambda: all(os.access(path, mode) for path in paths))
