"""Makes the programs: lists of steps, each of them Python source. The same seed gives the same program.

What steps may use is in session.py's `_HELPERS` and `Session.run`. Whatever they show must be the same in any
database: no oids, no process ids, no time, and rows in order. They never lock what the observer looks at.
"""

from __future__ import annotations

import random

#: (how the connection is made, its weight)
_CONNECTIONS = [
    ("connect()", 12),
    ("connect(cursor_factory=extras.DictCursor)", 1),
    ("connect(cursor_factory=extras.NamedTupleCursor)", 1),
    ("connect(cursor_factory=extras.RealDictCursor)", 1),
    ("connect(cursor_factory=MyCursor)", 1),
    ("connect(cursor_factory=plain_function)", 1),
    ("connect(cursor_factory=partial(MyCursor))", 1),
    ("connect(extras.LoggingConnection)", 2),
    ("connect(extras.DictConnection)", 1),
    ("connect(MyConnection)", 1),
    ("connect(client_encoding='LATIN1')", 1),
    ("connect(options='-c default_transaction_isolation=serializable')", 1),
    ("connect(options='-c default_transaction_read_only=on')", 1),
]
_FACTORIES = [
    *("extras.DictCursor", "extras.NamedTupleCursor", "extras.RealDictCursor", "MyCursor", "plain_function"),
    *(
        "dict_function",
        "my_function",
        "partial(extras.DictCursor)",
        "extensions.cursor",
        "lambda *a, **k: MyCursor(*a, **k)",
    ),
]

