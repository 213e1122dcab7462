"""The pool's logic under a simulated hub: random schedules, kills and timeouts at every point where a task can be
suspended, the ledger's invariants checked whenever the mutex is released. A failure names its seed.

`GREENPG_SIMULATIONS` sets how many seeds are tried.
"""

import dataclasses
import inspect
import os
import random
import textwrap

import psycopg2
import pytest
from kit import CheckingMutex
from simulation import Killed, SimulatedHub, SimulatedServer

import greenpg
from greenpg import hubs
from greenpg.pool import core, health, ledger, lending, opening, returning
from greenpg.pool.slot import CLOSED

pytestmark = pytest.mark.only_hub("threads")

SEEDS = int(os.environ.get("GREENPG_SIMULATIONS", "2000"))


class Simulation:
    """A pool, its clients, and somebody who kills them."""

    def __init__(self, monkeypatch, seed):
        self.hub = SimulatedHub(seed)
        self.random = self.hub.random
        self.server = SimulatedServer(self.hub, failure_rate=self.random.choice([0.0, 0.0, 0.3]))
        random.seed(seed)  # the pool's own
        monkeypatch.setattr(opening, "connect_as_instrumented", lambda dsn, *_: self.server.connect(dsn))
        monkeypatch.setattr(health, "say_goodbye", self.server.say_goodbye)
        monkeypatch.setattr(health, "execute_alone", lambda conn, cur, query, vars: cur.execute(query))
        self.old_hub = hubs.use(self.hub)
        max_size = self.random.randint(1, 4)
        self.pool = greenpg.ConnectionPool(
            min_size=self.random.randint(0, max_size),
            max_size=max_size,
            timeout=self.random.choice([0.01, 0.05, 5.0]),
            max_waiting=self.random.choice([0, 0, 3]),
            max_lifetime=self.random.choice([0.05, 3600]),
            reset=self.random.choice([None, None, self.reset]),
            check=self.random.choice([None, None, self.check]),
            check_idle=self.random.choice([0.01, 30]),
            max_idle=0.04,
            leak_after=self.random.choice([None, None, 0.02]),
            refused_after=self.random.choice([0.0, 0.02, 2.0]),
            num_workers=self.random.choice([1, 3]),
        )
        self.core = self.pool._core
        self.ledger = self.core.ledger
        self.core.mutex = CheckingMutex(self.core.mutex, self.ledger.check_invariants)
        self.served = self.killed = self.refused = 0

    def reset(self, conn):
        conn.execute()
        if self.random.random() < 0.9:
            conn.commit()

    def check(self, conn):
        self.server.delay()
        if self.random.random() < 0.1:
            raise ZeroDivisionError

    def meddle(self):
        """What an administrator may do while the clients work."""
        self.hub.sleep(self.random.random() * 0.2)
        ledger = self.ledger
        deed = self.random.choice(["restart", "drain", "check", "resize", "pause", "nothing"])
        if deed == "restart":
            self.server.restart()
        elif deed == "resize":
            max_size = self.random.randint(1, 5)
            self.pool.resize(self.random.randint(0, max_size), max_size)
            self.server.most_open = 0
        elif deed == "pause":
            self.pool.pause()
            self.hub.sleep(self.random.random() * 0.05)
            self.pool.resume()
        elif deed != "nothing":
            getattr(self.pool, deed)()
        ledger.check_invariants()

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
        except (psycopg2.Error, ZeroDivisionError):  # the pool's own errors among them
            self.refused += 1

    def use(self, conn):
        for _ in range(self.random.randint(0, 2)):
            conn.execute()
        if self.random.random() < 0.1:
            conn.break_down()
        if self.random.random() < 0.1:
            raise ZeroDivisionError

    def run_until(self, condition):
        end = self.hub.now() + 120  # a slot may have to try again and again
        while not condition() and self.hub.now() < end:
            self.hub.run(until=self.hub.now() + 0.5)
        self.hub.run(until=self.hub.now() + 0.5)  # what is under way in the background

    def clients_left(self):
        return sum(not task.dead for task in self.tasks)

    def run(self, clients=25):
        self.hub.run()  # makes this greenlet the loop
        self.tasks = []
        for _ in range(clients):
            task = self.hub.spawn(self.client)
            self.tasks.append(task)
            for _ in range(self.random.choice([0, 1, 1, 2])):
                when = self.hub.now() + self.random.random() * 0.3
                self.hub.at(when, lambda task=task: self.hub.throw(task, Killed))
        for _ in range(2):
            task = self.hub.spawn(self.meddle)
            if self.random.random() < 0.3:
                when = self.hub.now() + self.random.random() * 0.2
                self.hub.at(when, lambda task=task: self.hub.throw(task, Killed))
        if self.random.random() < 0.2:
            self.hub.at(self.hub.now() + 0.1, lambda: self.hub.spawn(self.pool.close))
        self.run_until(lambda: not (self.clients_left() or self.ledger.opening or self.ledger.ending))
        self.check_the_end()

    def check_the_end(self):
        for error in self.hub.errors:
            raise error
        ledger = self.ledger
        ledger.check_invariants()
        assert self.clients_left() == 0, "somebody waits for ever"
        assert ledger.lent_count == 0, "a connection is lost"
        assert not ledger.opening
        assert not ledger.resetting
        assert not ledger.ending
        assert self.server.most_open <= ledger.most_slots
        assert len(self.server.open) == ledger.size, "a connection is open without a slot"
        assert self.core.workers.count == 0
        assert self.pool.closed or not self.served or ledger.size >= ledger.min_size, "lost ones are not replaced"
        if not self.pool.closed:
            self.server.failure_rate = 0.0
            self.pool.timeout = 5.0
            self.pool.resume()
            self.core.options = dataclasses.replace(self.core.options, check=None)
            conns = []
            self.hub.spawn(lambda: conns.extend(self.pool.getconn() for _ in range(ledger.max_size)))
            self.run_until(lambda: len(conns) == ledger.max_size)
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
@pytest.mark.timeout(400)
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


CORE = (core, "PoolCore")
LEDGER = (ledger, "Ledger")


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ((lending, "_wait_in_line"), "except BaseException:", "except Exception:"),
        ((lending, "_wait_in_line"), "core.pass_on(slot)", "pass"),
        ((returning, "_clean_or_replace"), "except BaseException:", "except Exception:"),
        ((*CORE, "pass_on"), "self.ledger.give(slot)", "not self.ledger.idle.append(slot)"),
        ((*LEDGER, "grow"), "max(len(self.line),", "max(len(self.line) if self.slots else 0,"),
        ((*LEDGER, "resume"), "while self.line and", "while not self.line and"),
        ((lending, "_is_healthy"), "except BaseException:", "except AssertionError:"),
        ((*LEDGER, "replace_lost"), "if len(self.slots) < self.min_size or", "if"),
    ],
)
@pytest.mark.timeout(400)
def test_mutants_are_caught(monkeypatch, caplog, function, old, new):
    caplog.set_level("CRITICAL", "greenpg.pool")
    mutate(monkeypatch, function, old, new)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        for seed in range(500):
            simulate(monkeypatch, seed)


def test_a_closed_slot_stays_closed():
    table = ledger.Ledger(1, 1)
    slot = table.reserve()
    table.move(slot, CLOSED)
    with pytest.raises(AssertionError, match="a slot that is CLOSED can't become IDLE"):
        table.give(slot)
    assert not table.slots
