"""What a pool counts in each of some situations, by the methods that psycopg_pool's and greenpg's have in common.

test_pool_statistics.py has what psycopg_pool says. To see it again, with a newer one, where both are installed:

    python tests/pool_statistics.py DSN     # a server of one's own: connections named "counted" are terminated
"""

import contextlib
import sys
import time

#: Times can't be compared but with zero.
_TIMES = ("usage_ms", "requests_wait_ms", "connections_ms")


class Counted:
    """The situations, each a method that leaves the pool as its statistics are to be seen."""

    def __init__(self, make, errors, run, dsn):
        """`make(conninfo, **options)` makes a pool that is open; `errors`: PoolTimeout, PoolClosed, TooManyRequests;
        `run(function)` runs it in a task of its own, and returns what waits for its end."""
        self.make, self.run, self.dsn = make, run, f"{dsn} application_name=counted"
        self.timeout, self.closed, self.too_many = errors

    def of(self, situation):
        """The counters that aren't zero, a time as 1."""
        pool = getattr(self, situation)()
        try:
            stats = pool.get_stats()
        finally:
            pool.close()
        return {name: 1 if name in _TIMES else number for name, number in stats.items() if number}

    def pool(self, **options):
        options = {"min_size": 1, "max_size": 2, "timeout": 5.0} | options
        pool = self.make(self.dsn, **options)
        pool.wait()
        return pool

    @staticmethod
    def taken(pool):
        """A connection that has been held for long enough to be counted."""
        conn = pool.getconn()
        time.sleep(0.005)
        return conn

    @staticmethod
    def until(condition):
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    def refilled(self, pool):
        """The pool, once it has a connection to lend again."""
        self.until(lambda: pool.get_stats().get("pool_available"))
        return pool

    def with_one_waiting(self, **options):
        """A pool, its only connection, and what waits for the end of the task that waits for that."""
        pool = self.pool(max_size=1, **options)
        conn = self.taken(pool)
        join = self.run(lambda: pool.putconn(pool.getconn()))
        self.until(lambda: pool.get_stats().get("requests_waiting"))
        return pool, conn, join

    def terminate(self):
        pool = self.make(self.dsn.replace("counted", "other"), min_size=1, max_size=1)
        with pool.connection() as conn:
            conn.cursor().execute(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'counted'"
            )
        pool.close()

    # -- the situations

    def nothing(self):
        return self.pool()

    def lent_three_times(self):
        pool = self.pool()
        for _ in range(3):
            with pool.connection():
                time.sleep(0.005)
        return pool

    def waited_for_a_new_one(self):
        pool = self.pool()
        first, second = self.taken(pool), self.taken(pool)
        pool.putconn(first)
        pool.putconn(second)
        return pool

    def lent_out(self):
        pool = self.pool()
        conn = self.taken(pool)
        stats = pool.get_stats()
        pool.putconn(conn)
        pool.close()
        return _Stopped(stats)

    def waited_in_line(self):
        pool, conn, join = self.with_one_waiting()
        time.sleep(0.01)
        pool.putconn(conn)
        join()
        return pool

    def waits_in_line(self):
        pool, conn, join = self.with_one_waiting()
        stats = pool.get_stats()
        pool.putconn(conn)
        join()
        pool.close()
        return _Stopped(stats)

    def timed_out(self):
        pool = self.pool(max_size=1)
        conn = self.taken(pool)
        with contextlib.suppress(self.timeout):
            pool.getconn(timeout=0.02)
        pool.putconn(conn)
        return pool

    def had_no_time_to_wait(self):
        pool = self.pool(max_size=1)
        conn = self.taken(pool)
        with contextlib.suppress(self.timeout):
            pool.getconn(timeout=0)
        pool.putconn(conn)
        return pool

    def too_many_waited(self):
        pool, conn, join = self.with_one_waiting(max_waiting=1)
        with contextlib.suppress(self.too_many):
            pool.getconn()
        time.sleep(0.01)
        pool.putconn(conn)
        join()
        return pool

    def was_closed(self):
        pool = self.pool()
        pool.close()
        with contextlib.suppress(self.closed):
            pool.getconn()
        return pool

    def came_back_closed(self):
        pool = self.pool()
        conn = self.taken(pool)
        conn.cursor().close()
        self.terminate()
        with contextlib.suppress(Exception):
            conn.cursor().execute("SELECT 1")
        pool.putconn(conn)
        return self.refilled(pool)

    def came_back_in_a_transaction(self):
        pool = self.pool()
        conn = self.taken(pool)
        conn.cursor().execute("SELECT 1")
        pool.putconn(conn)
        return self.refilled(pool)

    def came_back_in_error(self):
        pool = self.pool()
        conn = self.taken(pool)
        with contextlib.suppress(Exception):
            conn.cursor().execute("SELECT 1 / 0")
        pool.putconn(conn)
        return self.refilled(pool)

    def block_failed(self):
        pool = self.pool()
        with contextlib.suppress(ValueError), pool.connection() as conn:
            conn.cursor().execute("SELECT pg_sleep(0.005)")
            raise ValueError
        return pool

    def reset_failed(self):
        def reset(conn):
            raise ValueError

        pool = self.pool(reset=reset)
        with pool.connection():
            time.sleep(0.005)
        return self.refilled(pool)

    def check_found_a_dead_one(self):
        pool = self.pool()
        self.terminate()
        pool.check()
        return self.refilled(pool)

    def check_found_all_well(self):
        pool = self.pool()
        pool.check()
        return pool

    def lending_checked(self):
        pool = self.pool(check=self.make.check)
        with pool.connection():
            time.sleep(0.005)
        return pool

    def lending_found_a_dead_one(self):
        pool = self.pool(check=self.make.check)
        self.terminate()
        with pool.connection():
            time.sleep(0.005)
        return pool

    def expired(self):
        pool = self.pool(max_lifetime=0.01)
        time.sleep(0.02)
        with pool.connection():
            time.sleep(0.005)
        return self.refilled(pool)

    def drained(self):
        pool = self.pool()
        pool.drain()
        return self.refilled(pool)

    def could_not_connect(self):
        pool = self.make(self.dsn + " dbname=nowhere", min_size=1, max_size=2, reconnect_timeout=0.5, timeout=0.2)
        with contextlib.suppress(self.timeout):
            pool.getconn()
        pool.close()
        return pool

    def popped(self):
        pool = self.lent_three_times()
        pool.pop_stats()
        return pool


class _Stopped:
    """In the place of a pool, as it was."""

    def __init__(self, stats):
        self._stats = stats

    def get_stats(self):
        return self._stats

    def close(self):
        pass


_NONE = {"of", "pool", "taken", "until", "refilled", "with_one_waiting", "terminate"}
SITUATIONS = [name for name in vars(Counted) if not name.startswith("_") and name not in _NONE]


def _psycopg_pool():
    import psycopg_pool

    def make(conninfo, **options):
        return psycopg_pool.ConnectionPool(conninfo, open=True, **options)

    make.check = psycopg_pool.ConnectionPool.check_connection
    return make, (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests)


if __name__ == "__main__":
    import logging
    import pprint
    import threading

    logging.disable()

    def run(function):
        thread = threading.Thread(target=function)
        thread.start()
        return thread.join

    counted = Counted(*_psycopg_pool(), run, sys.argv[1])
    pprint.pprint({name: counted.of(name) for name in SITUATIONS}, sort_dicts=False, width=118)