#: Arguments of execute(), as source. {i} is a small number.
_READS = [
    "'SELECT 1'",
    "'SELECT 1 AS a, 2 AS b;'",
    "b'SELECT 1 AS a'",
    "'SELECT %s, %s', ({i}, 'x')",
    "'SELECT %s, %s', [None, True]",
    "'SELECT %(a)s::int AS one', {{'a': {i}}}",
    "'SELECT * FROM t ORDER BY id'",
    "'SELECT * FROM p ORDER BY id'",
    "'SELECT id, v FROM t WHERE id = %s', ({i},)",
    "'SELECT v, count(*) FROM t GROUP BY v ORDER BY v'",
    "'SELECT generate_series(1, %s)', ({i},)",
    "'SELECT i, i * 2 AS twice FROM generate_series(1, {i}) i'",
    "\"VALUES (1, 'a'), (2, 'b')\"",
    "'SELECT NULL::int'",
    "'SELECT'",
    "'SELECT 1 WHERE false'",
    "\"SELECT 'é'\"",
    "\"SELECT '100%'\"",
    "\"SELECT '100%%', %s\", (1,)",
    "\"SELECT 1.5::numeric, 2::float8, true, '2020-01-01'::date, '{{1,2}}'::int[], '{{\\\"a\\\": 1}}'::json\"",
    "\"SELECT ROW(1, 'x')::pair\"",
    "'SHOW transaction_isolation'",
    "'SHOW transaction_read_only'",
    "'SHOW transaction_deferrable'",
    "'SHOW client_encoding'",
    "\"SELECT current_setting('app.x', true)\"",
    "\"SELECT nextval('s')\"",
    "'SELECT count(*) FROM t'",
    "'EXPLAIN (COSTS OFF) SELECT 1'",
    "sql.SQL('SELECT {{}}').format(sql.Literal('q'))",
    "sql.SQL('SELECT * FROM {{}} ORDER BY 1').format(sql.Identifier('t'))",
    "sql.Composed([sql.SQL('SELECT '), sql.Placeholder()]), (3,)",
    "'SELECT %s', (datetime.date(2020, 1, {i}),)",
    "'SELECT %s', (b'\\x00bytes',)",
    "'SELECT %s', (Decimal('1.10'),)",
    "'SELECT %s', ([1, 2],)",
    "'SELECT several(%s)', ({i},)",
    "'EXECUTE prepared'",
    "'(SELECT 1)'",
    "'  \\t\\n select 1'",
    "Text('SELECT 1')",
    "query='SELECT %s', vars=({i},)",
    "'SELECT length(%s)', ('\\n' * 20_000,)",
    "'SELECT %s' + ' ' * 20_000, (1,)",
    "'SELECT generate_series(1, 1200)'",
    "'SELECT %s, %s', (Querying(conn), 1)",
    "'SELECT %s', (Querying(conn, 'SELECT nope'),)",
    "'SELECT %s', (Querying(conn, 'COMMIT'),)",
    "'SELECT %s', (Querying(conn, 'SAVEPOINT a'),)",
    "'SELECT %s', [Querying(connect())]",
    "'FETCH 1 FROM byhand'",
    "'FETCH ALL FROM byhand'",
    "'FETCH 1 FROM n0'",
    "'SELECT pg_sleep(0)'",
    "'SELECT (SELECT count(*) FROM t) FROM pair_missing'",
]
_WRITES = [
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ({i}, 'v{j}')",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ({i}, 'é')",
    "'INSERT INTO t (id, v) VALUES ({i}, NULL)'",
    "\"INSERT INTO t (id, v) VALUES ({i}, 'r') RETURNING id, v, n\"",
    "\"INSERT INTO t (id, v) VALUES ({i}, 'c') ON CONFLICT (id) DO UPDATE SET v = t.v || 'c'\"",
    "\"INSERT INTO t (id, v) SELECT i, 's' FROM generate_series({i}, {i} + 3) i ON CONFLICT DO NOTHING\"",
    "\"UPDATE t SET v = v || 'u' WHERE id = %s\", ({i},)",
    "\"UPDATE t SET v = 'all'\"",
    "'DELETE FROM t WHERE id = %s', ({i},)",
    "'WITH x AS (INSERT INTO t (id) VALUES ({i}) RETURNING id) SELECT * FROM x'",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ({i}, Querying(conn, 'ROLLBACK'))",
    "'DELETE FROM t WHERE id = %s RETURNING *', ({i},)",
    "'INSERT INTO p VALUES ({i}, {j})'",
    "'INSERT INTO p VALUES ({i}, NULL)'",
    "'INSERT INTO p VALUES ({i}, 77)'",
    "'SET CONSTRAINTS ALL IMMEDIATE'",
    "'NOTIFY chan, %s', ('p{i}',)",
    "'LISTEN chan'",
    "'UNLISTEN *'",
    "'SELECT f(%s)', ({i},)",
    "\"DO $$ BEGIN RAISE WARNING 'warned; {i}'; END $$\"",
    "\"DO $$ BEGIN INSERT INTO t VALUES ({i}, 'do'); END $$\"",
    "'CREATE TEMP TABLE tmp (x int)'",
    "'CREATE TEMP TABLE tmp (x int) ON COMMIT DROP'",
    "'INSERT INTO tmp VALUES ({i})'",
    "'CREATE TABLE made (x int)'",
    "'DROP TABLE made'",
    "'DROP TABLE IF EXISTS made'",
    "\"SET app.x = 'session{i}'\"",
    "\"SET LOCAL app.x = 'local{i}'\"",
    "\"SELECT set_config('app.x', 'c{i}', {flag})\"",
    "'RESET app.x'",
    "'RESET ALL'",
    "\"SET client_encoding = 'LATIN1'\"",
    "\"SET client_encoding = 'UTF8'\"",
    "'SET standard_conforming_strings = on'",
    "'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'",
    "'SET TRANSACTION READ ONLY'",
    "'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ'",
    "'SET default_transaction_read_only = {onoff}'",
    "'SET DateStyle = German'",
    "\"SET TimeZone = 'Asia/Tokyo'\"",
    "'PREPARE prepared AS SELECT 7 AS seven'",
    "'DEALLOCATE ALL'",
    "'DECLARE byhand CURSOR FOR SELECT generate_series(1, 5)'",
    "'DECLARE byhand CURSOR WITH HOLD FOR SELECT generate_series(1, 5)'",
    "'CLOSE byhand'",
    "'CLOSE ALL'",
    "'LOCK TABLE p IN SHARE MODE'",
    "'LOCK TABLE p IN SHARE MODE NOWAIT'",
    "'VACUUM t'",
    "'CALL commits({i})'",
    "'DISCARD TEMP'",
    "'DISCARD ALL'",
    "'ANALYZE p'",
    "'CHECKPOINT_'",
]
_BY_HAND = [
    *("'BEGIN'", "'BEGIN;'", "'START TRANSACTION'", "'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY'"),
    *(
        "'COMMIT'",
        "'ROLLBACK'",
        "'END'",
        "'ABORT'",
        "'COMMIT AND CHAIN'",
        "'ROLLBACK AND CHAIN'",
        "'commit ;'",
        "'bEgIn'",
    ),
    *("'/* c */ COMMIT'", "'-- c\\nROLLBACK'", "f\"PREPARE TRANSACTION '{{gid}}'\"", "\"ROLLBACK PREPARED 'nope'\""),
    *("'BEGIN; SELECT 1'", "'COMMIT; SELECT 1'", "'SELECT 1; COMMIT'", "'BEGIN; SELECT 1/0'", "'ROLLBACK; BEGIN'"),
    *("'COMMIT; BEGIN'", "'SELECT nope; COMMIT'", "'SELECT 1; ROLLBACK; SELECT 2'"),
]
_SAVEPOINTS = [
    *("'SAVEPOINT a'", "'SAVEPOINT b'", "'ROLLBACK TO a'", "'ROLLBACK TO SAVEPOINT b'", "'RELEASE a'", "'RELEASE b'"),
]
_FAULTY = [
    "'SELEC 1'",
    "'SELECT nope'",
    "'SELECT * FROM nowhere'",
    "'\\n\\n  SELECT nope'",
    "'SELECT 1,\\n   nope,\\n 3'",
    "\"SELECT 'é', nope\"",
    "'/* é */ SELECT nope'",
    "'SELECT 1/0'",
    "'SELECT 1 FROM t WHERE 1/0 = 1 OR true'",
    "\"SELECT 'x'::int\"",
    '"SELECT \'"',
    "'SELECT ('",
    "'SELECT )'",
    "'SELECT 1 2 3'",
    "'SELECT $1'",
    "'SELECT /* unterminated'",
    "'SELECT $$ unterminated'",
    "'SELECT \"unterminated'",
    "'SELECT fails({i})'",
    "'SELECT fails(i) FROM generate_series({i}, 9) i'",
    "\"INSERT INTO t VALUES ({i}, 'bad')\"",
    "\"INSERT INTO t VALUES (1, 'a'), (1, 'b')\"",
    "\"DO $$ BEGIN RAISE NOTICE 'before'; PERFORM 1/0; END $$\"",
    '"DO $$ BEGIN PERFORM nope; END $$"',
    '"DO $$ BEGN END $$"',
    "'SELECT %s'",
    "'SELECT %s', ()",
    "'SELECT %s', (1, 2)",
    "'SELECT %s, %s', (1,)",
    "'SELECT %(a)s', {{'b': 1}}",
    "'SELECT %(a)s', (1,)",
    "'SELECT %', (1,)",
    "'SELECT %d', (1,)",
    "'SELECT 1', 5",
    "'SELECT %s', (Unadaptable(),)",
    "'SELECT %s', (Raising(),)",
    "'SELECT %s', ('nul\\x00',)",
    "'SELECT 1 \\x00'",
    "'SELECT \\udc80'",
    "'SELECT %s', ('\\udc80',)",
    "\"SELECT '\\u20ac \\u4e2d'\"",
    "'SELECT %s', ('\\u4e2d',)",
    "b\"SELECT '\\xff'\"",
    'b"SELECT \'\\xc3"',
    "b'\\xff'",
    "5",
    "None",
    "''",
    "' '",
    "';'",
    "';;'",
    "'-- only'",
    "'/* only */'",
    "'\\n'",
    "b''",
    "sql.SQL('')",
    "sql.SQL('SELECT {{}}').format(sql.Identifier('no\"pe'))",
    "'COPY t FROM STDIN'",
    "'COPY (SELECT 1) TO STDOUT'",
    "'CREATE DATABASE x; SELECT 1'",
    "'EXECUTE nope'",
    "'CLOSE nope'",
    "'SET nope = 1'",
    "\"SET client_encoding = 'nope'\"",
    "'SET TRANSACTION ISOLATION LEVEL NOPE'",
    "'SAVEPOINT'",
    "'SELECT fails(1), nope'",
    "'SELECT * FROM (SELECT 1) WHERE'",
    "\"SELECT E'\\\\xff'\"",
    "\"SELECT convert_from('\\\\xff', 'UTF8')\"",
]
_MANY = [
    "'SELECT 1; SELECT 2'",
    "'SELECT 1; SELECT 2;'",
    "'SELECT 1;;'",
    "'SELECT 1 ; '",
    "'; SELECT 1'",
    "'SELECT 1; SELECT nope'",
    "'SELECT 1; SELEC 2'",
    "'SELECT 1; SELECT 1/0'",
    '"INSERT INTO t (id) VALUES ({i}); SELECT 1/0"',
    '"INSERT INTO t (id) VALUES ({i}); INSERT INTO t (id) VALUES ({j}) RETURNING id"',
    "\"SELECT 'a;b'\"",
    "\"SELECT 'a;b', nope\"",
    "'SELECT $$;$$'",
    "'SELECT \";\"'",
    "'SELECT 1 -- comment'",
    "'SELECT 1 -- ;'",
    "'SELECT 1; -- comment'",
    "'SELECT 1; /* comment */'",
    "'-- c\\nSELECT 1'",
    "'/* c ; */ SELECT 1'",
    "'/* c */ SELECT nope'",
    "'/* /* nested */ */ SELECT 1'",
    "'-- c\\n\\nSELECT\\n  nope -- d'",
    "'\\n\\nSELECT 1\\n\\n'",
    "'\\ufeffSELECT 1'",
    "'\\xa0SELECT 1'",
    "'SELECT 1 /* ; '",
    "'SELECT 1;\\n\\n\\n  SELECT nope'",
    "'CREATE RULE r AS ON DELETE TO tmp DO ALSO (SELECT 1; SELECT 2)'",
    "'CREATE FUNCTION pg_temp.g() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END'",
    "'SELECT 1; COPY (SELECT 1) TO STDOUT'",
    "'SET app.x = 1; SELECT 2'",
    "'SELECT pg_sleep(0); SELECT 5'",
]
_SLEEPS = [
    "c{k}.execute('SELECT pg_sleep(30)')",
    "c{k}.execute('SELECT pg_sleep(%s)', (30,))",
    "c{k}.execute('SELECT f(1), pg_sleep(30)')",
    "c{k}.execute('SELECT 1; SELECT pg_sleep(30)')",
    "c{k}.execute('INSERT INTO t (id) SELECT {i} FROM pg_sleep(30)')",
    "c{k}.execute('INSERT INTO t (id) VALUES ({i}); SELECT pg_sleep(30)')",
    "c{k}.execute('COMMIT; SELECT pg_sleep(30)')",
    "c{k}.execute('/* c */ SELECT pg_sleep(30) -- d')",
    "c{k}.callproc('pg_sleep', (30,))",
    "c{k}.executemany('SELECT pg_sleep(%s)', [(0,), (0,), (30,), (0,)])",
    "c{k}.executemany('INSERT INTO t (id) SELECT %s FROM pg_sleep(%s)', [({i}, 0), ({i} + 1, 30), ({i} + 2, 0)])",
    "c{k}.copy_expert('COPY (SELECT pg_sleep(30)) TO STDOUT', StringIO())",
    "n0.execute('SELECT pg_sleep(30)')",
    "n0.fetchone()",
    "n1.fetchall()",
    "list(n0)",
    "extras.execute_values(c{k}, 'SELECT pg_sleep(v) FROM (VALUES %s) x (v)', [(30,)])",
    "c{k}.execute('SELECT 1')",
    "c{k}.fetchone()",
]

