"""Looks host names up, through the hub.

libpq does it with a blocking getaddrinfo, for the second and later hosts in the midst of polling. So it is given the
addresses as `hostaddr`; `host` stays, for TLS and .pgpass.
"""

from __future__ import annotations

from ...errors import is_interruption
from ...hubs import hub
from .route import Host


def look_up(hosts: list[Host], deadline: float | None) -> tuple[list[Host], list[str]]:
    """The hosts with their addresses, all of them for each name, and what went wrong. Suspends."""
    found, failures = [], []
    for host in hosts:
        if not host.needs_look_up:
            found.append(host)
            continue
        try:
            found += [Host(host.name, address, host.port) for address in _addresses(host.name, deadline)]
        except OSError as error:
            if is_interruption(error):  # TimeoutError is an OSError
                raise
            failures.append(f'could not translate host name "{host.name}" to address: {error.strerror or error}')
    return found, failures


def _addresses(name: str, deadline: float | None) -> list[str]:
    return list(dict.fromkeys(str(info[4][0]) for info in _resolve(name, deadline)))


def _resolve(name: str, deadline: float | None) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    """Look up in a task of its own: a look-up can't be interrupted everywhere, but it can be left alone.

    And its errors, OSErrors, can't be taken for what is thrown into this task, such as a TimeoutError.
    """
    done = hub().event()
    outcome: list[object] = []

    def resolve_name() -> None:
        try:
            outcome.append(hub().resolve(name, None))
        except Exception as error:
            outcome.append(error)
        finally:
            done.set()

    hub().spawn(resolve_name)
    if not done.wait(deadline):
        raise TimeoutError("timeout expired")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]
