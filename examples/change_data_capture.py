"""Print committed changes live: logical replication, decoded from pgoutput, which every PostgreSQL has.

    python examples/change_data_capture.py [DSN]

The server needs wal_level=logical. Without a DSN it starts the embedded PostgreSQL
(`pip install 'greenpg[embedded]'`). A greenlet makes some changes; another prints them as they are committed.
With test_decoding, where it is installed, `message.payload` is readable text as it comes.
"""

from gevent import monkey

monkey.patch_all()

import struct  # noqa: E402
import sys  # noqa: E402
from contextlib import nullcontext  # noqa: E402

import gevent  # noqa: E402
import psycopg2  # noqa: E402
from psycopg2.extras import LogicalReplicationConnection  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

greenpg.patch()


class Decoder:
    """pgoutput, protocol version 1: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html"""

    def __init__(self):
        self.relations = {}

    def decode(self, payload):
        """A line for the message, or None for those that describe a table or begin a transaction."""
        self.data, self.position = payload, 1
        kind = payload[:1]
        if kind == b"R":
            self.relation()
        elif kind == b"C":
            return "COMMIT"
        elif kind in (b"I", b"U", b"D"):
            table, columns = self.relations[self.number("I")]
            action = {b"I": "INSERT", b"U": "UPDATE", b"D": "DELETE"}[kind]
            rows = []
            while self.position < len(payload):
                self.number("c")  # N: the new row; K, O: the key or all of the old one
                rows.append(self.row(columns))
            return f"{action} {table}: " + " -> ".join(map(str, rows))
        return None

    def relation(self):
        oid = self.number("I")
        table = f"{self.text()}.{self.text()}"
        self.number("c")
        columns = []
        for _ in range(self.number("H")):
            self.number("B")
            columns.append(self.text())
            self.number("I")
            self.number("i")
        self.relations[oid] = table, columns

    def row(self, columns):
        values = {}
        self.number("H")
        for column in columns:
            if self.number("c") == b"t":
                length = self.number("I")
                values[column] = self.data[self.position : self.position + length].decode()
                self.position += length
            else:
                values[column] = None  # null, or a large value that hasn't changed
        return values

    def number(self, code):
        (value,) = struct.unpack_from(f"!{code}", self.data, self.position)
        self.position += struct.calcsize(f"!{code}")
        return value

    def text(self):
        end = self.data.index(b"\0", self.position)
        text = self.data[self.position : end].decode()
        self.position = end + 1
        return text


def print_changes(dsn, transactions):
    conn = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection)
    cur = conn.cursor()
    decoder = Decoder()
    options = {"proto_version": 1, "publication_names": "changes"}
    for message in cur.replication_stream(slot_name="changes", options=options):
        line = decoder.decode(message.payload)
        if line is not None:
            print(line, flush=True)
        if line == "COMMIT":
            cur.send_feedback(flush_lsn=message.wal_end)  # these won't come again
            transactions -= 1
            if transactions == 0:
                break  # leaving the loop stops the stream
    cur.drop_replication_slot("changes")
    conn.close()


def make_changes(pool):
    for number in range(1, 4):
        with pool.cursor() as cur:
            cur.execute("INSERT INTO account VALUES (%s, 100)", (number,))
            cur.execute("UPDATE account SET balance = balance - 10 WHERE id = %s", (number,))
        gevent.sleep(0.1)
    with pool.cursor() as cur:
        cur.execute("DELETE FROM account WHERE id = 2")


def main(dsn):
    with greenpg.ConnectionPool(dsn, min_size=1, max_size=2) as pool:
        with pool.cursor() as cur:
            cur.execute("DROP PUBLICATION IF EXISTS changes; DROP TABLE IF EXISTS account")
            cur.execute("CREATE TABLE account (id int PRIMARY KEY, balance int)")
            cur.execute("CREATE PUBLICATION changes FOR TABLE account")
        with pool.cursor() as cur:
            cur.execute("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')")
        printer = gevent.spawn(print_changes, dsn, 4)
        make_changes(pool)
        printer.get()


if __name__ == "__main__":
    with (
        nullcontext(sys.argv[1])
        if len(sys.argv) > 1
        else greenpg.embedded.server(settings={"wal_level": "logical"}) as dsn
    ):
        main(dsn)
