"""The tests that `make test-quick` leaves out: a measured list, slow_tests.txt. `make slow-tests` measures anew.

A test that isn't in the list is quick, so a new one is a part of the quick tests from the start.
"""

from collections import Counter
from pathlib import Path

LIST = Path(__file__).with_name("slow_tests.txt")
SLOW = 0.05  # seconds that a test function takes on one hub, with all its parameters


def name_of(nodeid):
    """The test function's name, without parameters: "test_pool.py::test_timeout"."""
    return nodeid.partition("[")[0].removeprefix("tests/")


def known():
    """The names of the slow tests."""
    return set(LIST.read_text().splitlines()) if LIST.exists() else set()


class SlowTests:
    """A pytest plugin that adds to the list what is slow in this run."""

    def __init__(self):
        self._seconds = Counter()

    def pytest_runtest_logreport(self, report):
        if report.when == "call":  # a fixture is set up for the first of many
            self._seconds[name_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self):
        slow = {name for name, seconds in self._seconds.items() if seconds > SLOW}
        LIST.write_text("".join(f"{name}\n" for name in sorted(known() | slow)))
