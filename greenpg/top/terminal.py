"""`greenpg top`: the view in a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .socket_server import TopClient, socket_directory

_BLOCKS = " ▁▂▃▄▅▆▇█"
_BOLD, _RED, _SOFT, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"
_CLEAR = "\x1b[H\x1b[J"


def running_programs() -> list[Path]:
    """The sockets of this user's programs, as far as they're in the usual place."""
    directory = socket_directory()
    return sorted(path for path in directory.glob("*.sock") if path.is_socket()) if directory.is_dir() else []


def watch(client: TopClient, interval: float, stacks: bool = False) -> None:
    """Show the program until q or Ctrl-C. Raises OSError when it has gone."""
    with _keys():
        print("\x1b[?1049h", end="")  # the other screen
        try:
            while True:
                size = shutil.get_terminal_size()
                data = client.look(stacks)
                lines = frame(data, size.columns, colors=True)[: size.lines - 1]
                print(_CLEAR + "\r\n".join(lines) + "\r\n", end=_SOFT + "q quit, s stacks" + _PLAIN, flush=True)
                key = _key_within(interval)
                if key in ("q", "Q", "\x1b"):
                    return
                if key in ("s", "S"):
                    stacks = not stacks
        finally:
            print("\x1b[?1049l", end="", flush=True)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys are read as they are pressed; Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key_within(seconds: float) -> str | None:
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return None
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else None


def frame(data: dict[str, Any], width: int, colors: bool = False) -> list[str]:
    """What is shown, as lines of at most that width."""
    paint = _painter(colors)
    program = data["program"]
    at = time.strftime("%H:%M:%S", time.localtime(program["time"]))
    lines = [paint(_cut(f"{program['name']}, process {program['pid']}, {program['hub']}, {at}", width), _BOLD)]
    if not data["pools"]:
        lines.append("There is no pool in this process yet.")
    for pool in data["pools"]:
        lines += ["", *_pool_lines(pool, width, paint)]
    for server in data["servers"]:
        lines += ["", *_server_lines(server, width, paint)]
    return lines


def _painter(colors: bool) -> Any:
    return (lambda text, color: f"{color}{text}{_PLAIN}") if colors else (lambda text, color: text)


def _pool_lines(pool: dict[str, Any], width: int, paint: Any) -> Iterator[str]:
    history = pool["history"]
    last: dict[str, Any] = history[-1] if history else {"per_second": 0, "wait_ms": None, "hold_ms": None}
    head = (
        f"{pool['name']}: {pool['used']} of {pool['max_size'] or 'any number'} in use, {pool['idle']} idle, "
        f"{pool['waiting']} waiting, {last['per_second']:g} requests/s"
    )
    yield paint(_cut(head, width), _RED if pool["waiting"] else _BOLD)
    troubles = [f"{count} {name}" for name, count in pool["counters"].items() if count and name not in _NO_TROUBLE]
    if troubles:
        yield paint(_cut("  " + ", ".join(troubles), width), _RED)
    room = max(width - 56, 10)
    yield _cut(f"  in use   {_sparkline([s['used'] for s in history], room)}", width)
    yield _cut(f"  waiting  {_sparkline([s['waiting'] for s in history], room)}", width)
    for name, title in (("wait_ms", "waited"), ("hold_ms", "held")):
        times = last[name]
        shown = ", ".join(f"{key} {_milliseconds(times[key])}" for key in ("p50", "p95", "p99")) if times else "-"
        yield _cut(f"  {title:8} {_sparkline([(s[name] or {}).get('p95', 0) for s in history], room)}  {shown}", width)
    for holder in pool["holders"][:8]:
        line = f"  {holder['seconds']:8.1f} s  process {holder['pid'] or 'closed':<8} {holder['task']}"
        yield paint(_cut(line, width), _RED) if holder["seconds"] > 30 else _cut(line, width)
        if holder["stack"]:
            for code in holder["stack"].rstrip().splitlines()[-8:]:
                yield paint(_cut("        " + code, width), _SOFT)


_NO_TROUBLE = ("requests", "connects")


def _server_lines(server: dict[str, Any], width: int, paint: Any) -> Iterator[str]:
    yield paint(_cut(f"server {server['dsn']}", width), _BOLD)
    if server["error"]:
        yield paint(_cut(f"  {server['error']}", width), _RED)
        return
    yield paint(
        _cut("   process  state                       for  waits for              blocked by  statement", width), _SOFT
    )
    for session in server["sessions"]:
        waits = (
            f"{session['wait_type']}: {session['wait']}" if session["state"] == "active" and session["wait"] else "-"
        )
        pids = session["blocked_by"]
        blockers = str(pids[0]) + (f" +{len(pids) - 1}" if len(pids) > 1 else "") if pids else ""
        statement = " ".join((session["statement"] or session["application"] or "").split())
        line = (
            f"  {session['pid']:8}  {session['state'] or '-':20} {session['state_seconds'] or 0:8.1f} s  {waits:22} "
            f"{blockers or '-':10}  {statement}"
        )
        yield paint(_cut(line, width), _RED) if blockers else _cut(line, width)


def _cut(text: str, width: int) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)  # no control sequences
    return text if len(text) <= width else text[: width - 1] + "…"


def _sparkline(values: list[float], width: int) -> str:
    values = values[-width:]
    most = max(values, default=0)
    if not most:
        return ("▁" * len(values)).rjust(width)
    return "".join(_BLOCKS[max(1, round(value / most * 8))] for value in values).rjust(width)


def _milliseconds(value: float) -> str:
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 10 else f"{value:.2f} ms"
