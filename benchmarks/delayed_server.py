"""A benchmark's target: connection strings that lead to a server directly, and through proxies that delay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from delay_proxy import DelayProxy
from harness import CantRun

DIRECT, TCP = "direct", "tcp"


@contextmanager
def behind_proxies(proxies: Mapping[str, Mapping[str, float]], dsn: str | None) -> Iterator[dict[str, str]]:
    """A connection string for `DIRECT`, one by `TCP`, and one for each of `proxies`: {name: DelayProxy's options}.

    `dsn`: the user's server, None for a throw-away one; that is reached through its Unix socket when it's direct.
    """
    from psycopg2.extensions import make_dsn, parse_dsn

    with ExitStack() as stack:
        tcp_dsn = dsn
        if dsn is None:
            from greenpg import embedded

            server = stack.enter_context(embedded.Server(settings={"max_connections": 200}, port=0))
            dsn, tcp_dsn = server.dsn, server.tcp_dsn
        parameters = parse_dsn(tcp_dsn)
        host, port = parameters.get("hostaddr") or parameters.get("host", "/"), parameters.get("port", 5432)
        if host.startswith("/") or "," in host:
            raise CantRun(f"this needs the DSN of one host by TCP, this is {host}")
        dsns = {DIRECT: dsn, TCP: tcp_dsn}
        for name, options in proxies.items():
            proxy = stack.enter_context(DelayProxy(host, port, **options))
            dsns[name] = make_dsn(tcp_dsn, hostaddr="127.0.0.1", port=proxy.port)
        yield dsns
