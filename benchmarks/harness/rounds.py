"""Runs each peer in a process of its own, in interleaved rounds: A B C, A B C, ..."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .summary import Round

# What a peer's process is to do. Not on its command line, where everybody on the machine would read the password.
_ORDER_VARIABLE = "GREENPG_BENCHMARK_ORDER"
_GRACE_SECONDS = 10.0


class PeerFailed(Exception):
    """The text says why."""


@dataclass
class Rounds:
    measured: dict[str, list[Round]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Peer: why. One that failed in any round is left out altogether."""


def run_rounds(
    script: str,
    peers: list[str],
    number: int,
    target: object,
    sizes: Mapping[str, int],
    *,
    timeout: float,
    tell: Callable[[str], object],
) -> Rounds:
    """Run `script --peer NAME` for each of the peers, `number` times, and collect what it prints.

    `timeout`: seconds for one round of one peer; then its process is killed. `tell` gets a word about each round.
    """
    rounds = Rounds({peer: [] for peer in peers})
    took: dict[str, float] = {}
    for index in range(number):
        for peer in list(rounds.measured):
            tell(f"round {index + 1} of {number}: {peer}{_time_left(rounds, took, number)}")
            started = time.monotonic()
            try:
                rounds.measured[peer].append(_run_peer(script, peer, target, sizes, timeout))
            except PeerFailed as failure:
                del rounds.measured[peer]
                rounds.left_out[peer] = f"failed in round {index + 1}: {failure}"
                tell(f"{peer} is left out, it {rounds.left_out[peer]}")
            took[peer] = time.monotonic() - started
    return rounds


def _time_left(rounds: Rounds, took: Mapping[str, float], number: int) -> str:
    """Known once each peer has had a round; "" before."""
    if not all(peer in took for peer in rounds.measured):
        return ""
    seconds = sum((number - len(done)) * took[peer] for peer, done in rounds.measured.items())
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _run_peer(script: str, peer: str, target: object, sizes: Mapping[str, int], timeout: float) -> Round:
    import greenpg  # here, since the peer's process imports this module, too

    order = json.dumps({"target": target, "sizes": sizes, "timeout": timeout})
    search_path = [str(Path(greenpg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]  # the same greenpg
    with subprocess.Popen(
        [sys.executable, script, "--peer", peer],
        env=os.environ | {_ORDER_VARIABLE: order, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it started ends with it
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"it did not end within {timeout:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise PeerFailed(_last_words(errors) or f"exit status {process.returncode}")
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise PeerFailed(f"it printed no numbers: {output[-200:]!r}") from None


def _last_words(errors: str) -> str:
    """The error that ended a peer, or where it hung when its time was over."""
    lines = [line for line in errors.splitlines() if line.strip()]
    if lines and lines[0].startswith("Timeout ("):
        return f"{lines[0]}; it was at {' '.join(line.strip() for line in lines[2:4])}"
    return lines[-1].strip() if lines else ""


# -- in the peer's process


def is_ordered() -> bool:
    """Was this process started by `run_rounds()`?"""
    return _ORDER_VARIABLE in os.environ


def follow_order(name: str, measure: Callable[[Any, dict[str, int]], Mapping]) -> None:
    order = json.loads(os.environ[_ORDER_VARIABLE])
    # Ends the process even if whoever started it is gone, and says where it hung.
    faulthandler.dump_traceback_later(order["timeout"], exit=True)
    try:
        print_numbers(name, measure(order["target"], order["sizes"]))
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(1)  # a library that complains at the exit would have the last word
    os._exit(0)  # whoever has 20,000 tasks needn't end each


def print_numbers(name: str, numbers: Mapping) -> None:
    """`numbers`: those of several scenarios, or of one, which then is called `name`."""
    is_flat = not any(isinstance(value, Mapping) for value in numbers.values())
    print(json.dumps({name: numbers} if is_flat else numbers), flush=True)
