"""A primary dies under 100 greenlets that write; its synchronous replica takes over. What was acknowledged must be
there, what was reported as rolled back must not, and each COMMIT in doubt is settled rightly.

    python tests/failover_storm.py [ROUNDS [crash|frozen]]

Promoting is this program's; patroni_storm.py has a real cluster, where it's Patroni's.
"""

from __future__ import annotations

import statistics
import sys
import time


def one_round(how, tasks=100, seconds=2.0):  # noqa: PLR0915 - a story, told from its beginning to its end
    import gevent
    import psycopg2
    from cluster import Pair, ask
    from proxy import Proxy

    import greenpg
    from greenpg import errors

    with (
        Pair(is_synchronous=True) as pair,
        Proxy("127.0.0.1", pair.primary.port) as primary,
        Proxy("127.0.0.1", pair.replica.port) as replica,
    ):
        ask(pair.primary, "CREATE TABLE written (n int PRIMARY KEY)")
        dsn = pair.dsn(through=[primary, replica], target_session_attrs="read-write")
        options = {"statement_deadline": 1.0} if how == "frozen" else {}
        pool = greenpg.ConnectionPool(dsn, min_size=10, max_size=20, timeout=30, **options)
        pool.wait()
        numbers = iter(range(10_000_000))
        acknowledged, undone, doubts, successes = [], [], [], []
        stop = []

        def write():
            while not stop:
                number = next(numbers)
                try:
                    with pool.transaction(settle=True) as conn:
                        conn.execute("INSERT INTO written VALUES (%s)", (number,))
                except psycopg2.Error as error:
                    (doubts if errors.commit_outcome(error) == errors.UNKNOWN else undone).append((number, error))
                else:
                    acknowledged.append(number)
                    successes.append(time.monotonic())

        writers = [gevent.spawn(write) for _ in range(tasks)]
        gevent.sleep(seconds / 2)
        if how == "crash":
            pair.primary.crash()
        else:
            primary.stall()
            gevent.sleep(0.5)
        died = time.monotonic()
        pair.promote()
        promoted = time.monotonic()
        while not (successes and successes[-1] > promoted) and time.monotonic() < promoted + 60:
            gevent.sleep(0.01)
        gap = next((at for at in successes if at > promoted), promoted + 60) - promoted
        gevent.sleep(seconds / 2)
        stop.append(True)
        gevent.joinall(writers, timeout=60)
        there = {row[0] for row in pool.fetchall("SELECT n FROM written")}
        outcomes = [(number, errors.commit_outcome(error, ask=pool)) for number, error in doubts]
        lost = len(set(acknowledged) - there)
        unexpected = sum(number in there for number, _ in undone)
        wrong = sum(
            (outcome == errors.COMMITTED) != (number in there)
            for number, outcome in outcomes
            if outcome != errors.UNKNOWN
        )
        unsettled = sum(outcome == errors.UNKNOWN for _, outcome in outcomes)
        committed = sum(outcome == errors.COMMITTED for _, outcome in outcomes)
        size = pool.get_stats()["pool_size"]
        old = sum(slot.conn.info.port == primary.port for slot in pool._core.ledger.slots if slot.conn)
        pool.close()
        print(
            f"{how}: {len(acknowledged)} acknowledged, {lost} lost; {len(undone)} undone, {unexpected} of them there; "
            f"{len(doubts)} in doubt: {committed} committed, {wrong} settled wrongly, {unsettled} not; first success "
            f"{gap:.2f} s after the promotion (which took {promoted - died:.2f} s); pool of {size}, {old} to the old "
            "primary",
            flush=True,
        )
        return gap, lost + unexpected + wrong + unsettled


def main():
    from gevent import monkey

    monkey.patch_all()
    import greenpg

    greenpg.patch()
    rounds = sys.argv[1] if len(sys.argv) > 1 else "5"
    how = sys.argv[2] if len(sys.argv) > 2 else "crash"
    results = [one_round(how) for _ in range(int(rounds))]
    print(f"median to the first success: {statistics.median(gap for gap, _ in results):.2f} s")
    return any(wrong for _, wrong in results)


if __name__ == "__main__":
    sys.exit(main())
