"""A plain WSGI app on a greenpg pool: TechEmpower's database endpoints, and a page that shows the pool at work.

    greenpg demo                            # runs it with a database of its own

or by hand, in this folder:

    export GREENPG_DSN=postgresql://user@host/dbname
    python webapp.py                        # creates the tables
    gunicorn -c gunicorn_conf.py webapp

`GREENPG_POOL_SIZE` (default 10) is the most connections a worker has.
"""

from __future__ import annotations

import html
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from gevent.pool import Group
from gevent.queue import Queue
from psycopg2.extras import execute_batch

import greenpg

logger = logging.getLogger(__name__)

DSN = os.environ.get("GREENPG_DSN", "")
POOL_SIZE = int(os.environ.get("GREENPG_POOL_SIZE", "10"))
PAGE = Path(__file__).with_name("webapp.html").read_bytes()

WORLD_ROWS = 10_000
MAX_SECONDS = 10.0
MAX_BURST = 1_000

FORTUNES = (
    "fortune: No such file or directory",
    "A computer scientist is someone who fixes things that aren't broken.",
    "After enough decimal places, nobody gives a damn.",
    "A bad random number generator: 1, 1, 1, 1, 1, 4.33e+67, 1, 1, 1",
    "A computer program does what you tell it to do, not what you want it to do.",
    "Emacs is a nice operating system, but I prefer UNIX. — Tom Christaensen",
    "Any program that runs right is obsolete.",
    "A list is only as strong as its weakest link. — Donald Knuth",
    "Feature: A bug with seniority.",
    "Computers make very fast, very accurate mistakes.",
    '<script>alert("This should not be displayed in a browser alert box.");</script>',
    "フレームワークのベンチマーク",
)

# It connects at its first use, so that it may be made while the module is imported.
pool = greenpg.ConnectionPool(DSN, min_size=min(4, POOL_SIZE), max_size=POOL_SIZE, name="webapp")


# -- requests and responses

Query = Mapping[str, str]


@dataclass
class Response:
    content_type: str
    body: bytes | Iterator[bytes]
    status: str = "200 OK"
    headers: list[tuple[str, str]] = field(default_factory=list)


class BadRequest(Exception):
    """The text is for whoever made the request."""


def json_response(value: object) -> Response:
    return Response("application/json", json.dumps(value).encode())


def html_response(page: bytes) -> Response:
    return Response("text/html; charset=utf-8", page)