_SETTINGS = [
    *("conn.autocommit = True", "conn.autocommit = True", "conn.autocommit = False", "conn.autocommit = False"),
    *(
        "conn.isolation_level = 'SERIALIZABLE'",
        "conn.isolation_level = 'repeatable read'",
        "conn.isolation_level = None",
    ),
    *("conn.isolation_level = 'nope'", "conn.isolation_level = 1", "conn.isolation_level = 'default'"),
    *("conn.isolation_level = None", "conn.readonly = True", "conn.readonly = False", "conn.readonly = None"),
    *("conn.deferrable = True", "conn.deferrable = False", "conn.deferrable = None"),
    *(
        "conn.set_session(readonly=True)",
        "conn.set_session('SERIALIZABLE', True, True)",
        "conn.set_session(autocommit=True)",
    ),
    *("conn.set_session(isolation_level='READ COMMITTED', autocommit=True)", "conn.set_session()"),
    *("conn.set_session('DEFAULT', 'DEFAULT', 'DEFAULT')", "conn.set_session(autocommit=False)"),
    *("conn.set_session(readonly=False, deferrable=False)", "conn.set_session('nope')", "conn.set_session(7)"),
    *("conn.set_isolation_level(0)", "conn.set_isolation_level(1)", "conn.set_isolation_level(2)"),
    *("conn.set_isolation_level(3)", "conn.set_isolation_level(4)", "conn.set_isolation_level(7)"),
    *("conn.set_client_encoding('LATIN1')", "conn.set_client_encoding('UTF8')", "conn.set_client_encoding('nope')"),
    *("conn.set_client_encoding('utf-8')", "conn.set_client_encoding('SJIS')", "conn.set_client_encoding('SQL_ASCII')"),
    *(
        "conn.reset()",
        "conn.reset()",
        "conn.cancel()",
        "conn.notices.clear()",
        "conn.notices = []",
        "conn.notifies.clear()",
    ),
    *("conn.cursor_factory = extras.DictCursor", "conn.cursor_factory = None", "conn.cursor_factory = plain_function"),
    *("conn.poll()", "conn.isexecuting()", "conn.get_parameter_status('server_encoding')", "conn.info.error_message"),
    *("extensions.register_type(extensions.UNICODEARRAY, conn)", "extensions.quote_ident('a\"b', conn)"),
    *("extras.register_composite('pair', conn)", "extras.register_composite('nopair', conn)"),
    *("extras.HstoreAdapter.get_oids(conn)", "conn.lobject(0, 'n', 3001)"),
    *(
        "extensions.adapt('é\\\\').prepare(conn)",
        "c0.mogrify('SELECT %s', ('é\\\\',))",
        "c0.mogrify('SELECT %s', (Unadaptable(),))",
    ),
]

