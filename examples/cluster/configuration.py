"""What the cluster's programs are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patroni_cluster import Node

SCOPE = "demo"
_HAPROXY = """\
global
    maxconn 1000
defaults
    mode tcp
    retries 0
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"""


def for_haproxy(node: Node, etcd_port: int) -> str:
    """Of a node's cable: what leads to its PostgreSQL and Patroni, and from there to etcd."""
    ways = [("postgres", node.port, node.postgres), ("rest", node.rest_port, node.rest)]
    ways.append(("etcd", node.etcd_port, etcd_port))
    lines = [f"listen {name}\n    bind 127.0.0.1:{port}\n    server s 127.0.0.1:{to}\n" for name, port, to in ways]
    return _HAPROXY + "".join(lines)


def for_patroni(node: Node, timing: dict[str, int], binaries: Path) -> str:
    """Of Patroni, on that node."""
    parameters = {
        "max_connections": 100,
        "shared_buffers": "32MB",
        "wal_keep_size": "128MB",
        "fsync": False,  # the machine's crash isn't what is tried here
        "wal_receiver_status_interval": 1,
        "wal_retrieve_retry_interval": 200,
    }
    settings = {
        "scope": SCOPE,
        "name": node.name,
        "restapi": {"listen": f"127.0.0.1:{node.rest}", "connect_address": f"127.0.0.1:{node.rest_port}"},
        "etcd3": {"host": f"127.0.0.1:{node.etcd_port}", "use_proxies": True},  # the cable's, not what etcd says
        "bootstrap": {
            "dcs": {
                **timing,
                "synchronous_mode": True,
                "primary_start_timeout": 0,  # a PostgreSQL that has crashed isn't waited for
                "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": parameters},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "trust"}, "no-sync", "data-checksums"],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{node.postgres}",
            "connect_address": f"127.0.0.1:{node.port}",
            "use_unix_socket": True,
            "data_dir": str(node.directory / "data"),
            "bin_dir": str(binaries),
            "pgpass": str(node.directory / "pgpass"),
            "parameters": {"unix_socket_directories": str(node.directory)},
            "pg_hba": [
                "local all all trust",
                "host all all 127.0.0.1/32 trust",
                "host replication all 127.0.0.1/32 trust",
            ],
            "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "postgres"}},
        },
    }
    return json.dumps(settings, indent=2)  # JSON is YAML, too
