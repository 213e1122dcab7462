"""One process of `python -m tests.differential`: `... worker HUB DSN TOKEN FIRST COUNT [self] [strict]`."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import warnings

#: Seconds that a program may take.
_LONGEST = 60


def main():
    hub_name, dsn, token, first, count, *rest = sys.argv[1:]
    is_self_test = "self" in rest
    patched = None if is_self_test else hub_name
    if patched == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif patched == "eventlet":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import eventlet

            eventlet.monkey_patch()
    from .comparing import Comparison
    from .databases import two_databases
    from .oracle import Oracle
    from .session import Session, Side

    if not is_self_test:
        import greenpg

        from .subject import GreenSide

        greenpg.Connection.interruption_grace = 10.0  # on a busy machine a cancel takes its time

        greenpg.patch(hub_name)
    started = told = time.monotonic()
    with two_databases(dsn, token) as (theirs, ours):
        oracle = Oracle(theirs)
        session = Session(ours, Side() if is_self_test else GreenSide())
        comparison = Comparison(oracle, session, lambda text: print(text, flush=True), is_strict="strict" in rest)

        def look(*args):
            if time.monotonic() - comparison.running_since > _LONGEST:
                print("hangs:", *comparison.running, sep="\n  ", flush=True)
                faulthandler.dump_traceback()
                os._exit(1)

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 5, 5)

        def run():
            nonlocal told
            seeds = range(int(first), int(first) + int(count))
            for start in range(0, len(seeds), 100):
                comparison.run(seeds[start : start + 100])
                now = time.monotonic()
                if now - told > 60:
                    told = now
                    print(f"[{token}] {comparison.compared} programs, up to seed {seeds[start]}", flush=True)

        try:
            run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            session.close()
            oracle.close()
    took = time.monotonic() - started
    print(
        f"[{token}] {comparison.compared} programs in {took:.0f} s: {len(comparison.found)} differences, "
        f"{len(comparison.unstable)} not seen again",
        flush=True,
    )
    sys.exit(1 if comparison.found else 0)


if __name__ == "__main__":
    main()
