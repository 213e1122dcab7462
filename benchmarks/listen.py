"""LISTEN for many: 1,000 subscribers on one connection, all of one channel, or each of its own.

    python benchmarks/listen.py [DSN] [--rounds 5] [--peers greenpg,psycogreen-queues] [--quick]

The notifications are sent by a process of its own (notifier.py).
"""

import sys
import time
from collections import defaultdict
from contextlib import closing, contextmanager
from functools import partial

from harness import Bars, Benchmark, Latencies
from notifier import Notifier
from peers.base import Clock

SUBSCRIBERS = 1_000
SAME, OWN = f"{SUBSCRIBERS:,} subscribers of one channel", f"{SUBSCRIBERS:,} channels with one subscriber each"
AT_ONCE = 10
ALL_WAIT_SECONDS = 0.05
"""Until all subscribers wait, before anything is sent to them."""


def plans(sizes):
    """For each scenario: how many channels, how many notifications one by one, the pause between them, and how many
    at full speed."""
    return {
        SAME: (1, 20, 0.02, sizes["fan_out"]),
        OWN: (SUBSCRIBERS, 1_000, 0.0003, sizes["notifications"]),
    }


def channels_of_subscribers(channels):
    return [f"channel_{number % channels}" for number in range(SUBSCRIBERS)]


def note_delivery(latencies, index, payload):
    now = time.monotonic()
    number, sent_at = payload.split()
    if int(number) != index:
        raise AssertionError(f"notification {number} came instead of {index}")
    latencies.append(now - float(sent_at))


def numbers(one_by_one, fast, connections):
    return {
        "deliveries_per_second": fast["per_second"],
        "delivery_cpu_us": fast["cpu_us"],
        **{metric: one_by_one[metric] for metric in ("p50_ms", "p99_ms", "max_ms")},
        "connections": connections,
    }


# -- greenlets. Each of these gives a function for each subscriber, that waits for its next notification.


@contextmanager
def greenpg_listener(dsn, channels):
    import greenpg

    greenpg.patch()
    with greenpg.Listener(dsn) as listener:
        yield [listener.subscribe(channel).__next__ for channel in channels]


@contextmanager
def psycogreen(dsn, channels):
    import psycopg2
    from gevent.socket import wait_read
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True

        def notes():
            while True:
                wait_read(conn.fileno())
                conn.poll()
                while conn.notifies:
                    yield conn.notifies.pop(0)

        with queues(conn.cursor().execute, notes, channels) as receivers:
            yield receivers


@contextmanager
def psycopg3(dsn, channels):
    import psycopg

    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        queues(conn.execute, conn.notifies, channels) as receivers,
    ):
        yield receivers


@contextmanager
def queues(execute, notes, channels):
    """What people write: one greenlet reads, and puts into the queues of the subscribers."""
    import gevent
    from gevent.queue import Queue

    subscribers = defaultdict(list)
    for channel in channels:
        subscribers[channel].append(Queue())
    for channel in subscribers:
        execute(f"LISTEN {channel}")

    def read():
        for note in notes():
            for queue in subscribers[note.channel]:
                queue.put(note)

    reader = gevent.spawn(read)
    try:
        yield [queue.get for its_queues in subscribers.values() for queue in its_queues]
    finally:
        reader.kill()


def measure_green(subscribe, dsn, sizes):
    from gevent import monkey

    monkey.patch_all()
    import gevent

    def receive(next_note, count, latencies):
        for index in range(count):
            note_delivery(latencies, index, next_note().payload)

    def all_receive(count, send):
        latencies = []
        tasks = [gevent.spawn(receive, receiver, count, latencies) for receiver in receivers]
        gevent.sleep(ALL_WAIT_SECONDS)
        with Clock() as clock:
            send()
            gevent.joinall(tasks, raise_error=True)
        return clock.numbers(latencies)

    found = {}
    with Notifier(dsn) as notifier:
        before = notifier.connections()
        for scenario, (channels, paced, pause, at_full_speed) in plans(sizes).items():
            with subscribe(dsn, channels_of_subscribers(channels)) as receivers:
                send = partial(notifier.send, channels)
                all_receive(1, partial(send, channels))  # a warm-up
                one_by_one = all_receive(paced // channels, partial(send, paced, pause=pause))
                fast = all_receive(at_full_speed // channels, partial(send, at_full_speed, at_once=AT_ONCE))
                found[scenario] = numbers(one_by_one, fast, notifier.connections() - before)
    return found


# -- asyncio


def measure_asyncpg(dsn, sizes):
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(_measure_asyncpg(dsn, sizes))
    finally:
        loop.close()


async def _measure_asyncpg(dsn, sizes):
    import asyncio

    import asyncpg
    from peers.asyncpg_pool import address

    async def receive(queue, count, latencies):
        for index in range(count):
            note_delivery(latencies, index, await queue.get())

    async def all_receive(count, send):
        latencies = []
        tasks = [asyncio.ensure_future(receive(queue, count, latencies)) for queue in receivers]
        await asyncio.sleep(ALL_WAIT_SECONDS)
        with Clock() as clock:
            send()
            await asyncio.gather(*tasks)
        return clock.numbers(latencies)

    found = {}
    with Notifier(dsn) as notifier:
        before = notifier.connections()
        for scenario, (channels, paced, pause, at_full_speed) in plans(sizes).items():
            conn = await asyncpg.connect(**address(dsn))
            receivers = []
            for channel in channels_of_subscribers(channels):
                queue = asyncio.Queue()
                receivers.append(queue)
                await conn.add_listener(channel, lambda *note, put=queue.put_nowait: put(note[-1]))
            send = partial(notifier.send, channels)
            await all_receive(1, partial(send, channels))  # a warm-up
            one_by_one = await all_receive(paced // channels, partial(send, paced, pause=pause))
            fast = await all_receive(at_full_speed // channels, partial(send, at_full_speed, at_once=AT_ONCE))
            found[scenario] = numbers(one_by_one, fast, notifier.connections() - before)
            await conn.close()
    return found


BENCHMARK = Benchmark(
    __file__,
    title="LISTEN for 1,000 subscribers",
    description=(
        f"One connection listens for {SUBSCRIBERS:,} tasks; another process notifies. Deliveries per second are those "
        f"of notifications sent as fast as they go, {AT_ONCE} in each transaction; the latencies, from just before "
        "NOTIFY until the task has it, those of notifications one by one: about 50 a second for one channel, which "
        "makes 50,000 deliveries a second, and more than 1,000 a second for as many channels. Each subscriber checks "
        "that it gets all, in order, which is a part of what a delivery costs. The peers are what people write: one "
        "task that reads, and a queue for each subscriber."
    ),
    peers={
        "greenpg": partial(measure_green, greenpg_listener),
        "psycogreen-queues": partial(measure_green, psycogreen),
        "psycopg-queues": partial(measure_green, psycopg3),
        "asyncpg-queues": measure_asyncpg,
    },
    sizes={"notifications": 10_000, "fan_out": 200},
    quick_sizes={"notifications": 5_000, "fan_out": 50},
    pictures=[
        Bars("one-channel", "deliveries_per_second", [SAME], "Each notification goes to 1,000 tasks"),
        Bars("own-channels", "deliveries_per_second", [OWN], "Each notification goes to one of 1,000 tasks"),
        Latencies("latency", [SAME, OWN], "From NOTIFY to the subscriber"),
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
