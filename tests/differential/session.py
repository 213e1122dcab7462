"""Runs programs on psycopg2, whatever it is made of here, and notes all that can be seen. Knows nothing of greenpg."""

from __future__ import annotations

import datetime
import decimal
import functools
import io
import logging
import re
import threading
import time
import zlib

import psycopg2
from psycopg2 import extensions, extras, sql

from .blocks import PlainBlocks

SCHEMA = """
CREATE SEQUENCE s;
CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'), n int DEFAULT nextval('s'));
CREATE TABLE p (id int, t_id int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
CREATE TYPE pair AS (a int, b text);
CREATE FUNCTION f(x int, y text DEFAULT 'y') RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'f of %', x; RETURN y || x; END $$;
CREATE FUNCTION fails(x int) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'no %', x USING ERRCODE = 'XX' || lpad(x::text, 3, '0'), HINT = 'a hint',
        DETAIL = 'a detail', TABLE = 't', COLUMN = 'v'; END $$;
CREATE FUNCTION several(x int) RETURNS SETOF int LANGUAGE sql AS $$ SELECT generate_series(1, x) $$;
CREATE PROCEDURE commits(x int) LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO t VALUES (x, 'commits') ON CONFLICT DO NOTHING; COMMIT; END $$;
CREATE FUNCTION sleeps_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.t_id = 77 THEN RAISE EXCEPTION 'refused at the commit'; END IF; RETURN NEW; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON p DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION sleeps_late();
"""

LOOK = """
SELECT (SELECT array_agg(t.* ORDER BY id)::text FROM t), (SELECT array_agg(p.* ORDER BY id, t_id)::text FROM p),
    (SELECT array[last_value::text, is_called::text]::text FROM s),
    (SELECT array_agg(relname ORDER BY relname)::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'),
    (SELECT array_agg(gid ORDER BY gid)::text FROM pg_prepared_xacts WHERE database = current_database()),
    (SELECT array_agg(m.oid::text || lo_get(m.oid)::text ORDER BY m.oid)::text FROM pg_largeobject_metadata m
        WHERE m.oid < 16384)
"""

CLEAN = """
DROP TABLE IF EXISTS made;
DELETE FROM p; DELETE FROM t;
SELECT setval('s', 1, false);
SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
"""

_CONNECTION_ATTRIBUTES = (
    *("status", "autocommit", "isolation_level", "readonly", "deferrable", "encoding", "closed", "async_"),
    *("cursor_factory", "server_version", "protocol_version", "notices"),
)
_PARAMETERS = (
    "client_encoding",
    "DateStyle",
    "TimeZone",
    "standard_conforming_strings",
    "default_transaction_read_only",
)
_CURSOR_ATTRIBUTES = (
    *("rowcount", "rownumber", "statusmessage", "description", "query", "lastrowid", "closed", "name", "arraysize"),
    *("itersize", "scrollable", "withhold", "row_factory", "connection"),
)
_LOBJECT_ATTRIBUTES = ("closed", "mode", "oid")
_DIAGNOSTICS = [name for name in dir(extensions.Diagnostics) if not name.startswith("_")]
_FIRST_USER_OID = 16384


class Killed(BaseException):
    """What is thrown into a statement, as a kill or a timeout would be."""


class KilledToo(Exception):
    """The same, but an Exception."""


class KilledByDriver(psycopg2.OperationalError):
    """The same, but an error of psycopg2's."""


KINDS = {"Killed": Killed, "KilledToo": KilledToo, "KilledByDriver": KilledByDriver}


class Boom(Exception):
    """What the programs raise by themselves."""


class Unadaptable:
    pass


class Raising:
    """An adapter of its own, that fails."""

    def __conform__(self, protocol):
        raise Boom("adapting")


class Querying:
    """An adapter that uses the connection for which it adapts."""

    def __init__(self, conn, query="SELECT 1"):
        self._conn = conn
        self._query = query

    def __conform__(self, protocol):
        return self

    def getquoted(self):
        with self._conn.cursor() as cur:
            cur.execute(self._query)
        return b"'queried'"


class Text(str):
    """A str, and not quite."""


