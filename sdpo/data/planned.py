"""Read the plan together with the pairs that steps have of their own.

Most pairs are the run's: they are known when the plan is made, and ``plan.parquet`` has their
steps. A step may have others beside them that come into being once the model before it is there.
Whoever asks for the rows of a step gets both, in one numbering: the rows of ``pairs.parquet`` (and
of its token file) come first, then those of every step with pairs of its own, by step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from sdpo.data.parquet_columns import Columns

PLANNED = ("pair_id", "prompt_key", "source", "token_row", "step", "sampled")
"""A planned row has these columns: in ``plan.parquet``, and in a step's own ``usable.parquet``."""


class StepData(BaseModel):
    """The pairs that a step has of its own are in these files.

    ``usable`` has the columns :data:`PLANNED` of those that are trained on, where ``token_row`` is
    the row in ``pairs`` and in ``tokens``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    pairs: Path
    usable: Path
    tokens: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan is the run's, ``plan``, with the rows that the steps ``own``, in ascending order.

    ``pairs`` are the run's.
    """

    plan: Path
    pairs: Path
    own: tuple[StepData, ...] = ()

    def up_to(self, step: int) -> "Planned":
        """Return the plan without what later steps have of their own; rows keep their numbers."""
        own = tuple(data for data in self.own if data.step <= step)
        return Planned(plan=self.plan, pairs=self.pairs, own=own)

    def rows_of(self, *steps: int) -> np.ndarray:
        """Return the token rows of the steps in turn, each in the plan's order; 0 is the reserve.

        A step's own pairs come after those that the run's plan gives it.
        """
        found: dict[int, list[np.ndarray]] = {step: [] for step in steps}
        for path, start in self._files():
            columns = Columns(path)
            rows, step_of = columns.numbers("token_row") + start, columns.numbers("step")
            for step, parts in found.items():
                parts.append(rows[step_of == step])
        return np.concatenate([part for step in steps for part in found[step]])

    def rows_by_file(self, step: int) -> list[np.ndarray]:
        """Return the step's rows by themselves: those in the run's tokens, then in each own file.

        A file of tokens that was made for another run may have fewer rows than this run's.
        """
        files = [Columns(path) for path, _ in self._files()]
        return [file.numbers("token_row")[file.numbers("step") == step] for file in files]

    def table(self, columns: Sequence[str] = PLANNED) -> pa.Table:
        """Return all rows, with these of the columns :data:`PLANNED`."""
        return pa.concat_tables(_read(path, start, columns) for path, start in self._files())

    def own_table(self, step: int) -> pa.Table:
        """Return the rows that a step has of its own, likewise."""
        (table,) = (
            _read(path, start, PLANNED)
            for data, (path, start) in zip(self.own, self._own_files(), strict=True)
            if data.step == step
        )
        return table

    def own_pairs(self) -> dict[int, int]:
        """Return how many pairs each step has of its own, for those that have some."""
        return {data.step: Columns(data.usable).rows for data in self.own}

    def _files(self) -> Iterator[tuple[Path, int]]:
        yield self.plan, 0
        yield from self._own_files()

    def _own_files(self) -> Iterator[tuple[Path, int]]:
        """Yield each step's own planned rows, with the number of the row that its tokens start at.

        A token file has a row for each pair.
        """
        start = Columns(self.pairs).rows if self.own else 0
        for data in self.own:
            yield data.usable, start
            start += Columns(data.pairs).rows


def _read(path: Path, start: int, columns: Sequence[str]) -> pa.Table:
    table = pq.read_table(path, columns=list(columns))
    if not start or "token_row" not in columns:
        return table
    rows = pa.array(table["token_row"].to_numpy() + start, pa.int64())
    return table.set_column(table.schema.get_field_index("token_row"), "token_row", rows)
