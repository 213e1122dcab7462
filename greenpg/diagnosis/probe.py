"""Run as a script of its own by `greenpg doctor --app`: brings the program up as its server would, then examines it.

It imports nothing but what Python has imported already, until the program itself is there: what is imported before the
monkey-patching is what is to be found out.

    probe.py OUTPUT_FD APP CONFIG WORKER_CLASS WORKERS SECONDS     (an empty one: not given)

The DSN comes in the environment, where other users can't read its password.
"""

import os
import sys


class _Stub:
    """What a gunicorn configuration's hooks are called with."""

    pid = os.getpid()
    age = 0

    def __getattr__(self, name):  # type: ignore[no-untyped-def]
        return _Stub()

    def __call__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return None


class _ImportsBefore:
    """Notes which modules are there when the first thing is found monkey-patched. An audit hook, for it alone is told
    of imports without taking part in them."""

    def __init__(self) -> None:
        self.modules: list[str] | None = None

    def __call__(self, event: str, args: object) -> None:
        if event == "import" and self.modules is None:
            monkey, patcher = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
            if getattr(monkey, "saved", None) or getattr(patcher, "already_patched", None):
                self.modules = list(sys.modules)


def _top_level(modules: "list[str]") -> "list[str]":
    """Without Python's own, in the order of their import."""
    return [name for name in modules if "." not in name and name not in sys.stdlib_module_names and name[0] != "_"]


def _monkey_patch(worker_class: str) -> None:
    """As gunicorn's worker of that class does before it imports the app."""
    if "gevent" in worker_class:
        from gevent import monkey

        monkey.patch_all()
    elif "eventlet" in worker_class:
        import eventlet

        eventlet.monkey_patch()


def _load(app: str) -> None:
    import importlib

    module_name, _, name = app.partition(":")
    module = importlib.import_module(module_name)
    for part in filter(None, name.partition("(")[0].split(".")):
        module = getattr(module, part)


def _bring_up(app: str, config: str, worker_class: str, workers: str) -> int | None:
    settings: dict[str, object] = {}
    if config:
        path = os.path.abspath(config)
        sys.path.insert(0, os.path.dirname(path))
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), settings)
    preload = bool(settings.get("preload_app"))
    if preload and app:
        _load(app)
    if callable(function := settings.get("post_fork")):
        function(_Stub(), _Stub())
    _monkey_patch(worker_class or str(settings.get("worker_class", "")))
    if app and not preload:
        _load(app)
    if callable(function := settings.get("post_worker_init")):
        function(_Stub())
    number = workers or settings.get("workers")
    return int(number) if isinstance(number, (int, str)) and number else None


def main() -> None:
    output, app, config, worker_class, workers, seconds = sys.argv[1:]
    dsn = os.environ.pop("GREENPG_DOCTOR_DSN", "")
    sys.path[0] = os.getcwd()  # it was this file's folder
    os.dup2(2, 1)  # what the program prints is not the report
    failure = None
    number = None
    before = _ImportsBefore()
    sys.addaudithook(before)
    try:
        number = _bring_up(app, config, worker_class, workers)
    except BaseException as error:
        import traceback

        failure = (traceback.format_exception_only(error)[-1].strip(), traceback.format_exc())
    imported = _top_level(list(sys.modules))
    import json

    import greenpg
    from greenpg.diagnosis.findings import ERROR, Finding

    report = greenpg.doctor(dsn or None, workers=number, seconds=float(seconds))
    report.facts["imported"] = imported
    if before.modules is not None:
        report.facts["imported_before_patching"] = _top_level(before.modules)
    if failure is not None:
        print(failure[1], file=sys.stderr)
        report.findings.insert(
            0,
            Finding(
                "app_fails",
                ERROR,
                f"the program can't be brought up: {failure[0]}",
                "What it would have set up hasn't been looked at.",
                "See the traceback above; run the command in the folder, and with the environment, that the program "
                "needs.",
            ),
        )
    data = json.dumps(report.as_dict()).encode()
    with os.fdopen(int(output), "wb") as file:
        file.write(data)
    sys.stderr.flush()
    os._exit(0)  # the program's own tasks and exit handlers are none of ours


if __name__ == "__main__":
    main()