_ENDS = ["conn.commit()", "conn.rollback()", "conn.commit()", "conn.rollback()", "committed()"]

_FETCHES = [
    *("{c}.fetchone()", "{c}.fetchone()", "{c}.fetchmany()", "{c}.fetchmany(2)", "{c}.fetchall()", "list({c})"),
    *("next({c})", "[row for row in {c}]", "{c}.scroll(1)", "{c}.scroll(-1)", "{c}.scroll(0, mode='absolute')"),
    *("{c}.scroll(99)", "{c}.scroll(1, mode='nope')", "{c}.arraysize = 2", "{c}.itersize = 1", "{c}.close()"),
    *("{c}.nextset()", "{c}.setinputsizes(None)", "{c}.fetchmany(-1)", "{c}.fetchmany(0)", "{c}.scrollable = True"),
]

_MANYS = [
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [({i}, 'm'), ({i} + 1, 'm'), ({i} + 2, 'm')]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [({i}, 'm'), ({j}, 'm'), ({i}, 'm'), (8, 'm')]",
    "'INSERT INTO t (id, v) VALUES (%(a)s, %(b)s)', [{{'a': {i}, 'b': None}}, {{'a': {j}, 'b': 'é'}}]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ((i, 'g') for i in range({i}, {i} + 3))",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [({i}, 'm')]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', []",
    "\"UPDATE t SET v = 'm' || %s WHERE id >= %s\", [({i}, 1), ({j}, 5), (3, 99)]",
    "'SELECT %s', [(1,), (2,)]",
    "'SELECT f(%s)', [(1,), (2,), (3,)]",
    "'SELECT %s::int', [('1',), ('x',), ('3',)]",
    "'SELECT %s::int', [('1',), ('2',), ('x',), ('3',)]",
    "'SELECT nope %s', [(1,), (2,)]",
    "'DELETE FROM t WHERE id = %s', [({i},), ({j},)]",
    "'INSERT INTO t (id) VALUES (%s); SELECT 1', [({i},), ({j},)]",
    "'SET app.x = %s', [('1',), ('2',), ('3',)]",
    "'INSERT INTO p VALUES (%s, 77)', [(1,), (2,), (3,)]",
    "'COMMIT', [(), ()]",
    "'SAVEPOINT a', [(), (), ()]",
    "'', [(), ()]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [({i}, Querying(conn)), ({j}, Querying(conn)), (9, Querying(conn))]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [(i, 'many') for i in range(1200)]",
    "'SELECT 1', [None, None, None]",
    "'SELECT 1', None",
    "'SELECT 1', 5",
    "5, [(1,), (2,)]",
    "sql.SQL('INSERT INTO t (id) VALUES (%s)'), [({i},), ({j},), (9,)]",
    "b'INSERT INTO t (id) VALUES (%s)', [({i},), ({j},)]",
    "'COPY t FROM STDIN', [(), ()]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [(1, 'a'), (2,), (3, 'c')]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [(1, 'a'), (2, 'b'), (3,), (4, 'd')]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [(1, 'a'), (2, 'b'), (3, Unadaptable()), (4, 'd')]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', [(Unadaptable(), 'a'), (2, 'b')]",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ((i, 'g') if i < 7 else 1 / 0 for i in range(5, 9))",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ((i, conn.commit()) for i in range({i}, {i} + 3))",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ((i, conn.rollback()) for i in range({i}, {i} + 3))",
    "'INSERT INTO t (id, v) VALUES (%s, %s)', ((i, c1.execute('SELECT 5')) for i in range({i}, {i} + 3))",
]

