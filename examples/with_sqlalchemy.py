"""SQLAlchemy: the URL is all that changes.

    python examples/with_sqlalchemy.py [DSN]

Needs `pip install 'greenpg[sqlalchemy]'`. Without a DSN it starts the embedded PostgreSQL ('greenpg[embedded]').
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402
from contextlib import nullcontext  # noqa: E402

import gevent  # noqa: E402
from psycopg2.extensions import parse_dsn  # noqa: E402
from sqlalchemy import create_engine, select, text, update  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "sqlalchemy_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


def deposit(engine, amount):
    """A transaction of one statement: two round trips."""
    with Session(engine) as session:
        session.execute(update(Account).values(balance=Account.balance + amount))
        session.commit()


def give_up_after(engine, seconds):
    """The timeout cancels the statement at the server, and keeps the connection; the Session can be used on."""
    with Session(engine) as session:
        try:
            with gevent.Timeout(seconds):
                session.execute(text("SELECT pg_sleep(60)"))
        except gevent.Timeout:
            session.rollback()
        session.execute(text("SELECT 1"))


def main(dsn):
    # In a program of yours: create_engine("postgresql+greenpg://user:password@host/database", pool_size=5)
    engine = create_engine("postgresql+greenpg://", connect_args=parse_dsn(dsn), pool_size=5, max_overflow=0)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Account(balance=0))
        session.commit()

    started = time.monotonic()
    gevent.joinall([gevent.spawn(deposit, engine, 1) for _ in range(200)], raise_error=True)
    with Session(engine) as session:
        print(f"200 greenlets on 5 connections have deposited {session.scalar(select(Account.balance))}", end=" ")
    print(f"in {time.monotonic() - started:.2f} s")

    gevent.joinall([gevent.spawn(give_up_after, engine, 0.1) for _ in range(20)], raise_error=True)
    print("connections opened, after 20 timeouts:", engine.pool.stats()["connections_num"])

    # The engine's pool is a greenpg.ConnectionPool: for what SQLAlchemy has no word for.
    with engine.pool.greenpg_pool.cursor() as cur, cur.copy("COPY sqlalchemy_account TO STDOUT") as copy:
        print("COPY says:", list(copy.rows()))
    print(engine.pool.status())
    Base.metadata.drop_all(engine)
    engine.dispose()


if __name__ == "__main__":
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn)