class MyCursor(extensions.cursor):
    """As users write them."""

    def execute(self, query, vars=None):
        self.executed = getattr(self, "executed", 0) + 1
        return super().execute(query, vars)


class MyConnection(extensions.connection):
    """As users write them."""


class BadFile(io.StringIO):
    def read(self, size=-1):
        raise Boom("reading")

    def write(self, text):
        raise Boom("writing")


class Side:
    """What differs between the two: how a task is run beside, how a statement is interrupted, and greenpg's blocks."""

    blocks = PlainBlocks

    def run_beside(self, function):
        """Begins the function; what is returned waits for its end."""
        thread = threading.Thread(target=function)
        thread.start()
        return thread.join

    def current(self):
        return None

    def interrupt(self, conn, task, exception):
        """Plain psycopg2 can't be killed: the statement is cancelled."""
        conn.cancel()


class Session:
    """One database of one side; runs programs in it, one after the other."""

    def __init__(self, dsn, side):
        self._dsn = dsn
        self._side = side
        database = extensions.parse_dsn(dsn)["dbname"]
        self._observer = psycopg2.connect(dsn)
        self._observer.autocommit = True
        self._watcher = psycopg2.connect(dsn)
        self._watcher.autocommit = True
        with self._observer.cursor() as cur:
            cur.execute("SET statement_timeout = '20s'")
            cur.execute("SELECT count(*) FROM pg_class WHERE relname = 's' AND relkind = 'S'")
            if not cur.fetchone()[0]:
                cur.execute(SCHEMA)
                # A transaction that is prepared keeps its locks from the one that comes after it.
                cur.execute(f"ALTER DATABASE {database} SET lock_timeout = '50ms'")
                cur.execute(f"ALTER DATABASE {database} SET statement_timeout = '15s'")
            cur.execute("SET lock_timeout = 0")
        self._xids = {f"x{number}": self._observer.xid(number, f"x{number}_{database}", "b") for number in (1, 2)}
        names = {str(xid): name for name, xid in self._xids.items()}
        names[database] = "DATABASE"
        self._names = names
        self._own_names = re.compile("|".join([*map(re.escape, names), r"tuple \(\d+,\d+\)"]))
        self._database = database
        self._clean()
        self._pristine = self._look()

    def close(self):
        self._observer.close()
        self._watcher.close()

    # -- programs

    def run(self, program):
        """What was seen: for each step, and the end, a list of looks, which are dicts."""
        self._log = io.StringIO()
        self._notes = []
        seen = []
        blocks = self._side.blocks(self._dsn)
        self._namespace = namespace = {
            **_HELPERS,
            "transaction": blocks.transaction,
            "lent": blocks.lent,
            "notify": self._notify,
            "see": self._see,
            "tell": lambda value: self._note({"told": self.show(value)}),
            "kill": self._kill,
            "cancel": self._cancel,
            "committed": self._look,
            "terminate": self._terminate,
            "recover": self._recover,
            "log": self._log,
            "gid": f"gid_{self._database}",
            "connect": self._connect,
            **self._xids,
        }
        for step in program:
            self._notes = []
            self._do(step, namespace)
            seen.append(self._notes)
        conn = namespace.get("conn")
        closing = self._tried(conn.close) if isinstance(conn, extensions.connection) else None
        namespace.clear()
        self._namespace = None
        blocks.close()
        left = self._look()
        if left != self._pristine:
            self._clean()
        seen.append([{"closing": closing, "tables": self.show(left), "log": self.show(self._log.getvalue())}])
        return seen

    def _do(self, step, namespace):
        try:
            try:
                code, is_expression = _compiled(step)
                value = eval(code, namespace) if is_expression else exec(code, namespace)
            except (Exception, Killed) as error:
                self._note({"raises": self._show_error(error)})
                error.__traceback__ = None
            else:
                self._note({"value": self.show(value)})
        finally:
            namespace.pop("error", None)

    def _see(self, error=None):
        """In the middle of a step, or an error that the step has caught."""
        self._note({} if error is None else {"raises": self._show_error(error)})

    def _note(self, seen):
        seen.update(self._observe())
        self._notes.append(seen)

    def _connect(self, factory=None, **options):
        conn = psycopg2.connect(self._dsn, connection_factory=factory, **options)
        if isinstance(conn, extras.LoggingConnection):
            conn.initialize(self._log)
        return conn

    # -- interruptions

    def _kill(self, function, kind="Killed"):
        """Throws an exception into the function while it is in pg_sleep(). Plain psycopg2 has its statement cancelled
        and is to be in the same state after it."""
        exception = KINDS[kind]
        try:
            return self._interrupted(function, exception)
        except extensions.QueryCanceledError:
            raise exception("killed") from None

    def _cancel(self, function):
        return self._interrupted(function, None)

    def _interrupted(self, function, exception):
        conn = self._namespace["conn"]
        pid = None if conn.closed else conn.info.backend_pid
        task = self._side.current()
        over = []

        def interrupt():
            with self._watcher.cursor() as cur:
                while not over:
                    cur.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", (pid,))
                    if cur.rowcount and not over:
                        if exception is None:
                            conn.cancel()
                        else:
                            self._side.interrupt(conn, task, exception("killed"))
                        return
                    time.sleep(0.001)

        join = self._side.run_beside(interrupt)
        try:
            return function()
        finally:
            over.append(True)
            join()

    def _terminate(self):
        """The server ends the connection, now."""
        conn = self._namespace["conn"]
        if conn.closed:
            return
        pid = conn.info.backend_pid
        with self._watcher.cursor() as cur:
            cur.execute("SELECT pg_terminate_backend(%s)", (pid,))
            while True:  # pg_terminate_backend() itself would look ten times a second only
                cur.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,))
                if not cur.rowcount:
                    break
                time.sleep(0.001)

    def _notify(self, payload):
        """By another connection."""
        with self._observer.cursor() as cur:
            cur.execute("SELECT pg_notify('chan', %s)", (payload,))

    def _recover(self):
        return sorted(str(xid) for xid in self._namespace["conn"].tpc_recover() if xid.database == self._database)

    # -- the database, seen by another connection

    def _look(self):
        with self._observer.cursor() as cur:
            cur.execute(LOOK)
            return cur.fetchone()

    def _clean(self):
        with self._observer.cursor() as cur:
            # A connection that isn't closed, whyever, doesn't disturb the next program.
            cur.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND NOT pid = ANY (%s)",
                ([self._observer.info.backend_pid, self._watcher.info.backend_pid],),
            )
            cur.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
            for (gid,) in cur.fetchall():
                cur.execute("ROLLBACK PREPARED %s", (gid,))
            cur.execute(CLEAN)

    # -- what can be seen

    def _observe(self):
        seen = {}
        namespace = self._namespace
        for name, thing in list(namespace.items()):
            if name == "it":  # what iter() returns is a cursor or isn't
                continue
            if isinstance(thing, extensions.cursor):
                self._observe_attributes(seen, name, thing, _CURSOR_ATTRIBUTES)
                seen[f"type({name})"] = _class_name(thing)
            elif isinstance(thing, extensions.lobject):
                self._observe_attributes(seen, name, thing, _LOBJECT_ATTRIBUTES)
        conn = namespace.get("conn")
        if isinstance(conn, extensions.connection):
            self._observe_attributes(seen, "conn", conn, _CONNECTION_ATTRIBUTES)
            seen["conn.get_transaction_status()"] = conn.get_transaction_status()
            seen["conn.info"] = (conn.info.status, conn.info.transaction_status)
            seen["conn.notifies"] = [(notify.channel, notify.payload) for notify in conn.notifies]
            seen["conn's typecasters"] = (len(conn.string_types), len(conn.binary_types))
            for parameter in _PARAMETERS:
                seen[parameter] = self._tried(conn.get_parameter_status, parameter)
        return seen

    def _observe_attributes(self, seen, name, thing, attributes):
        for attribute in attributes:
            try:
                value = getattr(thing, attribute)
            except Exception as error:
                value = f"{type(error).__name__}: {error}"
            else:
                if type(value) not in _PLAIN:
                    value = self.show(value)
            seen[f"{name}.{attribute}"] = value

    def _tried(self, function, *args):
        try:
            return function(*args)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def show(self, value):
        """The value, as something that can be compared and printed, of either side."""
        if value is None or isinstance(value, bool | float | decimal.Decimal | datetime.date | datetime.time):
            return repr(value)
        if isinstance(value, int):
            return repr(int(value))
        if isinstance(value, bytes):
            return "b" + self.show(value.decode("latin1"))
        if isinstance(value, str):
            text = self._own_names.sub(self._own_name, value)
            return repr(text) if len(text) <= _LONGEST else f"{text[:50]!r}... of {len(text)}: {hash_of(text)}"
        if isinstance(value, memoryview):
            return f"memoryview({bytes(value)!r})"
        if isinstance(value, extensions.Column):
            type_code = value.type_code if value.type_code < _FIRST_USER_OID else "user"
            return repr((value.name, type_code, *value[2:7], bool(value.table_oid), value.table_column))
        if isinstance(value, extensions.cursor | extensions.connection | extensions.lobject):
            names = [name for name, thing in self._namespace.items() if thing is value and name != "it"]
            return f"<{_class_name(value)} {names}>"
        if isinstance(value, dict):
            items = ", ".join(f"{self.show(key)}: {self.show(item)}" for key, item in value.items())
            return f"{type(value).__name__}({{{items}}})"
        if isinstance(value, tuple | list):
            fields = f"{value._fields}" if hasattr(value, "_fields") else ""
            return f"{type(value).__name__}{fields}({', '.join(map(self.show, value))})"
        if isinstance(value, type):
            return value.__name__
        return f"<{type(value).__name__}>"

    def _own_name(self, match):
        return self._names.get(match.group(), "tuple")

    def _show_error(self, error):
        kind = next(kind for kind in type(error).__mro__ if not kind.__module__.startswith("greenpg"))
        shown = {"class": f"{kind.__module__}.{kind.__qualname__}", "str": self.show(str(error))}
        if type(error).__name__ in KINDS:
            return shown
        if isinstance(error, psycopg2.Error):
            shown["args"] = self.show(error.args)
            shown["pgcode"] = error.pgcode
            shown["pgerror"] = self.show(error.pgerror)
            shown["cursor"] = self.show(error.cursor)
            for name in _DIAGNOSTICS:
                shown[f"diag.{name}"] = self.show(getattr(error.diag, name))
        if error.__cause__ is not None:
            shown["cause"] = f"{type(error.__cause__).__name__}: {self.show(str(error.__cause__))}"
        return shown