_COPIES = [
    "copy_from(StringIO('{i}\\tcopied\\n{j}\\tcopied\\n'), 't', columns=('id', 'v'))",
    "copy_from(StringIO('7\\tcopied\\n8\\t\\\\N\\n'), 't', columns=('id', 'v'))",
    "copy_from(BytesIO(b'{i},bytes\\n'), 't', sep=',', columns=('id', 'v'))",
    "copy_from(StringIO('x\\tbad\\n'), 't', columns=('id', 'v'))",
    "copy_from(StringIO('1\\n'), 't', columns=('id', 'v'))",
    "copy_from(StringIO(''), 't')",
    "copy_from(StringIO('1\\n'), 'nowhere')",
    "copy_from(BadFile(), 't')",
    "copy_from(5, 't')",
    "copy_to(log, 't', columns=('id', 'v'))",
    "copy_to(BadFile(), 't')",
    "copy_to(log, 'nowhere')",
    "copy_expert('COPY (SELECT * FROM t ORDER BY id) TO STDOUT CSV HEADER', log)",
    "copy_expert('COPY t (id, v) FROM STDIN CSV', StringIO('{i},x\\n'))",
    "copy_expert(sql.SQL('COPY t (id) FROM STDIN'), StringIO('{i}\\n'))",
    "copy_expert('COPY nope', log)",
    "copy_expert('SELECT 1', log)",
    "copy_expert('COPY (SELECT 1/0) TO STDOUT', log)",
    "copy_expert('COPY (SELECT 1/(3 - i) FROM generate_series(1, 9) i) TO STDOUT', log)",
    "copy_expert('COPY (SELECT 1) TO STDOUT; SELECT 1', log)",
    "copy_expert('', log)",
]

