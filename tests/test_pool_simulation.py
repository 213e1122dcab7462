"""The pool's logic under a simulated hub: random schedules, kills and timeouts at every point where a task can be
suspended, the ledger's invariants checked whenever the mutex is released. A failure names its seed.

`GREENPG_SIMULATIONS` sets how many seeds are tried.
"""

import inspect
import os
import textwrap
import types

import pytest
from kit import CheckingMutex
from simulation import Killed, SimulatedHub, SimulatedServer

import greenpg
import greenpg.pool.opening
import greenpg.pool.pool
import greenpg.pool.returning
import greenpg.pool.waiting
from greenpg import hubs

pytestmark = pytest.mark.only_hub("threads")

SEEDS = int(os.environ.get("GREENPG_SIMULATIONS", "1500"))


class Simulation:
    """A pool, its clients, and somebody who kills them."""

    def __init__(self, monkeypatch, seed):
        self.hub = SimulatedHub(seed)
        self.random = self.hub.random
        self.server = SimulatedServer(self.hub, failure_rate=self.random.choice([0.0, 0.0, 0.3]))
        clock = types.SimpleNamespace(monotonic=lambda: self.hub.now)
        for module in (greenpg.pool.pool, greenpg.pool.opening, greenpg.pool.returning, greenpg.pool.waiting):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(greenpg.pool.opening, "connect", self.server.connect)
        self.old_hub = hubs.use(self.hub)
        max_size = self.random.randint(1, 4)
        self.pool = greenpg.ConnectionPool(
            min_size=self.random.randint(0, max_size),
            max_size=max_size,
            timeout=self.random.choice([0.01, 0.05, 5.0]),
            max_waiting=self.random.choice([0, 0, 3]),
            max_lifetime=self.random.choice([0.05, 3600]),
            reset=self.random.choice([None, None, self.reset]),
        )
        self.pool._mutex = CheckingMutex(self.pool._mutex, self.pool._ledger.check_invariants)
        self.served = self.killed = self.refused = 0

    def reset(self, conn):
        conn.execute()
        if self.random.random() < 0.9:
            conn.commit()

    def client(self):
        pool, hub = self.pool, self.hub
        hub.sleep(self.random.random() * 0.1)
        try:
            for _ in range(self.random.randint(1, 4)):
                kind = self.random.random()
                if kind < 0.6:
                    with pool.connection() as conn:
                        self.use(conn)
                else:
                    conn = pool.getconn()
                    try:
                        self.use(conn)
                    finally:
                        pool.putconn(conn)  # in its transaction
                self.served += 1
        except Killed:
            self.killed += 1
            raise
        except (greenpg.PoolTimeout, greenpg.TooManyRequests, greenpg.PoolClosed, ZeroDivisionError):
            self.refused += 1

    def use(self, conn):
        for _ in range(self.random.randint(0, 2)):
            conn.execute()
        if self.random.random() < 0.1:
            conn.break_down()
        if self.random.random() < 0.1:
            raise ZeroDivisionError

    def run(self, clients=25):
        self.hub.run()  # makes this greenlet the loop
        for _ in range(clients):
            task = self.hub.spawn(self.client)
            for _ in range(self.random.choice([0, 1, 1, 2])):
                when = self.hub.now + self.random.random() * 0.3
                self.hub.at(when, lambda task=task: self.hub.throw(task, Killed))
        if self.random.random() < 0.2:
            self.hub.at(self.hub.now + 0.1, lambda: self.hub.spawn(self.pool.close))
        self.hub.run()
        self.check_the_end()

    def check_the_end(self):
        for error in self.hub.errors:
            raise error
        ledger = self.pool._ledger
        ledger.check_invariants()
        assert not self.hub.tasks, "somebody waits for ever"
        assert ledger.lent_count == 0, "a connection is lost"
        assert not ledger.opening
        assert not ledger.resetting
        assert self.server.most_open <= ledger.max_size
        assert len(self.server.open) == ledger.size, "a connection is open without a slot"
        assert self.pool._opener.workers == 0
        assert self.pool.closed or not self.served or ledger.size >= ledger.min_size, "lost ones are not replaced"
        if not self.pool.closed:
            self.server.failure_rate = 0.0
            self.pool.timeout = 5.0
            conns = []
            self.hub.spawn(lambda: conns.extend(self.pool.getconn() for _ in range(ledger.max_size)))
            self.hub.run()
            assert len(conns) == ledger.max_size, "a slot is lost"


def simulate(monkeypatch, seed):
    with monkeypatch.context() as patched:
        simulation = Simulation(patched, seed)
        try:
            simulation.run()
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        finally:
            hubs.use(simulation.old_hub)
    return simulation


@pytest.mark.filterwarnings("ignore")
def test_random_schedules(monkeypatch, caplog):
    caplog.set_level("CRITICAL", "greenpg.pool")
    served = killed = refused = 0
    for seed in range(SEEDS):
        simulation = simulate(monkeypatch, seed)
        served += simulation.served
        killed += simulation.killed
        refused += simulation.refused
    # The schedules must have been worth the name.
    assert served > SEEDS * 5
    assert killed > SEEDS * 2
    assert refused > SEEDS


def mutate(monkeypatch, function, old, new):
    """Put a fault into a function of the pool: (module, name) or (module, name of the class, name)."""
    module, *names = function
    owner = module if len(names) == 1 else getattr(module, names[0])
    source = textwrap.dedent(inspect.getsource(getattr(owner, names[-1])))
    assert old in source, f"{names} has changed: adapt the mutant"
    namespace = {}
    exec("from __future__ import annotations\n" + source.replace(old, new), vars(module), namespace)
    monkeypatch.setattr(owner, names[-1], namespace[names[-1]])


POOL = (greenpg.pool.pool, "ConnectionPool")


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ((greenpg.pool.waiting, "wait_in_line"), "except BaseException:", "except Exception:"),
        ((greenpg.pool.waiting, "wait_in_line"), "pool._pass_on(slot)", "pass"),
        ((greenpg.pool.returning, "clean_up"), "except BaseException:", "except Exception:"),
        ((*POOL, "_pass_on"), "self._ledger.give(slot)", "self._ledger.idle.append(slot)"),
        ((*POOL, "_grow"), "if self._ledger.should_grow():", "if self._ledger.line and self._ledger.size:"),
        ((*POOL, "_replace_lost"), "if ledger.size < ledger.min_size or", "if"),
    ],
)
def test_mutants_are_caught(monkeypatch, caplog, function, old, new):
    caplog.set_level("CRITICAL", "greenpg.pool")
    mutate(monkeypatch, function, old, new)
    if function[-1] == "wait_in_line":
        monkeypatch.setattr(greenpg.pool.pool, "wait_in_line", greenpg.pool.waiting.wait_in_line)
    if function[-1] == "clean_up":
        monkeypatch.setattr(greenpg.pool.pool, "clean_up", greenpg.pool.returning.clean_up)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        for seed in range(500):
            simulate(monkeypatch, seed)