def text_response(status: str, text: str, *headers: tuple[str, str]) -> Response:
    return Response("text/plain; charset=utf-8", f"{text}\n".encode(), status, list(headers))


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    response = respond(environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
    headers = [("Content-Type", response.content_type), *response.headers]
    body: Iterable[bytes] = response.body
    if isinstance(response.body, bytes):
        headers.append(("Content-Length", str(len(response.body))))
        body = [response.body]
    start_response(response.status, headers)
    return body


def respond(path: str, query_string: str) -> Response:
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        return text_response("404 Not Found", f"There is nothing here. There is: {'  '.join(ENDPOINTS)}")
    try:
        return endpoint({name: values[-1] for name, values in parse_qs(query_string).items()})
    except BadRequest as error:
        return text_response("400 Bad Request", str(error))
    except (greenpg.PoolTimeout, greenpg.TooManyRequests) as error:
        logger.warning("%s", error)  # it names tasks and servers, which is nobody's business outside
        return text_response(
            "503 Service Unavailable",
            f"The database is busy: none of its {pool.max_size} connections became free in {pool.timeout:g} s. "
            "Please try again.",
            ("Retry-After", "5"),
        )


def seconds_asked(query: Query, default: str) -> float:
    text = query.get("seconds", default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise BadRequest(f"seconds must be a number from 0 to {MAX_SECONDS:g}, not {text!r}")
    return min(max(seconds, 0.0), MAX_SECONDS)


# -- TechEmpower's endpoints (their rules: one statement for each row that is read, and nothing cached)


def queries_asked(query: Query) -> int:
    """TechEmpower's rule: at least 1, at most 500, and 1 for what is no number."""
    try:
        queries = int(query.get("queries", "1"))
    except ValueError:
        return 1
    return min(max(queries, 1), 500)


def read_world(cursor: Any, world_id: int) -> dict[str, int]:
    cursor.execute("SELECT id, randomnumber FROM world WHERE id = %s", (world_id,))
    world_id, random_number = cursor.fetchone()
    return {"id": world_id, "randomNumber": random_number}


def random_id() -> int:
    return random.randint(1, WORLD_ROWS)


def db(query: Query) -> Response:
    with pool.cursor() as cursor:
        return json_response(read_world(cursor, random_id()))


def queries(query: Query) -> Response:
    with pool.cursor() as cursor:
        return json_response([read_world(cursor, random_id()) for _ in range(queries_asked(query))])


def updates(query: Query) -> Response:
    # Each transaction locks its rows in the order of their ids: otherwise two of them could wait for each other.
    # For the same reason there is a statement for each row: a joined UPDATE locks in the order the planner likes.
    ids = sorted(random.sample(range(1, WORLD_ROWS + 1), queries_asked(query)))
    with pool.cursor() as cursor:
        worlds = [read_world(cursor, world_id) for world_id in ids]
        for world in worlds:
            world["randomNumber"] = random.randint(1, WORLD_ROWS)
        execute_batch(cursor, "UPDATE world SET randomnumber = %(randomNumber)s WHERE id = %(id)s", worlds)
    return json_response(worlds)


def fortunes(query: Query) -> Response:
    with pool.cursor() as cursor:
        cursor.execute("SELECT id, message FROM fortune")
        rows = [*cursor.fetchall(), (0, "Additional fortune added at request time.")]
    rows.sort(key=lambda row: row[1])
    cells = "".join(f"<tr><td>{number}</td><td>{html.escape(message)}</td></tr>" for number, message in rows)
    return html_response(
        "<!DOCTYPE html><html><head><title>Fortunes</title></head><body><table>"
        f"<tr><th>id</th><th>message</th></tr>{cells}</table></body></html>".encode()
    )


# -- the pool at work


def slow(query: Query) -> Response:
    seconds = seconds_asked(query, "1")
    with pool.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", (seconds,))
    return json_response({"slept": seconds})


def heartbeat(query: Query) -> Response:
    """Answers without the database, and so at once, unless something blocks the worker."""
    response = json_response({"time": time.time(), "pool": pool.get_stats()})
    response.headers.append(("Cache-Control", "no-store"))
    return response


def burst(query: Query) -> Response:
    """Starts `count` tasks at once, each with a query of `seconds`, and reports on them as server-sent events."""
    try:
        count = int(query.get("count", "200"))
    except ValueError:
        raise BadRequest(f"count must be a whole number from 1 to {MAX_BURST}, not {query['count']!r}") from None
    events = burst_events(min(max(count, 1), MAX_BURST), seconds_asked(query, "0.5"))
    return Response("text/event-stream", events, headers=[("Cache-Control", "no-store")])


def burst_events(count: int, seconds: float) -> Iterator[bytes]:
    changes: Queue[tuple[int, str]] = Queue()

    def run_task(number: int) -> None:
        try:
            with pool.cursor() as cursor:
                changes.put((number, "running"))
                cursor.execute("SELECT pg_sleep(%s)", (seconds,))
        except Exception:
            logger.exception("task %d of a burst failed", number)
            changes.put((number, "failed"))
        else:
            changes.put((number, "done"))

    tasks = Group()
    try:
        for number in range(count):
            tasks.spawn(run_task, number)
        unfinished = count
        while unfinished:
            number, state = changes.get()
            if state != "running":
                unfinished -= 1
            yield f"data: {json.dumps({'task': number, 'state': state})}\n\n".encode()
        yield b"event: end\ndata: {}\n\n"
    finally:
        # The browser may have gone away: then the tasks that wait leave the pool's line, and the others end now.
        tasks.kill()


def index(query: Query) -> Response:
    return html_response(PAGE)


ENDPOINTS: dict[str, Callable[[Query], Response]] = {
    "/": index,
    "/db": db,
    "/queries": queries,
    "/updates": updates,
    "/fortunes": fortunes,
    "/slow": slow,
    "/heartbeat": heartbeat,
    "/burst": burst,
}


# -- the tables


def create_tables(dsn: str) -> None:
    """Create TechEmpower's tables with their rows; does nothing where they exist already."""
    with closing(greenpg.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS world (id integer PRIMARY KEY, randomnumber integer NOT NULL);"
            "CREATE TABLE IF NOT EXISTS fortune (id integer PRIMARY KEY, message varchar(2048) NOT NULL)"
        )
        cursor.execute(
            "INSERT INTO world SELECT id, 1 + floor(random() * %(rows)s) FROM generate_series(1, %(rows)s) AS id "
            "ON CONFLICT DO NOTHING",
            {"rows": WORLD_ROWS},
        )
        execute_batch(
            cursor, "INSERT INTO fortune VALUES (%s, %s) ON CONFLICT DO NOTHING", list(enumerate(FORTUNES, start=1))
        )


if __name__ == "__main__":
    create_tables(DSN)