_CALLS = [
    *(
        "callproc('f', ({i},))",
        "callproc('f', ({i}, 'z'))",
        "callproc('f', {{'x': {i}, 'y': 'n'}})",
        "callproc('nope')",
    ),
    *("callproc('fails', ({i},))", "callproc('several', (3,))", "callproc('f', (Unadaptable(),))", "callproc('f')"),
    *("callproc('now_', [])", "callproc('f', {{5: 1}})", "callproc('')"),
]

_LARGE = [
    *(
        "l{l} = conn.lobject(0, 'w', 100{l})",
        "l{l} = conn.lobject(0, 'wb', 100{l})",
        "l{l} = conn.lobject(100{l}, 'r')",
    ),
    *("l{l} = conn.lobject(100{l}, 'rwb')", "l{l} = conn.lobject(100{l}, 'nope')", "l{l} = conn.lobject(999)"),
    *("l{l}.write('text é')", "l{l}.write(b'bytes')", "l{l}.read()", "l{l}.read(3)", "l{l}.seek(0)", "l{l}.seek(2, 2)"),
    *("l{l}.tell()", "l{l}.truncate(4)", "l{l}.close()", "l{l}.unlink()", "l{l}.export('/nonexistent/x')"),
    *("l{l} = conn.lobject(0, 'r', 0, '/nonexistent/x')",),
]

_TWO_PHASE = [
    *("conn.tpc_begin({x})", "conn.tpc_begin({x})", "conn.tpc_prepare()", "conn.tpc_prepare()", "conn.tpc_commit()"),
    *("conn.tpc_rollback()", "conn.tpc_commit({x})", "conn.tpc_rollback({x})", "recover()", "conn.tpc_begin(5)"),
]

_EXTRAS = [
    "extras.execute_values(c{k}, 'INSERT INTO t (id, v) VALUES %s', [({i}, 'e'), ({j}, 'e')])",
    "extras.execute_values(c{k}, 'INSERT INTO t (id, v) VALUES %s RETURNING id', [({i}, 'e'), (9, 'e')], fetch=True)",
    "extras.execute_values(c{k}, 'INSERT INTO t (id, v) VALUES %s', [(i, 'e') for i in range(5)], page_size=2)",
    "extras.execute_batch(c{k}, 'INSERT INTO t (id, v) VALUES (%s, %s)', [(i, 'b') for i in range({i}, 9)], 3)",
    "extras.execute_batch(c{k}, 'SELECT nope %s', [(1,), (2,)])",
]

#: What greenpg refuses in its own blocks.
_NOT_INSIDE = [
    *("conn.commit", "conn.rollback", "conn.autocommit", "conn.set_", "conn.tpc", "conn.reset", "conn.isolation_level"),
    *("conn.readonly", "conn.deferrable"),
    *("get_oids", "register_composite"),  # roll back, unless the connection's status says that they may not
]


