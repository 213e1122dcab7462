"""asyncpg's pool, on asyncio's own loop or on uvloop.

By default it sends a statement that resets the session whenever a connection comes back, a round trip of its own;
`resets=False` does without, which is nearer to what the other pools do.
"""

import asyncio
import time

import asyncpg

from .base import BATCH, SELECT, Clock, check


async def no_reset(conn):
    pass


class Pool:
    def __init__(self, dsn, size, is_uvloop=False, resets=True):
        if is_uvloop:
            import uvloop

            self._loop = uvloop.new_event_loop()
        else:
            self._loop = asyncio.new_event_loop()
        self.size = size
        self._pool = self._loop.run_until_complete(self._open(dsn, {} if resets else {"reset": no_reset}))

    async def _open(self, dsn, options):
        return await asyncpg.create_pool(min_size=self.size, max_size=self.size, **address(dsn), **options)

    def run(self, coroutine):
        """Run it to its end, on the pool's loop."""
        return self._loop.run_until_complete(coroutine)

    # -- the same as BlockingPool's

    def measure(self, operation, tasks, loops, *, warm_up=10):
        return self._loop.run_until_complete(self._measure(getattr(self, operation), tasks, loops, warm_up))

    def measure_alone(self, operation, seconds, *, warm_up=10):
        return self._loop.run_until_complete(self._measure_alone(getattr(self, operation), seconds, warm_up))

    async def _measure(self, work, tasks, loops, warm_up):
        await self._warm_up(work, warm_up)
        latencies = []

        async def loop():
            clock, note = time.perf_counter, latencies.append
            for _ in range(loops):
                start = clock()
                await work()
                note(clock() - start)

        running = [asyncio.ensure_future(loop()) for _ in range(tasks)]  # none runs before this one waits
        with Clock() as clock:
            await asyncio.gather(*running)
        return clock.numbers(latencies)

    async def _measure_alone(self, work, seconds, warm_up):
        await self._warm_up(work, warm_up)
        times, end = 0, time.perf_counter() + seconds
        with Clock() as clock:
            while time.perf_counter() < end:
                times += BATCH
                for _ in range(BATCH):
                    await work()
        return {"us": clock.seconds / times * 1e6, "cpu_us": clock.cpu_seconds / times * 1e6}

    async def _warm_up(self, work, loops):
        async def loop():
            for _ in range(loops):
                check(await work())

        await asyncio.gather(*(loop() for _ in range(self.size)))

    # -- operations

    async def acquire_release(self):
        async with self._pool.acquire():
            pass

    async def one_statement(self):
        return await self._pool.fetchrow(SELECT)

    async def one_transaction(self):
        async with self._pool.acquire() as conn, conn.transaction():
            return await conn.fetchrow(SELECT)

    async def five_statements(self):
        async with self._pool.acquire() as conn, conn.transaction():
            for _ in range(5):
                row = await conn.fetchrow(SELECT)
        return row

    def close(self):
        self._loop.run_until_complete(self._pool.close())
        self._loop.close()


def address(dsn):
    """libpq's connection string as asyncpg's parameters, which takes URIs only."""
    from psycopg2.extensions import parse_dsn

    parameters = parse_dsn(dsn)
    if "dbname" in parameters:
        parameters["database"] = parameters.pop("dbname")
    if "sslmode" in parameters:
        parameters["ssl"] = parameters.pop("sslmode")
    if "hostaddr" in parameters:
        parameters["host"] = parameters.pop("hostaddr")
    known = ("host", "port", "user", "password", "database", "ssl")
    return {name: parameters[name] for name in known if name in parameters}
