"""The test runner of django_suite.py: Django's, which writes what becomes of each test into a file."""

from __future__ import annotations

import faulthandler
import json
import os
import unittest

from django.test.runner import DiscoverRunner

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Outcomes(unittest.TextTestResult):
    """One line of JSON for each outcome: the test, the outcome, the reason."""

    file = None

    def _note(self, test, outcome, reason=""):
        if Outcomes.file is None:
            Outcomes.file = open(os.environ["SUITE_OUTCOMES"], "a", buffering=1)  # noqa: SIM115
        print(json.dumps([test.id(), outcome, reason]), file=Outcomes.file)

    def startTest(self, test):
        faulthandler.dump_traceback_later(float(os.environ["SUITE_TIMEOUT"]), exit=True)
        self._note(test, FAILED, "it hangs")  # until something else is said
        super().startTest(test)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)

    def addSuccess(self, test):
        self._note(test, PASSED)
        super().addSuccess(test)

    def addExpectedFailure(self, test, err):
        self._note(test, PASSED)
        super().addExpectedFailure(test, err)

    def addUnexpectedSuccess(self, test):
        self._note(test, FAILED, "it succeeds unexpectedly")
        super().addUnexpectedSuccess(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._note(test, FAILED, self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._note(test, FAILED, self.errors[-1][1])

    def addSkip(self, test, reason):
        self._note(test, SKIPPED, reason)
        super().addSkip(test, reason)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            is_failure = issubclass(err[0], test.failureException)
            self._note(test, FAILED, (self.failures if is_failure else self.errors)[-1][1])


class Runner(DiscoverRunner):
    """Django's, with our Outcomes."""

    def get_resultclass(self):
        return Outcomes
