"""A class of one's own as an SQL value: psycopg2's Point example, for adaptation and casting, on a pool.

Run it with `python examples/point_adapter.py [DSN]`.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from dataclasses import dataclass  # noqa: E402

from psycopg2.extensions import AsIs, adapt, new_type, register_adapter, register_type  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()


@dataclass
class Point:
    x: float
    y: float


def adapt_point(point: Point) -> AsIs:
    """Python to SQL."""
    x, y = adapt(point.x), adapt(point.y)
    return AsIs(f"'({x}, {y})'::point")


def cast_point(text: str | None, cur: object) -> Point | None:
    """SQL to Python; a NULL comes as None."""
    if text is None:
        return None
    x, y = text.strip("()").split(",")
    return Point(float(x), float(y))


def configure(conn: greenpg.Connection) -> None:
    """The pool calls this for each new connection. register_type() without `conn` would be for all of the process."""
    with conn.cursor() as cur:
        cur.execute("SELECT NULL::point")
        oid = cur.description[0].type_code
    conn.commit()
    register_type(new_type((oid,), "POINT", cast_point), conn)


def main(dsn: str) -> None:
    register_adapter(Point, adapt_point)
    with greenpg.ConnectionPool(dsn, configure=configure) as pool:
        with pool.cursor() as cur:
            cur.execute("CREATE TEMPORARY TABLE atable (apoint point)")
            cur.execute("INSERT INTO atable VALUES (%s), (NULL)", (Point(1.23, 4.56),))
            print("sent:", cur.query.decode())
            cur.execute("SELECT apoint FROM atable")
            for (point,) in cur:
                print("received:", point)


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
