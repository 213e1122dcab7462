"""The clusters behind the engine: an alias with `OPTIONS["replica_of"]` makes one of the alias that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started
from django.db import DEFAULT_DB_ALIAS, connections

from ...cluster.cluster import Cluster
from ...pool.pool import ConnectionPool

#: In the TEST settings of an alias: it is to be read on the primary's connection.
IS_MIRROR = "GREENPG_MIRROR"

_KNOWN = ("fallback", "interval", "max_lag", "strategy")

#: By the pool of the primary, which is the engine's pool for its alias.
_clusters: dict[ConnectionPool, Cluster] = {}


def replica_alias(primary: str) -> str | None:
    """The alias for the replicas of another one. ImproperlyConfigured if there are several."""
    found = [alias for alias in connections.settings if _options(alias).get("replica_of") == primary]
    if len(found) > 1:
        raise ImproperlyConfigured(
            f"{' and '.join(map(repr, found))} are both replica_of {primary!r}: one alias is for all replicas, whose "
            "hosts are named in HOST of the primary's alias, as 'pg1,pg2,pg3'"
        )
    return found[0] if found else None


def _options(alias: str) -> Mapping[str, Any]:
    options: Mapping[str, Any] = connections.settings[alias].get("OPTIONS", {})
    return options


def cluster_settings(alias: str) -> Any:
    """What makes a cluster of the alias, as something that has a text; None if it's none."""
    replica = replica_alias(alias) if alias in connections.settings else None
    if replica is None:
        return None
    options = _options(replica)
    return replica, sorted(options.get("cluster", {}).items()), repr(options.get("pool"))


def make_pool(alias: str, parameters: dict[str, Any], options: dict[str, Any]) -> ConnectionPool:
    """The pool for an alias: a cluster's, if there is an alias for its replicas. Doesn't suspend."""
    replica = replica_alias(alias)
    if replica is None:
        return ConnectionPool(kwargs=parameters, **options)
    asked = _options(replica).get("cluster", {})
    if unknown := sorted(set(asked) - set(_KNOWN)):
        raise ImproperlyConfigured(
            f'OPTIONS["cluster"] of {replica!r} has {", ".join(map(repr, unknown))}; it may have {", ".join(_KNOWN)}'
        )
    cluster = Cluster("", kwargs=parameters, replica_options=_replica_options(replica), **asked, **options)
    _clusters[cluster.primary] = cluster
    return cluster.primary


def _replica_options(replica: str) -> dict[str, Any]:
    options = _options(replica).get("pool", True)
    if not options:
        raise ImproperlyConfigured(
            f'{replica!r} can\'t be without a pool: leave OPTIONS["pool"] out, or make it a dict'
        )
    return {} if options is True else dict(options)


def close_whole(pool: ConnectionPool) -> None:
    """Close the pool, and if it's a cluster's, the cluster. Suspends for what is just being connected."""
    close: Callable[[], None] = _clusters.pop(pool, pool).close
    close()


def find_cluster(alias: str) -> Cluster | None:
    """The cluster of an alias; None if it has no replicas. Doesn't suspend."""
    if replica_alias(alias) is None:
        return None
    cluster = _clusters.get(connections[alias].pool)
    if cluster is None:
        raise ImproperlyConfigured(f'{alias!r} has replicas, so it can\'t be without a pool: OPTIONS["pool"] is False')
    return cluster


def get_cluster(using: str = DEFAULT_DB_ALIAS) -> Cluster:
    """The `greenpg.Cluster` behind an alias that has replicas: for its `token`, and `nodes`.

    ImproperlyConfigured if it has none. Doesn't suspend.
    """
    cluster = find_cluster(using)
    if cluster is None:
        raise ImproperlyConfigured(f'no alias of DATABASES has OPTIONS["replica_of"] = {using!r}')
    return cluster


def _forget(**_: Any) -> None:
    """What a thread's last request has written is no matter of the next one's."""
    for cluster in list(_clusters.values()):
        cluster.token = None


request_started.connect(_forget, dispatch_uid="greenpg.integrations.django.clusters")
