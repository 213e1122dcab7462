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
        if event != "import" or self.modules is not None:
            return
        if _has_patched("gevent.monkey") or _has_patched("eventlet.patcher"):
            self.modules = list(sys.modules)


def _has_patched(module_name: str) -> bool:
    module = sys.modules.get(module_name)
    return bool(getattr(module, "saved", None) or getattr(module, "already_patched", None))


def _top_level(modules: "list[str]") -> "list[str]":
    """Without Python's own, in the order of their import."""
    return [name for name in modules if "." not in name and name not in sys.stdlib_module_names and name[0] != "_"]


def _monkey_patch(worker_class: str) -> None:
    """As gunicorn's worker of that class does before it imports the app."""
    is_greenpgs = worker_class.startswith("greenpg.")
    if "eventlet" in worker_class.lower():
        import eventlet

        eventlet.monkey_patch()
    elif "gevent" in worker_class or is_greenpgs:
        from gevent import monkey

        monkey.patch_all()
    if is_greenpgs:
        import greenpg

        greenpg.patch()


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
    worker_class = worker_class or str(settings.get("worker_class", ""))
    if worker_class.endswith(".GreenpgWorker"):  # it patches before the app is preloaded
        _monkey_patch(worker_class)
    if preload and app:
        _load(app)
    if callable(function := settings.get("post_fork")):
        function(_Stub(), _Stub())
    _monkey_patch(worker_class)
    if app and not preload:
        _load(app)
    if callable(function := settings.get("post_worker_init")):
        function(_Stub())
    number = workers or settings.get("workers")
    return int(number) if isinstance(number, (int, str)) and number else None


def _no_greenpg(error: Exception) -> "dict[str, str]":
    by = [
        name for name, module in (("gevent", "gevent.monkey"), ("eventlet", "eventlet.patcher")) if _has_patched(module)
    ]
    return {
        "code": "two_loops" if len(by) == 2 else "greenpg_fails",
        "level": "error",
        "what": f"greenpg can't be imported into the program, which {' and '.join(by) or 'nothing'} has "
        f"monkey-patched: {type(error).__name__}: {error}",
        "why": "Nothing more can be looked at. Two libraries that both patch have an event loop each, and a task that "
        "waits in one stops all tasks of the other.",
        "remedy": "Decide for one of gevent.monkey.patch_all() and eventlet.monkey_patch(), and look who calls the "
        "other.",
    }


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
    facts: dict[str, object] = {"imported": _top_level(list(sys.modules))}
    if before.modules is not None:
        facts["imported_before_patching"] = _top_level(before.modules)
    findings = []
    if failure is not None:
        print(failure[1], file=sys.stderr)
        findings.append(
            {
                "code": "app_fails",
                "level": "error",
                "what": f"the program can't be brought up: {failure[0]}",
                "why": "What it would have set up hasn't been looked at.",
                "remedy": "See the traceback above; run the command in the folder, and with the environment, that the "
                "program needs.",
            }
        )
    import json

    try:
        import greenpg
    except Exception as error:
        findings.append(_no_greenpg(error))
    else:
        report = greenpg.doctor(dsn or None, workers=number, seconds=float(seconds)).as_dict()
        findings += report["findings"]
        facts = report["facts"] | facts
    with os.fdopen(int(output), "wb") as file:
        file.write(json.dumps({"findings": findings, "facts": facts}).encode())
    sys.stderr.flush()
    os._exit(0)  # the program's own tasks and exit handlers are none of ours


if __name__ == "__main__":
    main()
