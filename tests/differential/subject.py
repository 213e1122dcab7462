"""greenpg's side, in the process of the tests, on whatever hub it has."""

from __future__ import annotations

from greenpg.hubs import hub

from .blocks import GreenBlocks
from .session import Side


class GreenSide(Side):
    blocks = GreenBlocks

    def run_beside(self, function):
        done = hub().event()

        def run():
            try:
                function()
            finally:
                done.set()

        hub().spawn(run)
        return done.wait

    def current(self):
        return hub().current()

    def interrupt(self, conn, task, exception):
        if hub().name == "gevent":
            import gevent

            gevent.kill(task, exception)
        elif hub().name == "eventlet":
            import eventlet

            eventlet.hubs.get_hub().schedule_call_global(0, task.throw, exception)
        else:  # native threads can't be killed
            conn.cancel()
