"""SQLAlchemy on a `greenpg.Cluster`: an engine for each role, and a Session that reads from replicas."""

from __future__ import annotations

import logging
import re
from typing import Any, Literal, NamedTuple

import psycopg2
from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import GenerativeSelect, TableClause

from ...cluster.cluster import Cluster
from ...cluster.routing import NoReplica
from ...errors import is_interruption
from .replicas import ReplicaPool, only_replicas

logger = logging.getLogger("greenpg.cluster")

#: The execution option of a statement, and the bind argument.
_OPTION, _ROLES = "greenpg_role", ("primary", "replica")

#: Functions that need the primary, though they stand in a SELECT. A replica would refuse most of them; but it has
#: advisory locks, which lock nothing elsewhere.
_WRITING = re.compile(
    r"(?:next_value|nextval|setval|currval|lastval|pg_notify|txid_current|pg_current_xact_id|lo_\w+"
    r"|pg_(?:try_)?advisory_\w+)$",
    re.IGNORECASE,
)


class ClusterEngines(NamedTuple):
    """The engines of a cluster."""

    #: Its connections are those of `cluster.primary`.
    primary: Engine
    #: Its connections are those of `cluster.replica`, its transactions are read-only.
    replica: Engine

    def dispose(self) -> None:
        """Close the idle connections of both now, those that are checked out when they come back. Suspends
        as the pools' `dispose()`."""
        self.primary.dispose()
        self.replica.dispose()


def create_cluster_engines(
    cluster: Cluster,
    url: str = "postgresql+greenpg://",
    *,
    lease: Literal["checkout", "transaction"] = "checkout",
    execution_options: dict[str, Any] | None = None,
    **options: Any,
) -> ClusterEngines:
    """An engine for `cluster.primary`, and one for `cluster.replica`.

    `options`: `create_engine()`'s, for both (`echo`, `json_serializer` ...). How to connect, and pool sizes, are the
    cluster's own. Each checkout of the replica's engine goes to a replica that has what the running task has written,
    or, where there is none, to the primary; its transactions are read-only in any case. `lease` ("checkout"), as
    `GreenpgPool`'s, is the primary's engine's alone: what reads from a replica keeps to it. Doesn't suspend.
    """
    execution_options = execution_options or {}
    read_only = {**execution_options, "postgresql_readonly": True}
    return ClusterEngines(
        create_engine(
            url, connection_pool=cluster.primary, lease=lease, execution_options=execution_options, **options
        ),
        create_engine(url, poolclass=ReplicaPool, cluster=cluster, execution_options=read_only, **options),
    )


class ClusterSession(Session):
    """A Session that reads from replicas, until its transaction writes.

        Session = sessionmaker(class_=ClusterSession, engines=create_cluster_engines(cluster))

    - To a replica that has what the running task has written: SELECTs of tables, and what the ORM loads.
    - To the primary: what is flushed, INSERT, UPDATE, DELETE, `text()`, `connection()`, `with_for_update()`; SELECTs
      that contain one of these, read from no table, or call functions such as `nextval()` or `pg_advisory_lock()`;
      everything within `begin_nested()`, and with `twophase`.
    - Once a transaction has come to the primary, all that follows in it goes there, on the same connection.
    - Where there is no replica to be read from, a transaction begins on the primary.

    `execution_options(greenpg_role="primary")` of a statement, or `bind_arguments={"role": "primary"}` of a call, says
    where it goes; "replica" as well, whatever came before. `readonly=True` (False): all goes to the replica's engine,
    `text()` and `connection()` too, in read-only transactions. Mappers and tables with other `binds`, and a `bind`
    other than the primary's engine, are left alone. Suspends and raises as SQLAlchemy's, which it is in all else.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        engines: ClusterEngines,
        readonly: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(engines.primary if bind is None else bind, **options)
        self._engines = engines
        self._readonly = readonly
        self._read_only_primary: Engine | None = None
        self._forget_transaction()

    def _forget_transaction(self) -> None:
        #: What the present transaction has come to: the primary, and the connection to a replica.
        self._is_on_primary = False
        self._reader: Connection | None = None

    def get_bind(
        self,
        mapper: Any = None,
        *,
        clause: Any = None,
        bind: Engine | Connection | None = None,
        role: Literal["primary", "replica"] | None = None,
        **options: Any,
    ) -> Engine | Connection:
        """The engine for a statement. For a SELECT it checks a replica's connection out, which suspends."""
        found = super().get_bind(mapper, clause=clause, bind=bind, **options)
        primary, replica = self._engines
        if bind is not None or found is not primary:
            return found
        if role is None:
            role = getattr(clause, "_execution_options", {}).get(_OPTION)
        if role is not None and role not in _ROLES:
            raise exc.ArgumentError(f'a role is "primary" or "replica", not {role!r}')
        if role is None:
            if self._readonly:
                role = "replica"
            elif self._is_on_primary or self._flushing or self.twophase or self.in_nested_transaction():
                role = "primary"
        if role == "primary" or (role is None and not _only_reads(clause)):
            return primary
        if self._readonly:
            return self._engine_for_reading_only()
        return replica if self._can_read_from_replica() else primary

    def _engine_for_reading_only(self) -> Engine:
        pool: Any = self._engines.replica.pool
        if self._reader is None or pool.is_new_enough(self._reader):
            return self._engines.replica
        if self._read_only_primary is None:  # one for a Session, which has a connection for each engine
            self._read_only_primary = self._engines.primary.execution_options(postgresql_readonly=True)
        return self._read_only_primary

    def _can_read_from_replica(self) -> bool:
        pool: Any = self._engines.replica.pool
        if self._reader is not None:
            return bool(pool.is_new_enough(self._reader))
        with only_replicas():
            try:
                self.connection(bind_arguments={"bind": self._engines.replica})
            except NoReplica:
                return False
        return True

    def _note_connection(self, connection: Connection) -> None:
        if connection.engine is self._engines.primary:
            self._is_on_primary = True
        elif connection.engine is self._engines.replica:
            self._reader = connection

    def _end_reading(self) -> None:
        """Before a COMMIT: if the replica's transaction were ended by it, as the primary's is, an error or a kill there
        would say nothing of what has become of the primary's."""
        self._is_on_primary = not self._readonly
        if self._reader is None:
            return
        fairy: Any = self._reader.connection
        try:
            fairy.dbapi_connection.rollback()
        except psycopg2.Error as error:
            if is_interruption(error):
                raise
            logger.debug("ending a transaction on a replica: %s", error)
        fairy._connection_record.note_end()


def _only_reads(clause: Any) -> bool:
    """Whether it's certain that a statement needs no primary: it reads tables, and does nothing else."""
    if not isinstance(clause, GenerativeSelect):
        return False
    reads_table = False
    for element in visitors.iterate(clause):
        if isinstance(element, TableClause):
            reads_table = True
        elif isinstance(element, UpdateBase):
            return False
        elif isinstance(element, GenerativeSelect):
            if element._for_update_arg is not None:
                return False
        elif isinstance(element, FunctionElement) and _WRITING.match(getattr(element, "name", "")):
            return False
    return reads_table


@event.listens_for(ClusterSession, "after_begin")
def _begun(session: ClusterSession, transaction: SessionTransaction, connection: Connection) -> None:
    session._note_connection(connection)


@event.listens_for(ClusterSession, "before_commit")
def _committing(session: ClusterSession) -> None:
    if not session.in_nested_transaction():
        session._end_reading()


@event.listens_for(ClusterSession, "after_transaction_end")
def _ended(session: ClusterSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session._forget_transaction()
