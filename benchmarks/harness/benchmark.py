"""Benchmark: what a script declares, and the command line that this gives it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peers import label, missing, needs

from . import plots
from .report import Aim, as_markdown, judged
from .rounds import follow_order, is_ordered, print_numbers, run_rounds
from .summary import OURS, rounded, summarize

Measure = Callable[[Any, dict[str, int]], Mapping]


class CantRun(Exception):
    """The benchmark can't be run, for instance with this server; the text says why, and what to do."""


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """The usual target: the connection string of the user's server, else of a throw-away one (without fsync)."""
    if dsn is not None:
        yield dsn
        return
    from greenpg import embedded

    with embedded.server(settings={"max_connections": 200}) as own:
        yield own


@dataclass(frozen=True)
class Benchmark:
    """One script: what its peers do, and how that is shown. At its end it calls `main()`.

    `script`: its `__file__`; the name of the file is the benchmark's.

    `peers`: by name, a function that measures ONE round. It is called in a fresh process, which has imported neither
    psycopg2 nor gevent, with the target and the sizes, and returns {metric: number}, or {scenario: {metric: number}}.
    Names in `peers.PEERS` get their label and colour, and are left out if their packages aren't installed. A metric
    has its unit in its name; `report.METRICS` says how it's called in tables. The first one is the one that counts.

    `sizes`: how much is done; each is an option of the script, too (`most_tasks` is `--most-tasks`). `quick_sizes`:
    those that `--quick` changes.

    `target`: a context manager that takes the user's connection string (None: there is none) and gives what the
    functions get as their target, which must go through JSON: a connection string, or a dict of some. Default: the
    user's, or that of a throw-away server.

    `aims`: what is said of them is said of full runs only, not of `--quick` ones.

    `needs`: modules that all peers need beside their own; they are reported with their versions.

    `timeout`: seconds for one round of one peer.
    """

    script: str
    title: str
    description: str
    peers: Mapping[str, Measure]
    sizes: Mapping[str, int]
    quick_sizes: Mapping[str, int]
    pictures: Sequence[plots.Picture] = ()
    aims: Sequence[Aim] = ()
    target: Callable[[str | None], AbstractContextManager[Any]] = server
    needs: Sequence[str] = ()
    timeout: float = 120.0

    @property
    def name(self) -> str:
        return Path(self.script).stem

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Do what the command line (or `arguments`) says. Returns the exit status: 1 if greenpg was asked for and
        failed, or all did."""
        options = self._parser().parse_args(arguments)
        given = {name: value for name in self.sizes if (value := getattr(options, name)) is not None}
        sizes = {**self.sizes, **(self.quick_sizes if options.quick else {}), **given}
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and peers are ended
        try:
            if options.peer:
                self._run_peer(self.peers[options.peer], options.dsn, sizes)
                return 0
            if options.json and not options.json.absolute().parent.is_dir():
                raise CantRun(f"there is no directory for {options.json}")
            document = self._run(options.dsn, options.peers, options.rounds, sizes)
            if not options.quick:
                document["aims"] = judged(self.aims, document["results"])
        except CantRun as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        self._write(document, options.json, options.output_dir)
        needed = [OURS] if OURS in options.peers else options.peers
        return 0 if any(peer in document["peers"] for peer in needed) else 1

    def _run_peer(self, measure: Measure, dsn: str | None, sizes: dict[str, int]) -> None:
        """One round in this process, which `run_rounds()` has started, or somebody by hand."""
        if is_ordered():
            follow_order(self.name, measure)
        elif dsn is None and self.target is server:
            raise CantRun("--peer needs a connection string")
        else:
            with self.target(dsn) as target:
                print_numbers(self.name, measure(target, sizes))

    def _run(self, dsn: str | None, peers: list[str], rounds: int, sizes: dict[str, int]) -> dict:
        import psycopg2

        from greenpg.connection.connect.dsn import masked_dsn
        from greenpg.embedded import EmbeddedServerError

        from . import machine

        if absent := [module for module in self.needs if find_spec(module) is None]:
            raise CantRun(f"this needs {' and '.join(absent)}: pip install {' '.join(absent)}")
        not_installed = {peer: reason for peer in peers if (reason := missing(peer))}
        for peer, reason in not_installed.items():
            _tell(f"{peer} is left out, {reason}")
        present = [peer for peer in peers if peer not in not_installed]
        try:
            with self.target(dsn) as target:
                one_dsn = next(iter(target.values())) if isinstance(target, dict) else target
                environment = machine.describe([*needs(present), *self.needs], one_dsn)
                found = run_rounds(self.script, present, rounds, target, sizes, timeout=self.timeout, tell=_tell)
        except EmbeddedServerError as error:
            raise CantRun(f"{error}\nTo use a server of your own, give its connection string.") from error
        except psycopg2.Error as error:
            where = masked_dsn(dsn) if dsn else "of its own"
            raise CantRun(f"can't use the database {where}: {str(error).strip()}") from error
        return {
            "benchmark": self.name,
            "title": self.title,
            "description": self.description,
            "rounds": rounds,
            "sizes": sizes,
            "peers": {peer: label(peer) for peer in found.measured},
            "left_out": not_installed | found.left_out,
            "environment": environment,
            "aims": [],
            "pictures": [],
            "results": rounded(summarize(found.measured)),
        }

    def _write(self, document: dict, json_file: Path | None, directory: Path | None) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                document["pictures"] = plots.draw(self.pictures, document, directory)
            except ImportError as error:
                _tell(f"no pictures: {error}: pip install matplotlib")
        page, data = as_markdown(document), json.dumps(document, ensure_ascii=False) + "\n"
        if directory is not None:
            (directory / f"{self.name}.md").write_text(page)
            (directory / f"{self.name}.json").write_text(data)
        if json_file is not None:
            json_file.write_text(data)
        print(page)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("dsn", nargs="?", help="connection string (default: a throw-away server's)")
        parser.add_argument("--rounds", type=int, default=5, help="of each peer, interleaved (default: %(default)s)")
        parser.add_argument(
            "--peers", type=self._peer_names, default=list(self.peers), help=f"some of {','.join(self.peers)}"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
        parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write results, table and pictures there")
        parser.add_argument("--quick", action="store_true", help=f"smaller: {_as_text(self.quick_sizes)}")
        parser.add_argument(
            "--peer", choices=self.peers, metavar="PEER", help="one round of this peer in this process; for a profiler"
        )
        for name, size in self.sizes.items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"(default: {size})")
        return parser

    def _peer_names(self, text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in self.peers]
        if unknown:
            raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)}; there are {', '.join(self.peers)}")
        return names


def _as_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