def _class_name(value):
    """greenpg's own classes stand for psycopg2's."""
    name = type(value).__name__
    return _STANDS_FOR.get(name, name)


_STANDS_FOR = {"Connection": "connection", "Cursor": "cursor", "ServerCursor": "cursor", "LargeObject": "lobject"}


def hash_of(value):
    return zlib.crc32(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))


_LONGEST = 2000
_PLAIN = {int, bool, type(None)}


@functools.lru_cache(maxsize=4096)
def _compiled(step):
    try:
        return compile(step, "<step>", "eval"), True
    except SyntaxError:
        return compile(step, "<step>", "exec"), False


def plain_function(*args, **kwargs):
    return extensions.cursor(*args, **kwargs)


def dict_function(*args, **kwargs):
    return extras.DictCursor(*args, **kwargs)


def my_function(conn, name=None, **kwargs):
    return MyCursor(conn, name, **kwargs)


_HELPERS = {
    "psycopg2": psycopg2,
    "extensions": extensions,
    "extras": extras,
    "sql": sql,
    "StringIO": io.StringIO,
    "BytesIO": io.BytesIO,
    "BadFile": BadFile,
    "Boom": Boom,
    "Unadaptable": Unadaptable,
    "Raising": Raising,
    "Querying": Querying,
    "Text": Text,
    "MyConnection": MyConnection,
    "MyCursor": MyCursor,
    "partial": functools.partial,
    "plain_function": plain_function,
    "dict_function": dict_function,
    "my_function": my_function,
    "Decimal": decimal.Decimal,
    "datetime": datetime,
    "logging": logging,
}
