"""`with pool.pipeline()`: a whole transaction in one round trip."""

from __future__ import annotations

from ..connection.connection import Connection
from ..connection.pipeline.pipeline import Pipeline
from ..connection.transaction import end_transaction
from .contexts import Block, finish
from .lending import lend
from .returning import give_back


class PipelineContext(Block):
    """Lends a connection in a pipeline: commits at the end of the block, rolls back if it raises."""

    __slots__ = ("_pipeline",)

    def __enter__(self) -> Pipeline[Connection]:
        self._slot = slot = lend(self._core, self._timeout)
        self._lent_at = slot.lent_at
        conn = slot.conn
        try:
            self._pipeline = pipeline = conn.pipeline()
            pipeline.__enter__()
        except BaseException:
            give_back(self._core, slot)
            raise
        if not conn.autocommit:
            conn._blocks.append(self)
        return pipeline

    def _leave(self, exc: BaseException | None) -> None:
        slot, core, pipeline = self._slot, self._core, self._pipeline
        if slot.lent_at != self._lent_at:
            return  # the block has returned it, and it may be somebody else's by now
        slot.conn._blocks.clear()
        if exc is not None:
            self._give_up(exc)
            return
        is_committed = False
        try:
            is_committed = end_transaction(slot.conn, commit=True)
            pipeline.__exit__(None, None, None)
        except BaseException as error:
            self._give_up(error)
            raise
        give_back(core, slot, is_committed=is_committed)

    def _give_up(self, exc: BaseException) -> None:
        """Leave the pipeline, roll back, and give the connection back; the exception goes on."""
        try:
            self._pipeline.__exit__(type(exc), exc, None)
        finally:
            finish(self._core, self._slot, exc)