class _Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.cursors = ["c0", "c1"]

    def pick(self, choices):
        chosen = self.random.choice(choices)
        numbers = self.random
        return chosen.format(
            i=numbers.randint(1, 6),
            j=numbers.randint(1, 6),
            k=numbers.randint(0, 1),
            l=numbers.randint(0, 1),
            x=numbers.choice(("x1", "x1", "x2")),
            flag=numbers.choice(("true", "false")),
            onoff=numbers.choice(("on", "off")),
            c=numbers.choice(self.cursors),
        )

    def program(self):
        connections, weights = zip(*_CONNECTIONS, strict=True)
        steps = ["conn = " + self.random.choices(connections, weights)[0], "c0 = conn.cursor()", "c1 = conn.cursor()"]
        if self.random.random() < 0.3:
            steps.append(self.pick(_SETTINGS))
        kinds, weights = zip(*self._KINDS, strict=True)
        mood = [weight * self.random.choice((0.3, 1, 1, 3)) for weight in weights]  # each program has its own
        for _ in range(self.random.randint(3, 20)):
            steps.append(self.random.choices(kinds, mood)[0](self))
        return steps

    def execute(self):
        statements = self.random.choices((_READS, _WRITES, _FAULTY, _MANY, _SAVEPOINTS), (30, 30, 20, 10, 5))[0]
        return f"c{self.random.randint(0, 1)}.execute({self.pick(statements)})"

    def by_hand(self):
        return f"c{self.random.randint(0, 1)}.execute({self.pick(_BY_HAND)})"

    def savepoint(self):
        return f"c{self.random.randint(0, 1)}.execute({self.pick(_SAVEPOINTS)})"

    def fetch(self):
        return self.pick(_FETCHES)

    def end(self):
        return self.pick(_ENDS)

    def setting(self):
        return self.pick(_SETTINGS)

    def cursor(self):
        name = self.random.choice(("c0", "c1", "c1"))
        factory = self.random.choice(_FACTORIES)
        if self.random.random() < 0.3:
            maker = factory if "lambda" not in factory else f"({factory})"
            return f"{name} = {maker}(conn)"
        return f"{name} = " + self.random.choice(("conn.cursor()", f"conn.cursor(cursor_factory={factory})"))

    def named(self):
        """Named cursors: made, executed, fetched from, scrolled, closed."""
        number = self.random.randint(0, 1)
        name = f"n{number}"
        if name not in self.cursors or self.random.random() < 0.25:
            self.cursors.append(name)
            options = self.random.choice(
                ("", "", ", withhold=True", ", withhold=True", ", scrollable=True", ", scrollable=False")
            )
            if self.random.random() < 0.2:
                options += f", cursor_factory={self.random.choice(_FACTORIES[:3])}"
            return f"{name} = conn.cursor('{name}'{options})"
        return self.random.choice(
            (
                f"{name}.execute('SELECT generate_series(1, 5)')",
                f"{name}.execute('SELECT i, %s FROM generate_series(1, 4) i', ('x',))",
                f"{name}.execute('SELECT * FROM t ORDER BY id')",
                f"{name}.execute('SELECT 6 / (3 - i) FROM generate_series(1, 4) i')",
                f"{name}.execute({self.pick(_FAULTY)})",
                f"{name}.execute({self.pick(_READS)})",
                f"{name}.execute('SELECT 1 FROM t FOR UPDATE')",
                f"{name}.callproc('several', (3,))",
                f"{name}.executemany('SELECT %s', [(1,), (2,)])",
                f"{name} = extensions.cursor(conn, '{name}')",
                f"{name}.execute('SELECT %s', (Querying(conn),))",
                f"{name}.fetchone()",
                f"{name}.fetchmany(2)",
                f"{name}.fetchall()",
                f"list({name})",
                f"next(iter({name}))",
                f"{name}.itersize = 2; see(); next({name}); see(); next({name})",
                f"{name}.scroll({self.random.randint(-2, 3)})",
                f"{name}.scroll({self.random.randint(0, 3)}, mode='absolute')",
                f"{name}.close()",
                f"{name}.withhold = True",
                f"c0.execute('UPDATE t SET v = 2 WHERE CURRENT OF {name}')",
            )
        )

    def many(self):
        return f"c{self.random.randint(0, 1)}.executemany({self.pick(_MANYS)})"

    def copy(self):
        return f"c{self.random.randint(0, 1)}.{self.pick(_COPIES)}"

    def call(self):
        return f"c{self.random.randint(0, 1)}.{self.pick(_CALLS)}"

    def large(self):
        return self.pick(_LARGE)

    def two_phase(self):
        return self.pick(_TWO_PHASE)

    def extra(self):
        return self.pick(_EXTRAS)

    def kill(self):
        kind = self.random.choice(("'Killed'", "'Killed'", "'KilledToo'", "'KilledByDriver'"))
        return f"kill(lambda: {self.pick(_SLEEPS)}, {kind})"

    def cancel(self):
        return f"cancel(lambda: {self.pick(_SLEEPS)})"

    def simple(self):
        """A step that fits into a block."""
        makers = (
            *(_Maker.execute, _Maker.execute, _Maker.execute, _Maker.fetch, _Maker.end, _Maker.many, _Maker.copy),
            *(_Maker.kill, _Maker.named, _Maker.setting, _Maker.cursor, _Maker.by_hand),
        )
        return self.random.choice(makers)(self)

    def block(self):
        """`with conn`, `with cursor`, and errors that are caught, or aren't."""
        head = self.random.choice(
            (
                *(
                    "with conn:",
                    "with conn:",
                    "with conn:",
                    "with conn, conn.cursor() as c1:",
                    "with conn.cursor() as c1:",
                ),
                *("with conn.cursor('w') as n1:", "try:", "with conn, conn.cursor('w') as n1:"),
            )
        )
        lines = [head]
        for _ in range(self.random.randint(1, 3)):
            shape = self.random.random()
            step = self.simple()
            if shape < 0.6:
                lines += ["    " + step, "    see()"]
            elif shape < 0.8:
                lines += ["    try:", "        " + step, "    except Exception as error: see(error)"]
            elif shape < 0.9:
                lines += ["    with conn:", "        " + step]
            else:
                lines += ["    with conn.cursor() as c1:", "        " + step, "        see()"]
        if self.random.random() < 0.2:
            lines.append("    raise Boom('of the block')")
        if head == "try:":
            lines.append("except psycopg2.Error as error: see(error)")
        return "\n".join(lines)

    def notified(self):
        """A notification of another connection comes with the next statement, if none is under way."""
        return self.random.choice(
            (
                "c0.execute('LISTEN chan'); conn.commit()",
                "notify('p'); conn.commit(); c0.execute('SELECT 1')",
                "notify('p'); conn.rollback(); c1.execute('SELECT 1'); conn.commit()",
            )
        )

    def inner(self):
        """A step for greenpg's blocks, which refuse to have their transaction ended, or changed, under them."""
        while True:
            step = self.simple()
            if not any(text in step for text in _NOT_INSIDE):
                return step

    def transaction(self):
        """`conn.transaction()`, nested now and then."""
        lines = ["with transaction(conn):"]
        for _ in range(self.random.randint(0, 3)):
            shape = self.random.random()
            if shape < 0.5:
                lines += ["    " + self.inner(), "    see()"]
            elif shape < 0.75:
                lines += ["    try:", "        " + self.inner(), "    except Exception as error: see(error)"]
            else:
                lines += ["    try:", "        with transaction(conn):", "            " + self.inner()]
                lines += [
                    "            see()",
                    "            " + self.inner(),
                    "    except Exception as error: see(error)",
                ]
        if self.random.random() < 0.2 or len(lines) == 1:
            lines.append(self.random.choice(("    raise Boom('of the block')", "    see()")))
        return "\n".join(lines)

    def lent(self):
        """`pool.connection()`; what one borrower leaves must not reach the next one."""
        lines = [
            "conn.close()",
            "try:",
            "    with lent() as conn:",
            "        c0 = conn.cursor(); c1 = conn.cursor(); see()",
        ]
        for _ in range(self.random.randint(1, 4)):
            step = self.simple() if self.random.random() < 0.8 else self.transaction()
            if "client_encoding" in step or "encod" in step:
                continue
            lines += ["        " + line for line in ["try:", *("    " + line for line in step.split("\n"))]]
            lines += ["        except Exception as error: see(error)"]
        if self.random.random() < 0.3:
            lines.append("        " + self.inner())
        # Cursors of a lent connection can't be used after it has been given back, which psycopg2 doesn't know.
        lines += ["finally:", "    conn = connect(); c0 = conn.cursor(); c1 = conn.cursor(); n0 = n1 = conn.cursor()"]
        return "\n".join(lines)

    def rarely(self):
        return self.random.choice(
            (
                "conn.close()",
                "terminate()",
                "c0.execute('SELECT pg_terminate_backend(pg_backend_pid())')",
                "conn.close(); conn = connect(); c0 = conn.cursor(); c1 = conn.cursor()",
                "conn.close(); conn = connect(); c0 = conn.cursor(); c1 = conn.cursor()",
                "del conn, c0, c1",
                "conn.__enter__()",
                "it = iter(c0); tell(next(it)); c0.execute('SELECT 5'); see(); tell(list(it))",
                "c0.execute('SELECT generate_series(1, 1200)'); it = iter(c0); next(it); c0.execute('SELECT 5'); "
                "see(); tell(list(it))",
                "for row in c0: tell(row); c1.execute('SELECT 1'); conn.commit()",
                "c0.connection.cursor().execute('SELECT 1')",
                "c0.__class__(conn).execute('SELECT 1')",
                "conn.__exit__(None, None, None)",
                "conn.__exit__(Boom, Boom(), None)",
            )
        )

    _KINDS = (
        (execute, 40),
        (fetch, 14),
        (end, 10),
        (setting, 6),
        (by_hand, 4),
        (savepoint, 3),
        (cursor, 3),
        (named, 8),
        (many, 5),
        (copy, 4),
        (call, 3),
        (large, 3),
        (two_phase, 3),
        (extra, 2),
        (kill, 2),
        (cancel, 0.5),
        (block, 8),
        (transaction, 4),
        (lent, 2),
        (notified, 1),
        (rarely, 1),
    )


def make_program(seed):
    """The program of a seed: a list of steps."""
    return _Maker(seed).program()
