"""A task computes, and lets nobody else run.

finds: loop_blocked
says: (compute_report)
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

import greenpg  # noqa: E402

greenpg.patch()
pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])


def compute_report():
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        sum(range(1000))


def report_now_and_then():
    while True:
        gevent.sleep(0.05)
        compute_report()


gevent.spawn(report_now_and_then)
